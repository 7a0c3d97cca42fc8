"""Tables of pandas, polars and pyarrow: steps of many streams, and results as tables again.

None of the three is imported unless a table of it is given or asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.client.columns import BatchColumns, columns_of, in_rows_of_table
from bptt.client.types import BatchResult, Model, TableLibrary
from bptt.errors import InvalidRequest

LIBRARIES: dict[str, str] = {"pandas": "DataFrame", "polars": "DataFrame", "pyarrow": "Table"}


def columns_of_table(
    model: Model,
    table: Any,
    stream_column: str,
    input_columns: Sequence[str] | None,
    target_columns: Sequence[str],
) -> tuple[list[str], BatchColumns]:
    """Return the streams of a table, and its rows one stream after another.

    Args:
        model: that the rows are for.
        table: of pandas, polars or pyarrow.
        stream_column: the column that names the streams.
        input_columns: columns of the inputs. None: the model's input_names if it has names, else
            all columns that have no other use.
        target_columns: columns of the targets.

    Raises:
        InvalidRequest: a column is missing, or holds something else.
    """
    found = _column_names(table)
    if input_columns is None:
        used = {stream_column, *target_columns}
        others = [name for name in found if name not in used]
        input_columns = list(model.spec.get("input_names", ())) or others
    for field, wanted in (
        ("stream_column", [stream_column]),
        ("input_columns", input_columns),
        ("target_columns", target_columns),
    ):
        for name in wanted:
            if name not in found:
                bound = "a column of the table: " + ", ".join(map(str, found))
                raise InvalidRequest.of(field, repr(name), bound)
    names, codes = _streams(_column(table, stream_column), stream_column)
    order = np.argsort(codes, kind="stable")
    values = _values(table, "input_columns", input_columns, order, ids=model.task == "next_token")
    targets = None
    if target_columns:
        ids = model.task == "classification"
        targets = _values(table, "target_columns", target_columns, order, ids=ids)
    columns = columns_of(
        model,
        values,
        targets,
        streams=len(names),
        steps=np.bincount(codes, minlength=len(names)),
    )
    return names, in_rows_of_table(columns, order)


def _column_names(table: Any) -> list[str]:
    library = type(table).__module__.partition(".")[0]
    if library not in LIBRARIES:
        kinds = ", ".join(f"{name}.{kind}" for name, kind in LIBRARIES.items())
        raise InvalidRequest.of("table", f"a {type(table).__name__}", f"one of {kinds}")
    return list(table.column_names if library == "pyarrow" else table.columns)


def _column(table: Any, name: str) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy())


def _streams(column: NDArray[Any], name: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the streams in the order of their first rows, and the place of each row's stream."""
    places: dict[Any, int] = {}
    codes = np.fromiter(
        (places.setdefault(each, len(places)) for each in column.tolist()), np.int64, len(column)
    )
    for each, place in places.items():
        if each is None or each != each:  # NaN differs from itself
            row = int(np.argmax(codes == place))
            bound = "the name of a stream"
            raise InvalidRequest.of("stream_column", f"missing in row {row} of {name!r}", bound)
    return [str(each) for each in places], codes


def _values(
    table: Any, field: str, names: Sequence[str], order: NDArray[np.int64], *, ids: bool
) -> NDArray[Any]:
    """Return columns as (N, width), or (N,) ids, in another order of rows."""
    arrays = []
    for name in names:
        array = _column(table, name)
        if array.dtype.kind not in "iufb":
            try:
                array = array.astype(np.float64)
            except (TypeError, ValueError):
                value = f"{name!r}, a column of {array.dtype}"
                raise InvalidRequest.of(field, value, "columns of numbers") from None
        arrays.append(array)
    if ids:
        if len(arrays) != 1:
            raise InvalidRequest.of(field, f"{len(arrays)} columns", "one column of ids")
        return np.asarray(arrays[0][order])
    return np.stack(arrays, axis=1)[order] if arrays else np.zeros((len(order), 0))


# ---------------------------------------------------------------------- results


def result_table(result: BatchResult, library: TableLibrary, stream_column: str) -> Any:
    """Return a result as a table; see `BatchResult.to_table`."""
    if library not in LIBRARIES:
        raise InvalidRequest.of("library", repr(library), "one of " + ", ".join(LIBRARIES))
    data: dict[str, Any] = {}
    steps, order = result.steps, result.order
    rows = int(steps.sum())
    starts = np.cumsum(steps) - steps
    numbers = np.arange(rows) + np.repeat(result.next_steps - starts - steps, steps)
    refused = [name in result.refused for name in result.stream_ids]
    missing = np.repeat(np.array(refused, bool), steps)
    streams = np.repeat(np.array(result.stream_ids, object), steps)
    if order is not None:
        placed = np.empty_like(order)
        placed[order] = np.arange(rows)
        streams, numbers, missing = streams[placed], numbers[placed], missing[placed]
    data[stream_column] = streams.tolist()
    data["step"] = np.where(missing, -1, numbers)
    _add_predictions(data, result, rows)
    _add_tokens(data, result, rows)
    if result.anomaly_scores is not None:
        data["anomaly_score"] = result.anomaly_scores.reshape(rows)
    return _made(library, data, missing)


def _add_predictions(data: dict[str, Any], result: BatchResult, rows: int) -> None:
    predictions = result.predictions
    if predictions is None:
        return
    horizon, targets = predictions.shape[-2:]
    values = predictions.reshape(rows, horizon, targets)
    banded = len(result.error_low) > 0
    for target, name in enumerate(result.target_names):
        for ahead in range(horizon):
            end = f"_{ahead + 1}" if horizon > 1 else ""
            column = values[:, ahead, target]
            data[f"{name}_predicted{end}"] = column
            if banded:
                data[f"{name}_low{end}"] = column + result.error_low[ahead, target]
                data[f"{name}_high{end}"] = column + result.error_high[ahead, target]


def _add_tokens(data: dict[str, Any], result: BatchResult, rows: int) -> None:
    tokens, chances = result.top_tokens, result.top_probabilities
    if tokens is None or chances is None:
        return
    count = tokens.shape[-1]
    for place in range(count):
        data[f"token_{place + 1}"] = tokens.reshape(rows, count)[:, place]
        data[f"probability_{place + 1}"] = chances.reshape(rows, count)[:, place]


def _made(library: TableLibrary, data: dict[str, Any], missing: NDArray[np.bool_]) -> Any:
    """Return a table of columns; `step` is missing in some rows."""
    try:
        found = importlib.import_module(library)
    except ImportError as error:
        raise InvalidRequest.of("library", library, f"one that is installed: {error}") from error
    if not missing.any():
        return found.table(data) if library == "pyarrow" else found.DataFrame(data)
    steps = [None if gone else step for step, gone in
             zip(data["step"].tolist(), missing.tolist(), strict=True)]  # fmt: skip
    if library == "pandas":
        data["step"] = found.array(steps, dtype="Int64")
        return found.DataFrame(data)
    data["step"] = steps
    return found.table(data) if library == "pyarrow" else found.DataFrame(data)
