"""The session with grpcurl that the README shows, typed as it stands, against a live server."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Served
from tests.support.tools import program

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parents[2]
README_ADDRESS = "127.0.0.1:50051"


def session() -> str:
    """The README's block of shell commands that call grpcurl."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if "grpcurl" in block and "Learn" in block]
    assert len(found) == 1, "the README has one session with grpcurl"
    return str(found[0])


def answers(text: str) -> list[dict[str, Any]]:
    """The JSON objects in what grpcurl printed, one after the other."""
    decoder = json.JSONDecoder()
    found = []
    place = text.find("{")
    while place >= 0:
        answer, end = decoder.raw_decode(text, place)
        found.append(answer)
        place = text.find("{", end)
    return found


def test_readme_session_creates_learns_and_predicts(served: Served) -> None:
    grpcurl = program("grpcurl")
    script = session()
    assert README_ADDRESS in script
    typed = subprocess.run(
        ["bash", "-euo", "pipefail"],
        input=script.replace(README_ADDRESS, served.address),
        env={**os.environ, "PATH": f"{Path(grpcurl).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert typed.returncode == 0, typed.stdout + typed.stderr
    assert "bptt.v1.LearnerService" in typed.stdout
    assert "bptt.v1.ModelService" in typed.stdout

    created, *during, predicted = answers(typed.stdout)
    spec = created["model"]["spec"]
    assert spec["inputSize"] == 1
    assert spec["optimizer"] == "OPTIMIZER_ADAM", "what was left out is filled in"

    learned = [answer["learned"] for answer in during if "learned" in answer]
    chunks = script.count('"chunk"')
    assert list(during[0]) == ["opened"]
    assert list(during[-1]) == ["closed"]
    assert len(learned) == chunks == len(during) - 2
    assert int(learned[-1]["nextStep"]) == sum(len(part["predictions"]) for part in learned)
    reports = [report for part in learned for report in part.get("updates", [])]
    assert reports
    assert all(report["gradientNorm"] > 0 for report in reports)

    assert predicted["nextStep"] == learned[-1]["nextStep"]
    assert len(predicted["predictions"]) == 1
