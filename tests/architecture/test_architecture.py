"""Import contracts, exported names, and the status and reason of every error."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import grpc
import pytest

import bptt
import bptt_core
from bptt import errors
from bptt_core import errors as core_errors
from tests.support.tools import program

Error = TypeVar("Error", bound=Exception)

ROOT = Path(__file__).parents[2]


def modules() -> Iterator[ModuleType]:
    for package in (bptt_core, bptt):
        yield package
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def subclasses(root: type[Error]) -> Iterator[type[Error]]:
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def test_imports_run_one_way() -> None:
    checked = subprocess.run(
        [program("lint-imports"), "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_exported_name_exists() -> None:
    exported = [(module, name) for module in modules() for name in getattr(module, "__all__", ())]
    missing = [
        f"{module.__name__}.{name}" for module, name in exported if not hasattr(module, name)
    ]
    assert exported
    assert missing == []


@pytest.mark.parametrize("module", [bptt_core, bptt], ids=lambda module: module.__name__)
def test_public_errors_have_their_place_in_the_tree_that_is_drawn(module: ModuleType) -> None:
    tree = importlib.import_module(f"{module.__name__}.errors")
    defined = [
        name
        for name, found in inspect.getmembers(tree, inspect.isclass)
        if issubclass(found, Exception) and found.__module__ == tree.__name__
    ]
    assert defined
    assert tree.__doc__ is not None
    assert [name for name in defined if f" {name} " not in tree.__doc__.replace("\n", " ")] == []


def example(kind: type[core_errors.BpttError]) -> core_errors.BpttError:
    if issubclass(kind, core_errors.InvalidArgument):
        return kind("inputs", "three", "two")
    if issubclass(kind, core_errors.OrderError):
        return kind("buoy", 7, 5)
    if issubclass(kind, core_errors.UnknownStream):
        return kind("buoy")
    return kind("anything")


@pytest.mark.parametrize("kind", list(subclasses(core_errors.BpttError))[1:])
def test_every_error_of_the_core_has_one_of_the_service(kind: type[core_errors.BpttError]) -> None:
    error = example(kind)
    mapped = errors.from_core(error)
    assert type(mapped) is not errors.ServiceError
    assert mapped.code != "INTERNAL"
    (violation,) = mapped.violations
    for part in (violation.field, violation.value, violation.bound):
        assert part
        assert part in mapped.message


def test_what_is_inside_an_unknown_error_stays_inside() -> None:
    mapped = errors.from_core(core_errors.BpttError("a path, a secret"))
    assert mapped.code == "INTERNAL"
    assert "secret" not in mapped.message


@pytest.mark.parametrize("kind", list(subclasses(errors.ServiceError)))
def test_every_error_of_the_service_has_a_status_and_comes_back_from_it(
    kind: type[errors.ServiceError],
) -> None:
    assert kind.code in grpc.StatusCode.__members__
    assert kind.code != "OK"
    assert kind.reason
    back = errors.from_status(kind.code, "why")
    assert back.code == kind.code
    assert issubclass(kind, type(back)), f"{kind.__name__} came back as {type(back).__name__}"
