"""The core without Numba."""

from __future__ import annotations

import sys

import pytest

from bptt_core import Learner, ModelSpec
from bptt_core.errors import InvalidArgument


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("bptt_core.kernels"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)  # which makes its import fail


@pytest.mark.usefixtures("without_numba")
def test_compiled_backend_says_what_to_install() -> None:
    with pytest.raises(InvalidArgument, match="numba is not installed") as caught:
        Learner(ModelSpec())
    assert caught.value.field == "backend"
    assert "pip install 'bptt[server]'" in caught.value.bound


@pytest.mark.usefixtures("without_numba")
def test_reference_backend_needs_numpy_only() -> None:
    assert Learner(ModelSpec(), backend="reference").spec.task == "forecast"
