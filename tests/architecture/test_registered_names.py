"""Every cell and optimizer of the core can be chosen over gRPC, and nothing else can."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from bptt import v1 as pb
from bptt.client.types import ModelSpec
from bptt_core.cells import CELLS
from bptt_core.optimizers import OPTIMIZERS


@pytest.mark.parametrize(
    ("field", "names", "enum"),
    [("cell", CELLS, pb.Cell), ("optimizer", OPTIMIZERS, pb.Optimizer)],
)
def test_the_api_offers_the_names_that_are_registered(field: str, names: Any, enum: Any) -> None:
    prefix = f"{field.upper()}_"
    assert enum.keys()[0] == f"{prefix}UNSPECIFIED"
    assert set(enum.keys()[1:]) == {prefix + name.upper() for name in names}
    assert set(get_args(get_type_hints(ModelSpec)[field])) == set(names)
