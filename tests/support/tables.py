"""Reads tables as the command line does, for tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bptt.cli.data.options import ReadOptions
from bptt.cli.data.source import Batch
from bptt.cli.data.survey import summary, Survey, survey, Wanted
from bptt.cli.data.table import DataTable
from bptt.cli.data.understood import Choice, Understood


@dataclass(frozen=True)
class Read:
    """What came of one table."""

    understood: Understood
    found: Survey
    values: NDArray[np.float64]
    """(rows, columns) of the columns that are learned."""
    sequences: int
    """Begun by gaps, beside the first."""
    lines: list[str]
    """The summary."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def time_label(self) -> str:
        assert self.understood.time is not None
        return self.understood.time.format.label


def read(
    path: str | Path,
    *,
    columns: list[str] | None = None,
    label: str | None = None,
    gap: float | None = None,
    stream_column: str | None = None,
    options: ReadOptions | None = None,
    emit: Callable[[Batch], None] = lambda batch: None,
) -> Read:
    """Understand, look through and read a file; refused where `bptt learn` refuses it."""
    options = options or ReadOptions()
    with DataTable(str(path), options) as table:
        understood = table.understand()
        names = understood.numeric if columns is None else columns
        wanted = Wanted(
            columns=names, label=label, gap_seconds=gap, stream_column=stream_column
        )  # fmt: skip
        found = survey(str(path), options, wanted)
        batches: list[Batch] = []
        choice = Choice(
            columns=[understood.header.index(name) for name in names],
            keep_missing=[True] * len(names),
            gap_seconds=math.inf if gap is None else gap,
            sort=options.sort,
        )
        table.read(choice, 64, batches.append)
    for batch in batches:
        emit(batch)
    values = [batch.values for batch in batches if len(batch.values)]
    return Read(
        understood,
        found,
        np.concatenate(values) if values else np.zeros((0, len(names))),
        sum(batch.begins for batch in batches),
        list(summary(understood, found, wanted)),
    )


def write(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    """A file of this content."""
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
