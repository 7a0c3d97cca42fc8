"""A real server on a folder with one flipped bit starts and serves the intact models."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bptt.client import Client
from bptt.durability import Command
from tests.crash.support import restarted
from tests.support.data import checkpoint_of, journal_of, learn, tick_records


def _place_of_record(folder: Path, lsn: int) -> int:
    """Where a record's last byte lies in the journal's file."""
    with closing(sqlite3.connect(journal_of(folder))) as connection:
        (body,) = connection.execute("SELECT body FROM journal WHERE lsn = ?", (lsn,)).fetchone()
    return journal_of(folder).read_bytes().index(body) + len(body) - 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to be damaged, and a second one."""
    folder = tmp_path_factory.mktemp("flips") / "data"
    learn(folder, [*tick_records(15), Command("configure", {"learning_rate": 0.002})])
    learn(folder, tick_records(5), model_id="other")
    return folder


FLIPS = {
    # file, place (negative: from the end) and bit; the state of the model afterwards
    "a record": ("journal", "record", 0, {"read_only"}),
    "the table of columns": ("journal", "CREATE TABLE journal", 0, {"read_only", "failed"}),
    "the header": ("journal", "SQLite format 3", 1, {"read_only", "failed"}),
    "the newest checkpoint": ("checkpoint", "streams.", 3, {"running"}),
    "the epoch": ("epoch", "", 4, {"running"}),
    "the watermark": ("committed", "", 5, {"running"}),
}


@pytest.mark.parametrize("flip", FLIPS)
async def test_the_server_starts_and_a_model_is_unchanged_or_reported_damaged(
    whole: Path, tmp_path: Path, flip: str
) -> None:
    kind, place, bit, states = FLIPS[flip]
    data = Path(shutil.copytree(whole, tmp_path / "data"))
    files = {
        "journal": journal_of(data),
        "checkpoint": checkpoint_of(data, 10),
        "epoch": data / "epoch",
        "committed": data / "models" / "m" / "committed",
    }
    content = bytearray(files[kind].read_bytes())
    at = _place_of_record(data, 13) if place == "record" else content.index(place.encode())
    content[at] ^= 1 << bit
    files[kind].write_bytes(content)

    async with restarted(tmp_path) as server, Client.connect(server.address) as client:
        found = {each.model_id: each for each in await client.list_models()}
        assert found["other"].state == "running"
        assert found["other"].steps == 30
        assert found["m"].state in states, server.said()
        if found["m"].state == "running":
            assert found["m"].steps == 90, "all that was learned is there"
            assert found["m"].learning_rate == pytest.approx(0.002)
        else:
            assert [line for line in server.lines("model m") if "journal.sqlite3" in line]
        await server.stop()
