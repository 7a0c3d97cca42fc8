"""Grafana's dashboards: provisioned as docker-compose.yml mounts them, and every expression gives
data in a real Prometheus that scrapes a live server which learns."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bptt.client import Client
from tests.support.prometheus import prometheus, query
from tests.support.server import Served, serving

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULES = ROOT / "deploy/prometheus/bptt.rules.yml"
SECONDS_MAX = 150.0


def read(path: Path) -> dict[str, Any]:
    board = json.loads(path.read_text())
    assert isinstance(board, dict)
    return board


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        if panel["type"] != "row":
            yield panel


def expressions() -> list[str]:
    """The expressions of all panels; a variable stands for every value."""
    found = [
        target["expr"] for path in DASHBOARDS for each in panels(read(path))
        for target in each["targets"]
    ]  # fmt: skip
    found = [re.sub(r'=~?"\$(instance|model)"', '=~".+"', each) for each in found]
    assert not [each for each in found if "$" in each]
    return found


async def learn_until(address: str, is_done: Any) -> None:
    """Feed two models, one of each kind of figure, until all expressions have data."""
    random = np.random.default_rng(5)
    network = {"input_size": 2, "hidden_size": 4, "k1": 4, "k2": 8}
    async with Client.connect(address) as client:
        await client.create_model("values", network)
        await client.create_model(
            "classes", {**network, "task": "classification", "output_size": 2}
        )
        async with client.learn("values") as values, client.learn("classes") as classes:
            while not await asyncio.to_thread(is_done):
                walk = random.standard_normal((40, 2)).cumsum(axis=0)
                await values.send("walk", walk)
                await classes.send("walk", walk, (walk[:, 0] > 0).astype(int))
                await client.predict("values", "walk")


@pytest.fixture
def learning_server(tmp_path: Path) -> Iterator[Served]:
    data = tmp_path / "data"
    with serving("--data", str(data), "--metrics-detail", "full") as served:
        yield served


@pytest.mark.tools
def test_every_expression_has_data(learning_server: Served, tmp_path: Path) -> None:
    left = set(expressions())
    assert len(left) > 50
    deadline = time.monotonic() + SECONDS_MAX
    with prometheus(tmp_path, learning_server.metrics_address, RULES) as address:

        def is_done() -> bool:
            left.difference_update([each for each in left if query(address, each)])
            return not left or time.monotonic() > deadline

        asyncio.run(learn_until(learning_server.address, is_done))
    assert not left


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    for path in DASHBOARDS:
        board = read(path)
        assert board["uid"] == path.stem
        assert board["description"]
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24
            assert not cells & taken, f"{path.name}: {panel['title']} overlaps"
            taken |= cells
        for panel in panels(board):
            assert panel["title"]
            assert panel["description"].endswith((".", "docs/monitoring.md."))
            assert panel["fieldConfig"]["defaults"]["unit"]
            for target in panel["targets"]:
                assert target["datasource"]["uid"] == "${datasource}"


def test_each_used_variable_is_defined() -> None:
    for path in DASHBOARDS:
        board = read(path)
        defined = {each["name"] for each in board["templating"]["list"]}
        text = path.read_text()
        used = {name for name in ("instance", "model", "datasource") if f"${name}" in text}
        used |= {"datasource"} if "${datasource}" in text else set()
        assert used <= defined


def test_what_is_provisioned_is_where_the_container_finds_it() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounts = dict(
        each.rsplit(":", 1)[0].split(":")
        for each in compose["services"]["grafana"]["volumes"]
        if each.startswith("./")
    )
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/bptt.yml").read_text())
    assert mounts["./deploy/grafana/dashboards"] == providers["providers"][0]["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    (source,) = sources["datasources"]
    name, port = source["url"].removeprefix("http://").split(":")
    assert compose["services"][name]["ports"] == [f"127.0.0.1:{port}:{port}"]
