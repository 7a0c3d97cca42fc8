"""The table of `bptt models`."""

from __future__ import annotations

from rich.console import Console

from bptt import v1 as pb
from bptt.cli.models import _table
from bptt.client.convert import model_from_proto
from bptt.rpc.convert_models import unknown_to_proto


def test_a_recovering_model_has_a_row() -> None:
    model = model_from_proto(pb.Model.FromString(unknown_to_proto("ride").SerializeToString()))
    console = Console(width=120)
    with console.capture() as shown:
        console.print(_table([model]))
    row = shown.get().splitlines()[1].split()
    assert row[0] == "ride"
    assert "recovering" in row
    assert set(row[1:]) == {"recovering", "–"}
