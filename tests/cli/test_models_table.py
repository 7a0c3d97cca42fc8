"""The table of `bptt models`."""

from __future__ import annotations

from rich.console import Console

from bptt import v1 as pb
from bptt.cli.models import _table
from bptt.client.convert import model_from_proto
from bptt.domain import ModelState, UnreadModel
from bptt.rpc.convert_models import model_to_proto


def test_a_model_that_is_being_recovered_has_a_row() -> None:
    unread = model_to_proto(UnreadModel("ride", ModelState.RECOVERING))
    model = model_from_proto(pb.Model.FromString(unread.SerializeToString()))
    console = Console(width=120)
    with console.capture() as shown:
        console.print(_table([model]))
    row = shown.get().splitlines()[1].split()
    assert row[0] == "ride"
    assert "recovering" in row
    assert set(row[1:]) == {"recovering", "–"}
