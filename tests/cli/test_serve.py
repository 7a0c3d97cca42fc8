"""`bptt serve`, and the command group."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import BPTT, run

LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+);")
FREE = ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server process; yield it and the log line with its addresses."""
    command = [*BPTT, "serve", *FREE, "--data", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            while not LISTENING.search(line):  # recovered models are logged first
                assert line, "the server ended before it listened"
                line = process.stderr.readline()
            yield process, line
        finally:
            process.kill()  # no effect if the server has ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_logs_its_addresses_and_a_signal_stops_it(tmp_path: Path, number: int) -> None:
    with serving(tmp_path / "d") as (process, line):
        assert re.search(r"metrics on http://127\.0\.0\.1:\d+/metrics", line)
        assert str(tmp_path / "d") in line
        process.send_signal(number)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait() == 0
    assert "Traceback" not in rest


def test_models_survive_a_clean_stop(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a\n" + "\n".join(str(i % 7) for i in range(200)) + "\n")
    found = []
    for _ in range(2):
        with serving(tmp_path / "d") as (process, line):
            listening = LISTENING.search(line)
            assert listening is not None
            done = run("learn", str(table), "--model", "m", "--address", listening[1], "--json")
            assert done.status == 0, done.err
            ask = ("predict", "--model", "m", "--stream", "t", "--address", listening[1], "--json")
            found.append(run(*ask).document)
            process.terminate()
            assert process.stderr is not None
            process.stderr.read()
            assert process.wait() == 0
    assert found[0] == found[1]


@pytest.mark.parametrize("option", ["--address", "--metrics-address"])
def test_a_port_in_use_is_one_line(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", *FREE, option, address)
    assert done.status == 1
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert address in done.err


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "127.0.0.1:x", ""])
def test_an_invalid_address_is_one_line(address: str) -> None:
    done = run("serve", *FREE, "--address", address)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "host:port" in done.err


def test_a_file_as_data_folder_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    done = run("serve", *FREE, "--data", str(path))
    assert done.status in (1, 2)
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "learn", "predict", "models", "demo"])
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    done = run(command, "--help")
    assert done.status == 0
    assert "--json" in done.out
    assert f"  bptt {command}" in done.out.partition("Example")[2] or (
        command == "learn" and "| bptt learn" in done.out
    )


def test_an_unknown_command_is_one_line_and_no_command_prints_help() -> None:
    done = run("lern")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "learn" in done.err
    assert "Commands:" in run().err
    assert run("--version").out.startswith("bptt, version ")
