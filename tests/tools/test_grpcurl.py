"""The grpcurl session of docs/api.md, executed as printed against a live server."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from google.protobuf.json_format import Parse

from bptt import v1 as pb
from tests.support.server import Served
from tests.support.tools import program

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parents[2]
PRINTED_ADDRESS = "127.0.0.1:50051"


def session() -> str:
    """The page's block of shell commands that call grpcurl."""
    page = (ROOT / "docs" / "api.md").read_text()
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if "grpcurl" in block and "Learn" in block]
    assert len(found) == 1, "the page has one session with grpcurl"
    return str(found[0])


def answers(text: str) -> list[str]:
    """The JSON objects that grpcurl printed, in order."""
    decoder = json.JSONDecoder()
    found = []
    start = text.find("{")
    while start >= 0:
        _, end = decoder.raw_decode(text, start)
        found.append(text[start:end])
        start = text.find("{", end)
    return found


def test_the_printed_session_creates_learns_and_predicts(served: Served) -> None:
    grpcurl = program("grpcurl")
    script = session()
    assert PRINTED_ADDRESS in script
    typed = subprocess.run(
        ["bash", "-euo", "pipefail"],
        input=script.replace(PRINTED_ADDRESS, served.address),
        env={**os.environ, "PATH": f"{Path(grpcurl).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert typed.returncode == 0, typed.stdout + typed.stderr
    assert "bptt.v1.LearnerService" in typed.stdout
    assert "bptt.v1.ModelService" in typed.stdout

    first, *during, last = answers(typed.stdout)
    spec = Parse(first, pb.CreateModelResponse()).model.spec
    assert spec.input_size == 1
    assert spec.optimizer == pb.OPTIMIZER_ADAM, "unset fields have their defaults"

    opened, *middle, closed = (Parse(answer, pb.LearnResponse()) for answer in during)
    assert opened.WhichOneof("message") == "opened"
    assert closed.WhichOneof("message") == "closed"
    learned = [answer.learned for answer in middle if answer.WhichOneof("message") == "learned"]
    assert len(learned) == len(middle) == script.count('"chunk"')
    assert learned[-1].next_step == sum(len(answer.predictions) for answer in learned)
    reports = [report for answer in learned for report in answer.updates]
    assert reports
    assert all(report.gradient_norm > 0 for report in reports)

    predicted = Parse(last, pb.PredictResponse())
    assert predicted.next_step == learned[-1].next_step
    assert len(predicted.predictions) == 1
