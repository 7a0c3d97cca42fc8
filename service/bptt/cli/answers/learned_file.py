"""The file that a stream learned: the times of its last steps, and their values."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bptt.cli import plan as planning
from bptt.cli.answers.chart import RECENT_STEPS
from bptt.cli.answers.clock import Clock
from bptt.cli.console import plural
from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError
from bptt.cli.data.source import Batch
from bptt.cli.data.table import DataTable
from bptt.client import Model

ROWS_OF_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Recent:
    """The last steps of a stream, from the file it learned."""

    next_step: int
    values: NDArray[np.float64]
    """(T, inputs) of the steps before `next_step`."""
    times: list[str]
    """Of the same steps; empty: rows have no times."""
    clock: Clock | None
    """Times of later steps."""


def read_recent(
    path: str, reading: ReadOptions, model: Model, next_step: int, series: tuple[str, str] | None
) -> Recent:
    """Read the rows of a stream's last steps.

    Args:
        path: the file that was learned.
        reading: how it is read.
        model: that learned it.
        next_step: the stream's next step.
        series: the file holds several streams: the column that names them, and the stream.

    Raises:
        InputError: the file cannot be read, or has fewer rows than the stream has steps.
    """
    column = None if series is None else series[0]
    options = planning.LearnOptions(
        file=path,
        model_id=model.model_id,
        columns=[],
        targets=[],
        classes=[],
        missing="take",
        reading=reading,
        stream_column=column,
        gap_seconds=None,
        other_names=False,
        new_classes=False,
        settings={},
    )
    with DataTable(path, reading) as table:
        understood = table.understand()
        plan = planning.make_plan(options, understood, model)
        if plan.task == "classification":
            plan.classes = planning.class_names(model)
        choice = planning.select_columns(options, plan, understood, model)
        if series is not None:
            place = understood.index("--stream-column", series[0])
            choice = replace(choice, series=place)
        wanted = planning.wanted_of(options, plan, model)
        found = planning.scan(options, understood, wanted, is_live=table.is_live)
        last = _Last(next_step)
        if series is None:
            table.read(choice, ROWS_OF_BATCH, last.add)
        else:
            table.read_one(choice, series[1], ROWS_OF_BATCH, last.add)
    if last.rows < next_step:
        raise InputError(
            f"{path} has {plural(last.rows, 'row')}, but the stream has "
            f"{plural(next_step, 'step')}; --after names the whole file that the stream learned"
        )
    width = model.spec["input_size"]
    values = np.array(last.values, np.float64).reshape(len(last.values), -1)[:, :width]
    times = found.step_times
    clock = None if times is None else Clock(times, last.seconds, next_step)
    return Recent(next_step, values, list(last.times), clock)


class _Last:
    """Keeps the last rows before a step."""

    def __init__(self, next_step: int) -> None:
        self.rows = 0
        self.values: deque[NDArray[np.float64]] = deque(maxlen=RECENT_STEPS)
        self.times: deque[str] = deque(maxlen=RECENT_STEPS)
        self.seconds = math.nan
        self._next_step = next_step

    def add(self, batch: Batch) -> None:
        taken = min(len(batch.values), self._next_step - self.rows)
        self.rows += taken
        self.values.extend(batch.values[:taken])
        self.times.extend(batch.times[:taken])
        if taken and batch.seconds is not None:
            self.seconds = float(batch.seconds[taken - 1])
