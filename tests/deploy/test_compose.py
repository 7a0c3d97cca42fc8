"""The deployment's files agree with each other and with the code. Needs no container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tools import program

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def scraping() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_ports_are_published_to_this_machine_only(compose: dict[str, Any]) -> None:
    services = compose["services"].values()
    published = [port for service in services for port in service.get("ports", ())]
    assert published
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published), published


def test_published_ports_are_those_served_and_exposed(
    compose: dict[str, Any], dockerfile: str
) -> None:
    service = compose["services"]["bptt"]
    inside = {port.rsplit(":", 1)[1] for port in service["ports"]}
    addresses = [option(service["command"], name) for name in ("--address", "--metrics-address")]
    assert {address.rsplit(":", 1)[1] for address in addresses} == inside
    assert all(address.startswith("0.0.0.0:") for address in addresses)
    exposed = re.search(r"^EXPOSE (.+)$", dockerfile, re.MULTILINE)
    assert exposed is not None
    assert set(exposed[1].split()) == inside


def test_prometheus_scrapes_the_service_by_its_name_and_port(
    compose: dict[str, Any], scraping: dict[str, Any]
) -> None:
    target = scraping["scrape_configs"][0]["static_configs"][0]["targets"][0]
    name, port = target.split(":")
    assert option(compose["services"][name]["command"], "--metrics-address").endswith(f":{port}")


def test_mounted_files_exist_and_volumes_are_declared(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in compose["volumes"], source


def test_data_folder_is_the_volume(compose: dict[str, Any], dockerfile: str) -> None:
    folder = option(compose["services"]["bptt"]["command"], "--data")
    assert f"models:{folder}" in compose["services"]["bptt"]["volumes"]
    assert f"VOLUME {folder}\n" in dockerfile


def test_kernels_are_compiled_into_a_folder_that_is_a_volume(
    compose: dict[str, Any], dockerfile: str
) -> None:
    found = re.search(r"NUMBA_CACHE_DIR=(\S+)", dockerfile)
    assert found is not None
    before, filled, after = dockerfile.partition("\nRUN bptt warm-up --all\n")
    assert filled
    assert "\nUSER bptt\n" in before, "the server's user can write the folder"
    # What is written to a folder after it became a volume is not in the image.
    assert f"\nVOLUME {found[1]}\n" in "\n" + after
    assert f"kernels:{found[1]}" in compose["services"]["bptt"]["volumes"]


def test_image_copies_files_that_exist(dockerfile: str) -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


def test_image_installs_the_server(dockerfile: str) -> None:
    script = re.search(r'^RUN python -c "(.+)" > requirements.txt', dockerfile, re.MULTILINE)
    assert script is not None
    printed = subprocess.run(
        [sys.executable, "-c", script[1]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["server"], *extras["security"]]
    assert printed.stdout.splitlines() == wanted


def test_image_has_the_version_of_the_distribution(compose: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert compose["services"]["bptt"]["image"] == f"bptt:{project['version']}"


@pytest.mark.tools
def test_promtool_accepts_the_scrape_configuration() -> None:
    checked = subprocess.run(
        [program("promtool"), "check", "config", ROOT / "deploy/prometheus/prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_compose_options_are_those_the_command_has(compose: dict[str, Any]) -> None:
    bptt = shutil.which("bptt", path=str(Path(sys.executable).parent))
    assert bptt is not None
    shown = subprocess.run([bptt, "serve", "--help"], capture_output=True, text=True, check=True)
    for word in compose["services"]["bptt"]["command"]:
        if word.startswith("--"):
            assert word in shown.stdout, word


def test_the_server_is_secured_with_what_the_first_service_makes(
    compose: dict[str, Any], dockerfile: str, tmp_path: Path
) -> None:
    making, serving = compose["services"]["secrets"], compose["services"]["bptt"]
    assert making["entrypoint"] == ["sh", "-ec"]
    (script,) = making["command"]
    folder = tmp_path / "secrets"
    folder.mkdir()
    beside = str(Path(sys.executable).parent)
    before: dict[str, bytes] = {}
    for _ in range(2):  # the second start changes nothing
        subprocess.run(
            ["sh", "-ec", script.replace("/secrets", str(folder))],
            env={"PATH": f"{beside}:/usr/bin:/bin"},
            check=True,
            capture_output=True,
        )
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert before in ({}, found)
        before = found
    command = serving["command"]
    for name in ("--tls-cert", "--tls-key", "--callers"):
        assert Path(option(command, name)).name in before
    for path in (serving["environment"]["BPTT_TLS_CA"], serving["environment"]["BPTT_TOKEN_FILE"]):
        assert Path(path).name in before
    assert "secrets:/secrets:ro" in serving["volumes"]
    assert serving["depends_on"]["secrets"]["condition"] == "service_completed_successfully"
    started = re.search(r"^CMD (\[.+\])$", dockerfile, re.MULTILINE)
    assert started is not None
    assert yaml.safe_load(started[1]) == command
