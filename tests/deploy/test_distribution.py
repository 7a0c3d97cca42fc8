"""The wheel and the sdist as users install them: what is in them, and that they work alone."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bptt.cli.main import CLIENT_COMMANDS, SERVER_COMMANDS
from tests.deploy.support import build, Built, Environment, pip, require_index, ROOT, run
from tests.support.server import Served, serving

PACKAGES = {"bptt_core": "bptt_core", "bptt": "service/bptt"}
"""Import packages, and their folders in the tree."""
SDIST_FOLDERS = ("benchmarks", "deploy", "docs", "examples", "protos", "tests", *PACKAGES.values())
SDIST_FILES = (
    ".ci/run",
    "CHANGELOG.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "buf.yaml",
    "constraints.txt",
    "docker-compose.yml",
    "pyproject.toml",
)
NAMESAKES = ("service==0.6.0", "protos==0.1.0")
"""Distributions of other authors, whose import packages have the names of folders in this tree."""
HEAVY = ("numba", "llvmlite", "scipy")

CLIENT_SNIPPET = """\
import asyncio
import sys

import numpy as np

from bptt import Client, Learned, ModelSpec, NotFound, Prediction

SPEC: ModelSpec = {"input_size": 1, "hidden_size": 4}


async def main(address: str) -> None:
    async with Client.connect(address) as client:
        await client.create_model("sea", SPEC)
        async with client.learn("sea") as session:
            await session.send("buoy", np.linspace(4.0, 5.0, 40)[:, None])
            await session.close()
            answers = [answer async for answer in session]
        learned = [answer.next_step for answer in answers if isinstance(answer, Learned)]
        prediction: Prediction = await client.predict("sea", "buoy")
        print("learned", learned, "predicts", prediction.values.shape)
        try:
            await client.get_model("no-such-model")
        except NotFound as error:
            print("NotFound:", error.message)


asyncio.run(main(sys.argv[1]))
"""


def files_under(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(built: Built) -> zipfile.Path:
    return zipfile.Path(built.wheel)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    require_index(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def client(built: Built, index: None, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel, and the namesakes installed after it."""
    environment = Environment(tmp_path_factory.mktemp("client"))
    environment.install(str(built.wheel))
    environment.install(*NAMESAKES)
    return environment


