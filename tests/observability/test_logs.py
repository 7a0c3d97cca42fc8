"""The log: one line an event, with fields, and nothing that a reader or terminal stumbles over."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from bptt.client import Client
from bptt.observability.call_log import LoggedCalls
from bptt.observability.logs import fields_of, JsonLines, TextLines
from bptt.observability.metrics import Metrics
from tests.support.metrics import families
from tests.support.server import serving

SOURCE = Path(__file__).parents[2] / "service/bptt"
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


def record(template: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("bptt.a", logging.INFO, "a.py", 1, template, values, exc_info)


def raised() -> BaseException:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("template", "values", "fields"),
    [
        ("model %s deleted", ("a",), {"model": "a"}),
        ("%d of %s: stream %s of model %s", (3, "x", "s", "m"), {"stream": "s", "model": "m"}),
        ("100 %% of model %s in %.1f s", ("m", 2.0), {"model": "m"}),
        ("the model is %s", ("large",), {}),
        ("remodel %s", ("a",), {}),
        ("no values", (), {}),
    ],
)
def test_the_template_tells_the_fields(
    template: str, values: tuple[object, ...], fields: dict[str, str]
) -> None:
    assert fields_of(record(template, *values)) == fields


def test_text_is_one_line_with_a_time_zone() -> None:
    line = TextLines().format(record("model %s\x1b[2J failed:\r\n%s", "a", "why", error=raised()))
    assert "\n" not in line
    assert "\x1b" not in line
    when, level, text = line.split(maxsplit=2)
    assert datetime.fromisoformat(when).utcoffset() is not None
    assert level == "INFO"
    assert text.startswith(r"model a\x1b[2J failed:\x0d\x0awhy | ValueError: two\x0alines at ")
    assert re.search(r"test_logs\.py:\d+ raised$", text)


def test_json_is_one_object_with_fields() -> None:
    line = JsonLines().format(record("model %s: %s", "ä", "why\n", error=raised()))
    assert "\n" not in line
    event = json.loads(line)
    assert datetime.fromisoformat(event.pop("time")).utcoffset() is not None
    trace = event.pop("traceback")
    assert trace.startswith("Traceback")
    assert trace.endswith("ValueError: two\nlines\n")
    assert event == {
        "level": "info", "event": "model ä: why\n", "logger": "bptt.a", "model": "ä",
    }  # fmt: skip


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.func.attr in (*LEVELS, "log")
            ):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


@pytest.mark.parametrize(
    "call", [each for _, each in log_calls()], ids=[place for place, _ in log_calls()]
)
def test_a_log_call_has_a_template_without_python_reprs(call: ast.Call) -> None:
    function = call.func
    assert isinstance(function, ast.Attribute)
    template = call.args[1 if function.attr == "log" else 0]
    assert isinstance(template, ast.Constant), "values are arguments, so that they are fields"
    assert isinstance(template.value, str)
    assert "%r" not in template.value


@pytest.mark.parametrize(
    ("calls", "logged"),
    [
        ("none", []),
        ("sessions", ["Learn began", "Learn ended with OK after 1.5000 s"]),
        (
            "all",
            [
                "Learn began", "Learn ended with OK after 1.5000 s",
                "Predict ended with NOT_FOUND after 0.0010 s",
            ],
        ),
    ],
)  # fmt: skip
def test_calls_are_logged_by_option_and_counted_always(
    calls: str, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    sink = LoggedCalls(metrics, calls)  # type: ignore[arg-type]
    caplog.set_level("INFO")
    for method, code, seconds in (("Learn", "OK", 1.5), ("Predict", "NOT_FOUND", 0.001)):
        counted = sink.method("unary", "bptt.v1.LearnerService", method)
        counted.started()
        counted.received()
        counted.sent()
        counted.handled(code, seconds)
    assert caplog.messages == logged
    shown = families(metrics)
    for name in ("started", "msg_received", "msg_sent"):
        assert [each.value for each in shown[f"grpc_server_{name}"].samples] == [1, 1]


def test_a_server_logs_json_lines_of_the_level_and_calls_that_are_asked_for(
    tmp_path: Path,
) -> None:
    async def use(address: str) -> None:
        async with Client.connect(address) as client:
            await client.create_model("plant-7", {"input_size": 1, "hidden_size": 2})
            async with client.learn("plant-7") as session:
                await session.send("s", [[1.0], [2.0]])
            await client.delete_model("plant-7")

    log = tmp_path / "log"
    options = ("--log-format", "json", "--log-level", "debug", "--log-calls", "all")
    with log.open("w+") as file, serving(*options, log=file) as served:
        asyncio.run(use(served.address))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    of_model = [each["event"] for each in events if each.get("model") == "plant-7"]
    assert any(each.startswith("model plant-7 created") for each in of_model)
    assert "model plant-7 deleted" in of_model
    texts = [each["event"] for each in events]
    assert any(each.startswith("listening on") for each in texts)
    assert "Learn began" in texts
    assert any(each.startswith("DeleteModel ended with OK") for each in texts)
    assert {each["logger"].split(".")[0] for each in events} == {"bptt"}
