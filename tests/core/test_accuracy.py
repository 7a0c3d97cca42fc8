"""With default settings, forecasts of real series beat the last-value forecast."""

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

DATA = Path(__file__).parents[2] / "service" / "bptt" / "data"


def series(name: str, columns: list[str]) -> Any:
    """(T, D), NaN where a value is missing."""
    with gzip.open(DATA / name, "rt") as file:
        rows = [[row[column] for column in columns] for row in csv.DictReader(file)]
    known = [["nan" if value in ("", "nil") else value for value in row] for row in rows]
    return np.array(known, np.float32)


def whole(x: Any) -> Any:
    """The rows in which no column is missing."""
    return x[~np.isnan(x).any(axis=1)]


def seen_last(values: Any) -> Any:
    """(T,) with the value before in place of each that is missing."""
    known = np.where(np.isnan(values), 0, np.arange(len(values)))
    return values[np.maximum.accumulate(known)]


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
    x = whole(series(name, columns))
    learner = Learner(ModelSpec(input_size=len(columns)))
    predictions = learner.feed(x[:, np.newaxis]).predictions
    assert predictions is not None
    truth = x[1:, forecast].astype(float)
    error = np.abs(truth - predictions[:-1, 0, forecast])
    naive = np.abs(truth - x[:-1, forecast])
    half = len(truth) // 2
    assert error[half:].sum() / naive[half:].sum() <= bound


@pytest.mark.parametrize(
    ("blanked", "of_all", "of_clear"),
    [(0.0, 0.53, 0.51), (0.1, 0.56, 0.53)],  # without the rows that have gaps 0.50
)
def test_glucose_with_its_gaps_is_forecast_nearly_as_well_as_without(
    blanked: float, of_all: float, of_clear: float
) -> None:
    """1,061 sensor readings are missing; of glucose itself none, but for those that are blanked.

    Where the newest readings are there, the forecast is nearly as good as that of a series without
    gaps; elsewhere it is still better than the value that was seen last.
    """
    x = series("CGM.csv.gz", ["isig", "glucose"])
    assert np.isnan(x).sum(axis=0).tolist() == [1061, 0]
    gaps = x.copy()
    gaps[np.random.default_rng(0).random(len(x)) < blanked, 1] = np.nan
    learner = Learner(ModelSpec(input_size=2, missing_inputs=True))
    predictions = learner.feed(gaps[:, np.newaxis]).predictions
    assert predictions is not None
    truth, naive = gaps[1:, 1].astype(float), seen_last(gaps[:, 1])[:-1]
    second_half = np.arange(len(truth)) >= len(truth) // 2
    known = second_half & ~np.isnan(truth)
    clear = known & ~np.isnan(gaps[:-1]).any(axis=1)
    ratios = [
        np.abs(truth - predictions[:-1, 0, 1])[rows].sum() / np.abs(truth - naive)[rows].sum()
        for rows in (known, clear, known & ~clear)
    ]
    for ratio, bound in zip(ratios, (of_all, of_clear, 0.7 if blanked else 0.9), strict=True):
        assert ratio <= bound
    assert learner.figures.skipped_updates == 0
