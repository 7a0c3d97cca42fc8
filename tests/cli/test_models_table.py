"""The table of `bptt models`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from bptt import v1 as pb
from bptt.cli.models import _table
from bptt.client import Client
from bptt.client.convert import model_from_proto
from bptt.domain import ModelState, UnreadModel
from bptt.rpc.convert_models import model_to_proto
from tests.cli.conftest import Bptt
from tests.support.server import serving


def test_a_model_that_is_being_recovered_has_a_row() -> None:
    unread = model_to_proto(UnreadModel("ride", ModelState.RECOVERING))
    model = model_from_proto(pb.Model.FromString(unread.SerializeToString()))
    console = Console(width=120)
    with console.capture() as shown:
        _table([model]).print(console)
    row = shown.get().splitlines()[1].split()
    assert row[0] == "ride"
    assert "recovering" in row
    assert set(row[1:]) == {"recovering", "–"}


async def _create(address: str, *names: str) -> None:
    async with Client.connect(address) as client:
        for name in names:
            await client.create_model(name, {"input_size": 1, "hidden_size": 4})


def test_a_failed_model_is_listed_with_the_reason(tmp_path: Path) -> None:
    with serving("--data", str(tmp_path)) as server:
        bptt = Bptt(server)
        asyncio.run(_create(server.address, "ride", "sea"))
        assert bptt("models").out.splitlines()[-1].startswith("error: "), "both are running"
    damaged = tmp_path / "models" / "ride"
    for checkpoint in damaged.glob("checkpoint-*.safetensors"):
        checkpoint.write_bytes(b"damaged")
    with serving("--data", str(tmp_path)) as server:
        bptt = Bptt(server)
        last = bptt("models").out.splitlines()[-1]
        ride, sea = bptt("models", "--json").document
    assert last.startswith("ride: failed: ")
    assert str(damaged) in last
    assert last == f"ride: failed: {ride['state_reason']}"
    assert ride["state"] == "failed"
    assert (sea["state"], sea["state_reason"]) == ("running", "")
