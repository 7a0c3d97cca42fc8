"""The page in a real browser: headless Chromium."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from bptt.client import Client
from bptt.domain import ModelState
from bptt.observability.history import History
from tests.support.server import Served, serving
from tests.support.tools import free_port, program
from tests.web.support import fetch, web
from tests.web.test_history import opened

pytestmark = pytest.mark.tools

WAIT_SECONDS = 60.0
CHARTS = 8


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = program("chromium")
    for each in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(each)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    driver = Chrome(options=options, service=Service(program("chromedriver")))
    driver.set_window_size(1200, 900)
    try:
        yield driver
    finally:
        driver.quit()


def wait(browser: Chrome, until: Callable[[], object]) -> None:
    def found(_: Chrome) -> object:
        return until()

    ignored = [StaleElementReferenceException]
    WebDriverWait(browser, WAIT_SECONDS, 0.1, ignored_exceptions=ignored).until(found)


def text(browser: Chrome, selector: str) -> str:
    return " ".join(each.text for each in browser.find_elements(By.CSS_SELECTOR, selector))


def figures(browser: Chrome) -> dict[str, str]:
    names = browser.find_elements(By.CSS_SELECTOR, "dt")
    values = browser.find_elements(By.CSS_SELECTOR, "dd")
    return {name.text: value.text for name, value in zip(names, values, strict=True)}


@contextmanager
def shown(browser: Chrome, history: History, place: str = "") -> Iterator[str]:
    with web(history=history) as served:
        base = f"http://{served.server.address}/"
        browser.get("about:blank")
        browser.get(base + place)
        yield base


def errors(browser: Chrome) -> list[str]:
    """What the page's code did wrong, or the security policy refused; not servers that stopped."""
    entries = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [each["message"] for each in entries if each["source"] != "network"]


def test_without_models_the_page_says_how_to_make_one(browser: Chrome) -> None:
    metrics = opened()
    metrics.close_model("a")
    with shown(browser, History(metrics)):
        wait(browser, lambda: "No models yet" in text(browser, "main"))
        assert "bptt learn" in text(browser, "code")
        metrics.model_state("new", ModelState.RUNNING)
        wait(browser, lambda: "new" in text(browser, "td a"))
        assert text(browser, "#connection") == "live"


@pytest.mark.parametrize(
    ("state", "kind", "hint"),
    [
        (ModelState.RUNNING, "state", ""),
        (ModelState.DIVERGED, "state attention", "Lower the learning rate"),
        (ModelState.FAILED, "state attention", "The server's log has the error"),
        (ModelState.READ_ONLY, "state attention", "until it is repaired"),
        (ModelState.PAUSED, "state waiting", "until it is resumed"),
    ],
)
def test_a_state_is_told_by_word_shape_and_hint(
    browser: Chrome, state: ModelState, kind: str, hint: str
) -> None:
    metrics = opened()
    metrics.model_state("a", state)
    with shown(browser, History(metrics), "#/model/a"):
        wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".main-svg")) >= CHARTS)
        badge = browser.find_element(By.CSS_SELECTOR, ".state")
        assert badge.get_attribute("class") == kind
        assert badge.text == state.value.replace("_", " ")
        assert hint in text(browser, "#hint")


def test_an_unknown_model_is_told(browser: Chrome) -> None:
    with shown(browser, History(opened()), "#/model/%3Cb%3Enothing"):
        wait(browser, lambda: "No model of this name" in text(browser, "main"))
        assert "<b>nothing does not exist" in text(browser, "main")


def test_the_page_works_by_keyboard_on_a_phone_and_in_the_dark(browser: Chrome) -> None:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        with shown(browser, History(opened())):
            wait(browser, lambda: text(browser, "td a") == "a")
            body = browser.find_element(By.TAG_NAME, "body")
            body.send_keys(Keys.TAB, Keys.TAB)
            browser.switch_to.active_element.send_keys(Keys.ENTER)
            wait(browser, lambda: text(browser, "h1") == "a")
            wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".main-svg"))
            wide = "return document.documentElement.scrollWidth - window.innerWidth"
            assert browser.execute_script(wide) <= 0
            ground = browser.find_element(By.TAG_NAME, "body").value_of_css_property(
                "background-color"
            )
            assert max(int(each) for each in re.findall(r"\d+", ground)[:3]) < 64
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


async def learn(served: Served) -> None:
    series = np.random.default_rng(7).standard_normal((400, 2)).cumsum(axis=0)
    async with Client.connect(served.address) as client:
        await client.create_model("walk", {"input_size": 2, "hidden_size": 8, "k1": 4, "k2": 8})
        async with client.learn("walk") as session:
            for part in np.split(series, 10):
                await session.send("s", part)


def test_figures_agree_with_metrics_and_the_page_survives_a_restart(
    browser: Chrome, tmp_path: Path
) -> None:
    port = f"127.0.0.1:{free_port()}"
    options = ("--data", str(tmp_path / "data"), "--metrics-address", port)
    with serving(*options) as served:
        asyncio.run(learn(served))
        browser.get(f"http://{port}/#/model/walk")
        wait(browser, lambda: figures(browser).get("steps") == "400")
        page = fetch(f"http://{port}/metrics").text
        loss = re.search(r'^bptt_loss{model="walk"} (\S+)$', page, re.MULTILINE)
        assert loss is not None
        assert float(figures(browser)["loss"]) == pytest.approx(float(loss[1]), rel=1e-3)
        wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".main-svg")) >= CHARTS)
        loaded = "return performance.getEntriesByType('resource').map((each) => each.name)"
        names = browser.execute_script(loaded)
        assert names
        assert all(each.startswith(f"http://{port}/") for each in names)
        assert not errors(browser)
    wait(browser, lambda: "does not answer" in text(browser, "#connection"))
    with serving(*options):
        wait(browser, lambda: text(browser, "#connection") == "live")
        wait(browser, lambda: figures(browser).get("steps") == "400")
