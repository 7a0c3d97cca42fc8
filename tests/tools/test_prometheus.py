"""A real Prometheus scrapes a live server, and promtool checks the endpoint's text."""

from __future__ import annotations

import asyncio
import re
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from bptt.client import Client
from tests.support.prometheus import first_value, prometheus
from tests.support.server import Served
from tests.support.tools import program

pytestmark = pytest.mark.tools

MODEL = "scraped"


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
