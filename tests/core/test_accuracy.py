"""With the defaults any user gets, real series are forecast better than by their last value."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt_core import Learner, ModelSpec
from tests.support.jit import PLAIN_PYTHON

pytestmark = pytest.mark.skipif(PLAIN_PYTHON, reason="75,000 steps: hours in plain Python")

DATA = Path(__file__).parents[2] / "service" / "data"


def series(name: str, columns: list[str]) -> Any:
    """(T, D), without rows in which one of the columns is missing."""
    with gzip.open(DATA / name, "rt") as file:
        rows = [[row[column] for column in columns] for row in csv.DictReader(file)]
    whole = [row for row in rows if not {"", "nil"}.intersection(row)]
    return np.array(whole, np.float32)


@pytest.mark.parametrize(
    ("name", "columns", "forecast", "bound"),
    [
        ("sea_surface_temperature.csv.gz", ["temperature (celsius)"], 0, 0.96),
        ("CGM.csv.gz", ["isig", "glucose"], 1, 0.53),
        ("cycling.csv.gz", ["power"], 0, 0.94),
        ("cycling.csv.gz", ["speed"], 0, 0.41),
    ],
)
def test_second_half_of_a_series_one_step_ahead(
    name: str, columns: list[str], forecast: int, bound: float
) -> None:
    x = series(name, columns)
    learner = Learner(ModelSpec(input_size=len(columns)))
    predictions = learner.feed(x[:, np.newaxis]).predictions
    assert predictions is not None
    truth = x[1:, forecast].astype(float)
    error = np.abs(truth - predictions[:-1, 0, forecast])
    naive = np.abs(truth - x[:-1, forecast])
    half = len(truth) // 2
    assert error[half:].sum() / naive[half:].sum() <= bound
