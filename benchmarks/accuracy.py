"""Accuracy of default forecasts on the bundled series, compared with recursive least squares.

Recursive least squares (RLS) is a linear forecast of the next change from the last changes of all
columns that the network reads. Figures are prequential mean absolute errors of each series' second
half, relative to the last-value forecast.

Source: Haykin, "Adaptive Filter Theory", chapter on the recursive least-squares algorithm.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import Learner, ModelSpec

Array = NDArray[Any]

DATA = Path(__file__).parents[1] / "service" / "bptt" / "data"
LAGS = 8  # changes that RLS reads
FORGETTING = 0.9995
INVERSE_TRACE_MAX = 1e4  # otherwise forgetting lets the inverse correlation grow without bound
HORIZONS = (1, 12)


@dataclass(frozen=True, slots=True)
class Series:
    """A forecast of one column of a bundled file."""

    title: str
    file: str
    columns: tuple[str, ...]
    forecast: str


SERIES = (
    Series(
        "sea temperature", "sea_surface_temperature.csv.gz",
        ("temperature (celsius)",), "temperature (celsius)",
    ),
    Series("glucose", "CGM.csv.gz", ("glucose",), "glucose"),
    Series("glucose, from isig too", "CGM.csv.gz", ("isig", "glucose"), "glucose"),
    Series("cycling power", "cycling.csv.gz", ("power",), "power"),
    Series("cycling speed", "cycling.csv.gz", ("speed",), "speed"),
)  # fmt: skip


def read(series: Series) -> Array:
    """Read the columns, (T, D), without rows that lack a value."""
    with gzip.open(DATA / series.file, "rt") as file:
        rows = [[row[column] for column in series.columns] for row in csv.DictReader(file)]
    return np.array([row for row in rows if not {"", "nil"}.intersection(row)], np.float32)


def network(x: Array, target: int, horizon: int) -> Array:
    """Forecast a column `horizon` steps ahead, (T,), with a model of default settings."""
    spec = ModelSpec(input_size=x.shape[1], horizon=horizon)
    made = Learner(spec).feed(x[:, np.newaxis]).predictions
    assert made is not None
    return np.asarray(made[:, 0, (horizon - 1) * x.shape[1] + target], float)


def least_squares(x: Array, target: int, horizon: int) -> Array:
    """Forecast a column `horizon` steps ahead, (T,), by recursive least squares."""
    x = x.astype(float)
    changes = np.diff(x, axis=0, prepend=x[:1])
    changes /= changes.std(axis=0)  # uses the whole series, an advantage over the network
    T, D = x.shape
    regressors = np.zeros((T, LAGS * D))
    for lag in range(LAGS):
        regressors[lag:, lag * D : (lag + 1) * D] = changes[: T - lag]
    weights, inverse = np.zeros(LAGS * D), np.eye(LAGS * D)
    forecasts = np.empty(T)
    for t in range(T):
        if t >= horizon:
            u = regressors[t - horizon]
            error = x[t, target] - x[t - horizon, target] - weights @ u
            gain = inverse @ u
            gain /= FORGETTING + u @ gain
            weights += gain * error
            inverse = (inverse - np.outer(gain, u @ inverse)) / FORGETTING
            inverse = (inverse + inverse.T) / 2
            inverse *= min(1.0, INVERSE_TRACE_MAX / np.trace(inverse))
        forecasts[t] = x[t, target] + weights @ regressors[t]
    return forecasts


def error_ratio(forecasts: Array, truth: Array, horizon: int) -> float:
    """Return the absolute error relative to the last-value forecast, second half."""
    truth = truth.astype(float)
    error = np.abs(truth[horizon:] - forecasts[:-horizon])
    naive = np.abs(truth[horizon:] - truth[:-horizon])
    half = len(error) // 2
    return float(error[half:].sum() / naive[half:].sum())


def run(series: Sequence[Series] = SERIES) -> None:
    """Print a line for each series."""
    print("error relative to the last-value forecast, second half of each series, default settings")
    print(f"{'':24}" + "".join(f"{f'{h} ahead':>12}{'RLS':>8}" for h in HORIZONS))
    for each in series:
        x, target = read(each), each.columns.index(each.forecast)
        ratios = []
        for horizon in HORIZONS:
            for method in (network, least_squares):
                ratio = error_ratio(method(x, target, horizon), x[:, target], horizon)
                ratios.append(ratio)
        cells = "".join(f"{r:>{12 if i % 2 == 0 else 8}.3f}" for i, r in enumerate(ratios))
        print(f"{each.title:24}{cells}", flush=True)