@pytest.fixture(scope="module")
def server(built: Built, index: None, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the sdist and the extra `server`, and the namesakes before them."""
    environment = Environment(tmp_path_factory.mktemp("server"))
    environment.install(*NAMESAKES)
    environment.install(f"bptt[server] @ {built.sdist.as_uri()}")
    return environment


@pytest.fixture(scope="module", autouse=True)
def _kernels_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels compiled for the installed copy do not replace those of the tree under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.fixture(scope="module")
def running(server: Environment) -> Iterator[Served]:
    with serving(python=server.python_path, folder=server.project) as served:
        yield served


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_has_every_file_of_the_package(wheel: zipfile.Path, package: str) -> None:
    folder = ROOT / PACKAGES[package]
    names = [f"{package}/{path.relative_to(folder).as_posix()}" for path in files_under(folder)]
    assert names
    assert [name for name in names if not (wheel / name).exists()] == []


def test_wheel_has_nothing_else(wheel: zipfile.Path) -> None:
    (information,) = (item.name for item in wheel.iterdir() if item.name.endswith(".dist-info"))
    assert {item.name for item in wheel.iterdir()} == {*PACKAGES, information}
    assert (wheel / information / "licenses" / "LICENSE").is_file()
    entry_points = (wheel / information / "entry_points.txt").read_text()
    assert "bptt = bptt.cli:main" in entry_points


def test_sdist_has_docs_examples_tests_protos_and_the_changelog(built: Built) -> None:
    root = built.sdist.name.removesuffix(".tar.gz")
    with tarfile.open(built.sdist) as archive:
        names = {name.removeprefix(f"{root}/") for name in archive.getnames()}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in SDIST_FOLDERS
        for path in files_under(ROOT / folder)
    }
    assert wanted
    assert sorted((wanted | set(SDIST_FILES)) - names) == []


@pytest.mark.tools
@pytest.mark.parametrize("which", ["client", "server"])
def test_installed_packages_agree_with_each_other(
    which: str, request: pytest.FixtureRequest
) -> None:
    environment = request.getfixturevalue(which)
    checked = pip("check", python=environment.python_path)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.tools
@pytest.mark.parametrize("which", ["client", "server"])
def test_packages_of_the_same_name_as_our_folders_live_beside_ours(
    which: str, request: pytest.FixtureRequest
) -> None:
    environment = request.getfixturevalue(which)
    show = "import bptt, protos, service; print(service.__file__, protos.__file__, bptt.Client)"
    own = environment.python("-c", show)  # the folders of the project come first
    assert own.returncode == 0, own.stderr
    assert own.stdout.count(str(environment.project)) == 2
    theirs = environment.python("-I", "-c", show + "; print(service.Service)")
    assert theirs.returncode == 0, theirs.stderr
    assert theirs.stdout.count("site-packages") == 2
    assert "bptt.client.client.Client" in theirs.stdout


@pytest.mark.tools
def test_client_environment_is_light(client: Environment) -> None:
    find = "import importlib.util, sys; print(*map(importlib.util.find_spec, sys.argv[1:]))"
    found = client.python("-c", find, *HEAVY)
    assert found.stdout.split() == ["None"] * len(HEAVY), found.stdout + found.stderr


@pytest.mark.tools
@pytest.mark.parametrize("command", SERVER_COMMANDS)
def test_command_of_the_server_says_what_to_install(client: Environment, command: str) -> None:
    arguments = {
        "backup": [".", "copy"],
        "repair": ["."],
        "replay": [".", "--model", "sea"],
        "verify": ["."],
    }
    done = client.bptt(command, *arguments.get(command, []))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"bptt: `bptt {command}` needs ")
    assert line.endswith("type: pip install 'bptt[server]'")


@pytest.mark.tools
@pytest.mark.parametrize("command", ["", *CLIENT_COMMANDS, *SERVER_COMMANDS])
def test_help_needs_no_server(client: Environment, command: str) -> None:
    shown = client.bptt(*command.split(), "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("Usage: bptt")


@pytest.mark.tools
def test_core_without_numba_has_its_reference_backend(client: Environment) -> None:
    learn = (
        "import sys; import numpy as np; from bptt_core import Learner, ModelSpec; "
        "learner = Learner(ModelSpec(input_size=1), backend=sys.argv[1]); "
        "print('updates:', len(learner.feed(np.sin(np.arange(60.0)).reshape(60, 1, 1)).updates))"
    )
    reference = client.python("-c", learn, "reference")
    assert reference.stdout == "updates: 14\n", reference.stderr
    compiled = client.python("-c", learn, "compiled")
    assert compiled.returncode == 1
    assert "InvalidArgument: backend is compiled" in compiled.stderr
    assert "pip install 'bptt[server]'" in compiled.stderr


@pytest.mark.tools
def test_gradients_need_no_server(client: Environment) -> None:
    drawn = client.bptt("gradients", "--steps", "16")
    assert drawn.returncode == 0, drawn.stderr


@pytest.mark.tools
def test_a_user_has_types(client: Environment) -> None:
    client.write("snippet.py", CLIENT_SNIPPET)
    client.write("misspelt.py", "from bptt import Clint\n\nprint(Clint)\n")
    check = [sys.executable, "-m", "mypy", "--strict", "--python-executable"]
    command = [*check, str(client.python_path), "--cache-dir", str(client.project / ".mypy")]
    right = run([*command, "snippet.py"], client.project)
    assert right.returncode == 0, right.stdout + right.stderr
    wrong = run([*command, "misspelt.py"], client.project)
    assert wrong.returncode == 1
    assert '"Clint"' in wrong.stdout


@pytest.mark.tools
def test_demo_runs_to_its_end(server: Environment) -> None:
    shown = server.bptt("demo")
    assert shown.returncode == 0, shown.stderr
    assert "half hours from now" in shown.stdout  # the last line of the picture that ends it


@pytest.mark.tools
def test_client_talks_to_the_server(client: Environment, running: Served) -> None:
    client.write("snippet.py", CLIENT_SNIPPET)
    talked = client.python("snippet.py", running.address)
    assert talked.returncode == 0, talked.stderr
    learned, refused = talked.stdout.splitlines()
    assert learned == "learned [40] predicts (1, 1, 1)"
    assert refused.startswith("NotFound: ")
    assert "no-such-model" in refused


@pytest.mark.tools
def test_client_commands_work_against_the_server(client: Environment, running: Served) -> None:
    rows = "\n".join(str(4 + step % 7 / 7) for step in range(100))
    client.write("tide.csv", f"height\n{rows}\n")
    where = ["--address", running.address]
    learned = client.bptt("learn", "tide.csv", "--model", "tide", "--hidden-size", "4", *where)
    assert learned.returncode == 0, learned.stderr
    assert "100 steps learned" in learned.stdout
    predicted = client.bptt("predict", "--model", "tide", "--stream", "tide", *where)
    assert predicted.returncode == 0, predicted.stderr
    assert "height" in predicted.stdout
    listed = client.bptt("models", *where)
    assert listed.returncode == 0, listed.stderr
    assert "tide" in listed.stdout
