"""The unit for systemd, and what a server tells systemd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from bptt.config import ServerConfig
from bptt.systemd import Notifier
from tests.cli.conftest import BPTT, run
from tests.support.tools import program

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "bptt.service"
EXPOSURE_MAX = 20
"""Tenths of systemd's measure of what a service may do: 0 nothing, 100 everything."""
MESSAGE_SECONDS = 60.0


@pytest.fixture(scope="module")
def unit() -> ConfigParser:
    parsed = ConfigParser(interpolation=None, strict=True)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(UNIT.read_text())
    return parsed


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit as it would be installed here, with this environment's command."""
    bptt = shutil.which("bptt", path=str(Path(sys.executable).parent))
    assert bptt is not None
    path = tmp_path / "bptt.service"
    path.write_text(UNIT.read_text().replace("/opt/bptt/bin/bptt", bptt))
    return path


@pytest.mark.tools
def test_systemd_accepts_the_unit(installed: Path) -> None:
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", installed],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.tools
def test_systemd_finds_a_fault_in_a_unit(installed: Path) -> None:
    installed.write_text(installed.read_text().replace("WatchdogSec=60", "WatchdogSec=soon"))
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", installed],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Failed to parse" in done.stderr
    assert "soon" in done.stderr


@pytest.mark.tools
def test_the_service_may_do_little(installed: Path) -> None:
    command = [program("systemd-analyze"), "security", "--offline=true", "--no-pager"]
    done = subprocess.run(
        [*command, f"--threshold={EXPOSURE_MAX}", installed],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_a_stop_has_more_time_than_the_server_takes(unit: ConfigParser) -> None:
    assert int(unit["Service"]["TimeoutStopSec"]) >= 2 * ServerConfig().grace_seconds


def test_the_units_command_accepts_the_settings_that_come_with_it(unit: ConfigParser) -> None:
    words = unit["Service"]["ExecStart"].split()
    assert words[1:] == ["serve", "--config", "/etc/bptt/bptt.toml"]
    assert run("config", "--config", str(ROOT / "deploy/bptt.toml")).status == 0


def test_the_settings_that_come_with_the_unit_are_the_defaults(tmp_path: Path) -> None:
    text = (ROOT / "deploy/bptt.toml").read_text()
    path = tmp_path / "bptt.toml"
    path.write_text(text.replace("\n# ", "\n").replace("where each comes", "# where each comes"))
    shown = run("config", "--config", str(path), "--json").document["settings"]
    read = {key: each for key, each in shown.items() if each["source"] == "file"}
    assert len(read) == text.count(" = ")
    assert all(each["value"] == each["default"] for each in read.values())


def test_invalid_settings_end_with_the_status_that_systemd_does_not_restart(
    unit: ConfigParser,
) -> None:
    done = run("serve", "--threads", "0")
    assert str(done.status) == unit["Service"]["RestartPreventExitStatus"]


# ---------------------------------------------------------------------- what is told


@contextlib.contextmanager
def manager(path: str) -> Iterator[socket.socket]:
    """A socket that hears what a service tells systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(path)
        heard.settimeout(MESSAGE_SECONDS)
        yield heard


def until(heard: socket.socket, wanted: str) -> list[str]:
    """All lines up to the message that has a line, and of that."""
    lines: list[str] = []
    while wanted not in lines:
        lines += heard.recv(4096).decode().split("\n")
    return lines


def test_a_server_tells_that_it_is_ready_that_it_turns_and_that_it_stops(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    told = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}
    free = ["--address", "127.0.0.1:0", "--metrics-address", "none"]
    with (
        manager(path) as heard,
        subprocess.Popen([*BPTT, "serve", *free], env=os.environ | told) as process,
    ):
        try:
            before = until(heard, "READY=1")
            status = heard_status(before)
            assert "listening on 127.0.0.1:" in status
            assert set(until(heard, "WATCHDOG=1")) == {"WATCHDOG=1"}
            until(heard, "WATCHDOG=1")
            process.send_signal(signal.SIGTERM)
            after = until(heard, "STOPPING=1")
            assert set(after) <= {"WATCHDOG=1", "STOPPING=1", "STATUS=stopping"}
            assert process.wait(MESSAGE_SECONDS) == 0
        finally:
            process.kill()


def heard_status(lines: list[str]) -> str:
    return next(line for line in reversed(lines) if line.startswith("STATUS="))


def test_an_abstract_socket_is_told_too() -> None:
    name = f"bptt-test-{os.getpid()}-{threading.get_ident()}"
    with manager("\0" + name) as heard:
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready("on two\nlines")
        assert heard.recv(4096) == b"READY=1\nSTATUS=on two lines"


def test_a_socket_that_is_gone_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).stopping()
    assert "systemd was not told STOPPING=1" in caplog.text


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, b""),
        ({"WATCHDOG_USEC": "90000000"}, b"WATCHDOG=1"),
        ({"WATCHDOG_USEC": "90000000", "WATCHDOG_PID": str(os.getpid())}, b"WATCHDOG=1"),
        ({"WATCHDOG_USEC": "90000000", "WATCHDOG_PID": "1"}, b""),
    ],
    ids=["no watchdog", "watchdog", "of this process", "of another process"],
)
async def test_the_watchdog_is_told_only_what_it_asks_for(
    tmp_path: Path, environment: dict[str, str], told: bytes
) -> None:
    path = str(tmp_path / "notify")
    with manager(path) as heard:
        heard.setblocking(False)
        async with Notifier({"NOTIFY_SOCKET": path, **environment}).watched():
            await asyncio.sleep(0)  # the first ping, if any, is sent in this turn
        found = b""
        with contextlib.suppress(BlockingIOError):
            found = heard.recv(4096)
    assert found == told


def test_without_systemd_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({}).ready("here")
    assert caplog.text == ""
