"""Which packages this tree has, what the SDK exports, and that it imports nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import bptt
from bptt import errors
from bptt import v1 as api
from bptt.cli.main import CLIENT_COMMANDS, SERVER_COMMANDS, SERVER_PACKAGES
from bptt.v1 import learner_pb2, models_pb2, types_pb2

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TERMINAL = ("click", "plotext", "rich")
COMPILER = ("llvmlite", "numba", "scipy")
SOURCES = ("protos", "service")
"""Folders at the top that are source roots, and no packages."""

WITHOUT_SERVER = f"""\
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*SERVER_PACKAGES, *COMPILER)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from bptt.cli import main
sys.argv[0] = "bptt"
main()
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def loaded_by(statement: str) -> set[str]:
    """The packages that a new interpreter has imported after a statement."""
    done = python("-c", f"import sys; {statement}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", each)[0].lower().replace("_", "-") for each in requirements}


def test_packages_of_the_distribution_are_two() -> None:
    (search,) = [
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    ]
    assert search["find"] == {"where": [".", "service"], "include": ["bptt*"]}
    tops = {path.parent.name for path in (ROOT / "service").glob("*/__init__.py")}
    assert tops == {"bptt"}
    assert [root for root in SOURCES if (ROOT / root / "__init__.py").exists()] == []


def test_protos_are_sources_and_generated_code_is_in_bptt_v1() -> None:
    sources = [path for path in (ROOT / "protos").rglob("*") if path.is_file()]
    assert sources
    assert {path.suffix for path in sources} == {".proto"}
    generated = {
        path.parent
        for root in ("service", "bptt_core", "protos", "tests", "examples", "benchmarks", "deploy")
        for path in (ROOT / root).rglob("*_pb2*.py*")
        if "__pycache__" not in path.parts
    }
    assert generated == {ROOT / "service/bptt/v1"}


@pytest.mark.parametrize(
    "statement",
    [
        "import bptt; [getattr(bptt, name) for name in bptt.__all__]",
        "from bptt import Client",
        "import bptt.errors",
        "import bptt_core.errors",
        "import bptt_core",
    ],
)
def test_sdk_imports_nothing_that_the_server_or_a_terminal_needs(statement: str) -> None:
    # gRPC itself imports its packages for health and reflection where they are installed.
    allowed = {"grpc_health", "grpc_reflection", "grpc_status"}
    heavy = {*SERVER_PACKAGES, *COMPILER, *TERMINAL, "sqlite3"} - allowed
    assert loaded_by(statement) & heavy == set()


def test_import_of_bptt_loads_no_other_distribution() -> None:
    packages = set(metadata.packages_distributions())
    assert loaded_by("import bptt") & packages - loaded_by("pass") == {"bptt"}


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_client_command_loads_nothing_of_the_server(command: str) -> None:
    loaded = loaded_by(f"import bptt.cli.main; import bptt.cli.{command}")
    assert loaded & {*COMPILER, "prometheus_client", "safetensors", "sqlite3"} == set()


@pytest.mark.parametrize("command", ["", *CLIENT_COMMANDS, *SERVER_COMMANDS])
def test_help_works_without_the_packages_of_the_server(command: str) -> None:
    shown = python("-c", WITHOUT_SERVER, *command.split(), "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("Usage: bptt")


def test_command_line_names_the_packages_of_the_extra() -> None:
    wanted = distributions(PROJECT["optional-dependencies"]["server"])
    names = metadata.packages_distributions()
    found = {dist.lower().replace("_", "-") for name in SERVER_PACKAGES for dist in names[name]}
    assert found == wanted


def test_every_dependency_is_explained() -> None:
    text = (ROOT / "docs/dependencies.md").read_text().lower().replace("_", "-")
    explained = {
        name for cell in re.findall(r"^\| ([^|]+) \|", text, re.M) for name in cell.split(", ")
    }
    extras = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    declared = distributions([*PROJECT["dependencies"], *extras])
    assert declared - explained == set()


def test_classifiers_name_the_pythons_that_are_tested() -> None:
    prefix = "Programming Language :: Python :: "
    named = [each.removeprefix(prefix) for each in PROJECT["classifiers"] if prefix in each]
    others = re.search(r'^OTHER_PYTHONS="(.+)"$', (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert others is not None
    assert named == [PROJECT["requires-python"].removeprefix(">="), *others[1].split()]
    constraints = (ROOT / "constraints.txt").read_text()
    assert all(version in constraints for version in named)


def test_exports_have_no_name_twice_and_all_exist() -> None:
    assert len(set(bptt.__all__)) == len(bptt.__all__)
    assert all(hasattr(bptt, name) for name in bptt.__all__)
    assert set(bptt.__all__) <= set(dir(bptt))
    assert bptt.__version__ == PROJECT["version"]
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        getattr(bptt, "Clint")  # noqa: B009 - a type checker knows that the name does not exist


def test_sdk_exports_all_that_its_client_does() -> None:
    from bptt import client

    assert set(client.__all__) <= set(bptt.__all__)
    assert all(getattr(bptt, name) is getattr(client, name) for name in client.__all__)


def test_sdk_exports_the_first_level_of_the_error_tree() -> None:
    kinds: list[type[errors.ServiceError]] = [
        kind for kind in errors.ServiceError.__subclasses__() if kind.__module__ == errors.__name__
    ]
    assert kinds
    names = {errors.ServiceError.__name__, *(kind.__name__ for kind in kinds)}
    assert names <= set(bptt.__all__)


def test_api_package_exports_every_message_and_enum() -> None:
    declared = set()
    for file in (types_pb2, learner_pb2, models_pb2):
        declared |= {*file.DESCRIPTOR.message_types_by_name}
        for enum in file.DESCRIPTOR.enum_types_by_name.values():
            declared |= {enum.name, *(value.name for value in enum.values)}
    assert declared
    assert set(api.__all__) == declared
