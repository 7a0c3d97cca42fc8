"""`bptt certificate`, `bptt token`, and every client command against a secured server."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from bptt.cli.main import bptt as group
from tests.cli.conftest import Ran, run
from tests.support.server import Served, serving
from tests.support.tools import program

SOURCES = Path(__file__).parents[2] / "service/bptt/cli"


@dataclass(frozen=True)
class Site:
    """A secured server and the folder of its files."""

    folder: Path
    server: Served

    @property
    def reach(self) -> tuple[str, ...]:
        return ("--address", self.server.address, "--tls-ca", str(self.folder / "ca.pem"))

    def token(self, role: str) -> str:
        return str(self.folder / f"{role}.token")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    callers = str(folder / "callers.json")
    assert run("certificate", str(folder)).status == 0
    for role in ("reader", "writer", "admin"):
        made = run(
            *("token", "create", "--callers", callers, "--role", role),
            *("--output", str(folder / f"{role}.token")),
        )
        assert made.status == 0
    options = (
        "--tls-cert",
        str(folder / "server.pem"),
        "--tls-key",
        str(folder / "server-key.pem"),
    )
    with serving(*options, "--callers", callers, folder=folder) as server:
        yield Site(folder, server)


def test_keys_tokens_and_callers_are_private_and_hold_no_token(site: Site) -> None:
    for path in site.folder.iterdir():
        mode = stat.S_IMODE(path.stat().st_mode)
        public = path.name in ("ca.pem", "server.pem")
        assert mode == (0o644 if public else 0o600), path
    text = (site.folder / "callers.json").read_text()
    for role in ("reader", "writer", "admin"):
        secret = Path(site.token(role)).read_text().strip().split("_", 2)[2]
        assert secret not in text


def test_commands_take_the_token_from_file_variable_and_profile(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run("models", *site.reach)
    assert refused.status == 1
    assert "needs a token" in refused.err
    assert run("models", *site.reach, "--token-file", site.token("reader")).status == 0
    monkeypatch.setenv("BPTT_TLS_CA", str(site.folder / "ca.pem"))
    monkeypatch.setenv("BPTT_TOKEN", Path(site.token("reader")).read_text().strip())
    assert run("models", "--address", site.server.address).status == 0
    # A flag is stronger than the variable.
    denied = run(
        *("models", "update", "m", "--pause", "--address", site.server.address),
        *("--token-file", site.token("admin")),
    )
    assert "model_id is 'm'" in denied.err
    monkeypatch.delenv("BPTT_TLS_CA")
    monkeypatch.delenv("BPTT_TOKEN")
    (site.folder / "bptt.toml").write_text(
        f'[profile.default]\naddress = "{site.server.address}"\n'
        'tls_ca = "ca.pem"\ntoken_file = "reader.token"\n'
        '[profile.boss]\naddress = "127.0.0.1:1"\ntls_ca = "ca.pem"\ntoken_file = "admin.token"\n'
    )
    monkeypatch.setenv("BPTT_CONFIG", str(site.folder / "bptt.toml"))
    assert run("models").status == 0
    reached = run("models", "save", "m", "--profile", "boss", "--address", site.server.address)
    assert "model_id is 'm'" in reached.err, "the token is the admin's, the address the flag's"
    assert "[profile.other]" in run("models", "--profile", "other").err
    (site.folder / "bptt.toml").unlink()


def test_learning_and_predicting_need_the_roles(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("x\n" + "".join(f"{step % 7}\n" for step in range(60)))

    def learn(role: str) -> Ran:
        token = ("--token-file", site.token(role))
        return run("learn", str(file), "--model", "m", *site.reach, *token)

    refused = learn("writer")  # the model does not exist yet
    assert "needs the role admin" in refused.err
    assert learn("admin").status == 0
    assert learn("writer").status == 0
    assert "needs the role writer" in learn("reader").err
    reader = ("--token-file", site.token("reader"))
    predicted = run("predict", "--model", "m", "--stream", "x", *site.reach, *reader)
    assert predicted.status == 0, predicted.err


def test_a_token_is_in_no_output_no_log_and_no_process_list(site: Site) -> None:
    secret = Path(site.token("reader")).read_text().strip()
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    environment = {**os.environ, "BPTT_TOKEN": wrong}
    for arguments in (("models",), ("models", "--json"), ("models", "save", "m")):
        done = subprocess.run(
            ["bptt", *arguments, *site.reach],
            executable=program("bptt"),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "unknown, revoked" in done.stderr
        assert wrong[18:] not in done.stdout + done.stderr
    told = psutil.Process(site.server.process.pid)
    assert not any(secret[18:] in part for part in told.cmdline())
    listed = run("token", "list", "--callers", str(site.folder / "callers.json"))
    assert secret[18:] not in listed.out
    help_text = CliRunner().invoke(group, ["models", "--help"]).output
    assert not re.search(r"--token(?!-file)\b", help_text), "ps would show it"


@pytest.mark.tools
def test_grpcurl_reaches_the_server_with_certificate_and_token(site: Site) -> None:
    def ask(*arguments: str, method: str) -> subprocess.CompletedProcess[str]:
        ca = ("-cacert", str(site.folder / "ca.pem"))
        return subprocess.run(
            [program("grpcurl"), *ca, *arguments, site.server.address, method],
            capture_output=True,
            text=True,
            check=False,
        )

    token = ("-H", f"authorization: Bearer {Path(site.token('reader')).read_text().strip()}")
    assert "LearnerService" in ask(*token, method="list").stdout
    assert "Unauthenticated" in ask(method="list").stderr
    assert ask(*token, method="bptt.v1.ModelService/ListModels").returncode == 0


def test_a_revoked_token_is_refused_by_the_running_server(site: Site) -> None:
    callers = str(site.folder / "callers.json")
    target = site.folder / "guest.token"
    create = ("token", "create", "--callers", callers, "--role", "reader", "--name", "guest")
    assert run(*create, "--output", str(target), "--expires", "1h").status == 0
    token = ("--token-file", str(target))
    assert run("models", *site.reach, *token).status == 0
    revoked = run("token", "revoke", "--callers", callers, "guest")
    assert "revoked 1 caller" in revoked.out
    assert "unknown, revoked" in run("models", *site.reach, *token).err
    assert "no caller has the id" in run("token", "revoke", "--callers", callers, "guest").err
    target.unlink()


def test_a_server_on_a_network_does_not_start_unsecured() -> None:
    refused = run("serve", "--address", "0.0.0.0:0", "--metrics-address", "none")
    assert refused.status == 1
    assert "type --tls-cert FILE --tls-key FILE --callers FILE" in refused.err
    with serving("--address", "0.0.0.0:0", "--insecure") as server:
        port = int(server.address.rpartition(":")[2])
        assert run("models", "--address", f"127.0.0.1:{port}").status == 0
        with socket.create_connection(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--role", "root"), "'root' is not one of"),
        (("--role", "reader", "--models", "a/b"), "models is 'a/b'"),
        (("--role", "reader", "--models", ""), "models is ''"),
        (("--role", "reader", "--expires", "soon"), "is not a time such as 90d"),
        (("--role", "reader", "--expires", "0d"), "is not a time such as 90d"),
        (("--role", "reader", "--name", "\x1b[31m"), "characters that print"),
        (("--role", "reader", "--certificate", "x", "--output", "y"), "--certificate makes none"),
    ],
)
def test_a_wrong_option_of_token_create_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    file = tmp_path / "callers.json"
    done = run("token", "create", "--callers", str(file), *arguments)
    assert done.status in (1, 2)
    assert told in done.err
    assert not file.exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2, "callers": []}', '{"version": 1, "callers": [{}]}']
    + [
        json.dumps({"version": 1, "callers": [entry]})
        for entry in (
            {"id": "a", "name": "n", "role": "root", "models": ["*"], "created": 0, "sha256": "x"},
            {"id": "a", "name": "n", "role": "admin", "models": [], "created": 0, "sha256": "x"},
            {"id": "a", "name": "n", "role": "admin", "models": ["*"], "created": 0},
            {"id": "a", "name": "n", "role": "admin", "models": ["*"], "token": "secret"},
        )
    ],
)
def test_a_file_that_is_not_one_of_callers_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "callers.json"
    file.write_text(text)
    listed = run("token", "list", "--callers", str(file))
    assert listed.status == 1
    assert "callers.json" in listed.err
    served = run("serve", "--address", "127.0.0.1:0", "--callers", str(file))
    assert served.status == 1
    assert "callers.json" in served.err


def test_a_certificate_is_not_overwritten_and_names_are_checked(tmp_path: Path) -> None:
    folder = str(tmp_path / "tls")
    assert run("certificate", folder, "--json").status == 0
    before = (tmp_path / "tls/server.pem").read_bytes()
    assert "exists; remove it" in run("certificate", folder).err
    assert (tmp_path / "tls/server.pem").read_bytes() == before
    assert run("certificate", folder, "--client", "plant-7").status == 0
    assert "client is '../x'" in run("certificate", folder, "--client", "../x").err
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700


def test_every_command_connects_with_the_options_of_its_connection() -> None:
    """A command that called `Client.connect` would ignore --tls-ca and --token-file."""
    direct = {path.name for path in SOURCES.rglob("*.py") if "Client.connect(" in path.read_text()}
    assert direct == {"connection.py", "demo.py"}, "use bptt.cli.connection.connect"


def test_the_session_of_the_page_secures_a_server_on_a_network(tmp_path: Path) -> None:
    page = (SOURCES.parents[2] / "docs/security.md").read_text()
    on_server, on_client = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len((on_server + on_client).splitlines()) <= 10
    first, *making, serve, more = on_server.splitlines()
    assert first.startswith("pip install")
    assert serve.startswith("bptt serve --address 0.0.0.0:50051")
    made = shell("\n".join(making).replace("learner.example.org", "localhost"), tmp_path)
    assert made.returncode == 0, made.stderr
    (token,) = [line for line in made.stdout.splitlines() if line.startswith("bptt_")]
    options = (serve.removeprefix("bptt serve").rstrip("\\") + more).split()
    options[options.index("0.0.0.0:50051")] = "0.0.0.0:0"
    with serving(*options, folder=tmp_path) as server:
        port = server.address.rpartition(":")[2]
        (tmp_path / "ca.pem").write_bytes((tmp_path / "secrets/ca.pem").read_bytes())
        typed = on_client.replace("learner.example.org:50051", f"localhost:{port}")
        shown = shell(typed.replace("the token", token), tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "no models" in shown.stdout


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(program('bptt')).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, "PATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_health_check_of_the_image_uses_tls(site: Site) -> None:
    script = SOURCES.parents[2] / "deploy/healthcheck.py"

    def asked(**variables: str) -> int:
        done = subprocess.run(
            [sys.executable, script, site.server.address],
            env={**os.environ, **variables},
            capture_output=True,
            check=False,
        )
        return done.returncode

    assert asked(BPTT_TLS_CA=str(site.folder / "ca.pem")) == 0
    assert asked() == 1
