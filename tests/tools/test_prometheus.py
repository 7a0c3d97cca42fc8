"""A real Prometheus scrapes a live server, and promtool checks the endpoint's text."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.client import Client
from tests.support.server import Served
from tests.support.tools import free_port, program

pytestmark = pytest.mark.tools

MODEL = "scraped"
START_SECONDS = 60.0  # a loaded machine may take this long to start Prometheus and scrape once
POLL_SECONDS = 0.1

CONFIGURATION = """
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: bptt
    static_configs:
      - targets: ["{target}"]
"""


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Run a Prometheus on a free port that scrapes `target`; yield its address."""
    configuration = folder / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(target=target))
    address = f"127.0.0.1:{free_port()}"
    log = folder / "prometheus.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            yield address
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{log.read_text()[-4000:]}") from error
        finally:
            process.terminate()
            process.wait(timeout=30)


def query(address: str, expression: str) -> list[dict[str, Any]]:
    """Evaluate an expression in Prometheus; empty while Prometheus is starting."""
    parameters = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{parameters}") as answer:
            result = json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return []
    assert isinstance(result, list)
    return result


def first_value(address: str, expression: str) -> float:
    """Wait until an expression has a value in Prometheus, and return it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = query(address, expression)
        if found:
            return float(found[0]["value"][1])
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"Prometheus has no value of {expression} after {START_SECONDS:.0f} s")


async def learn(served: Served, steps: int) -> None:
    series = np.random.default_rng(7).standard_normal((steps, 2)).cumsum(axis=0)
    async with Client.connect(served.address) as client:
        await client.create_model(MODEL, {"input_size": 2, "hidden_size": 8, "k1": 4, "k2": 8})
        async with client.learn(MODEL) as session:
            for part in np.split(series, 10):
                await session.send("walk", part)
        await client.predict(MODEL, "walk")


def endpoint(served: Served) -> str:
    with urllib.request.urlopen(f"http://{served.metrics_address}/metrics") as answer:
        text = answer.read().decode()
    assert isinstance(text, str)
    return text


def test_prometheus_scrapes_what_was_learned(served: Served, tmp_path: Path) -> None:
    asyncio.run(learn(served, 400))
    with prometheus(tmp_path, served.metrics_address) as address:
        own = f'{{model="{MODEL}"}}'
        assert first_value(address, f"bptt_steps_total{own}") == 400
        assert first_value(address, 'up{job="bptt"}') == 1
        assert 0 < first_value(address, f"bptt_loss{own}") < 100
        before = first_value(address, f"bptt_gradient_norm{own}")
        after = first_value(address, f"bptt_clipped_gradient_norm{own}")
        assert 0 < after <= before
        assert first_value(address, f"bptt_updates_total{own}") >= 90


def test_promtool_accepts_the_endpoint(served: Served) -> None:
    asyncio.run(learn(served, 400))
    text = endpoint(served)
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"^bptt_loss\{", text, re.MULTILINE)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr.strip() == ""
