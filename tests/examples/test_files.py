"""Runs each command of examples/files/README.md and compares what comes of it."""

from __future__ import annotations

import asyncio
import filecmp
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bptt import Client
from tests.support.server import Served

FOLDER = Path(__file__).parents[2] / "examples" / "files"
LEARN = (sys.executable, "-m", "bptt.cli", "learn")
ROWS = re.findall(
    r"^\| `(\w+\.[^`]+)` \|.*\| ([^|]+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE
)


def test_the_files_are_those_that_the_program_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(FOLDER / "make.py"), str(tmp_path)], check=True)
    made = sorted(each.name for each in tmp_path.iterdir())
    there = sorted(each.name for each in FOLDER.iterdir() if each.suffix not in (".py", ".md"))
    assert made == there == sorted({shlex.split(command)[0] for command, _ in ROWS})
    # The bytes of compressed files depend on the library that compressed them.
    plain = [name for name in made if not name.endswith((".gz", ".xz", ".zip"))]
    assert filecmp.cmpfiles(tmp_path, FOLDER, plain, shallow=False)[0] == plain


async def learned(address: str, name: str) -> tuple[list[str], int, int] | None:
    """Names of inputs, steps and number of streams of a model, if there is one of that name."""
    async with Client(address) as client:
        found = [each for each in await client.list_models() if each.model_id == name]
        streams = await client.list_streams(name) if found else []
    return (list(found[0].spec["input_names"]), found[0].steps, len(streams)) if found else None


@pytest.mark.parametrize(("command", "comes"), ROWS)
def test_a_file_is_learned_or_stops_as_the_table_says(
    served: Served, command: str, comes: str
) -> None:
    name = f"files-{ROWS.index((command, comes))}"
    done = subprocess.run(
        [*LEARN, *shlex.split(command), "--model", name, "--address", served.address],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    model = asyncio.run(learned(served.address, name))
    if comes.startswith("stops: "):
        assert done.returncode == 1
        assert comes.removeprefix("stops: ") in done.stderr
        assert "--" in done.stderr  # the option that helps
        assert model is None
        return
    assert done.returncode == 0, done.stderr
    told = re.fullmatch(
        r"(\d+) steps of ([^,]+(?:, (?!in \d)[^,]+)*)(?:, in (\d) (?:sequences?|streams))?", comes
    )
    assert told is not None
    streams = int(told[3]) if "streams" in comes else 1
    assert model == (told[2].split(", "), int(told[1]), streams)
    if "sequence" in comes:
        begun = re.search(r"(\d+|no) gaps? of 60 min or more", done.stderr)
        assert begun is not None
        assert int(told[3]) == 1 + int(begun[1].replace("no", "0"))
