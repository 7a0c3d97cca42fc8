"""Rows to and from Parquet files; pyarrow, an optional package, is imported here only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

from bptt.cli.data.problem import InputError

if TYPE_CHECKING:
    from bptt.cli.answers.files import Column, Row

GROUP_ROWS = 65_536  # in a row group: some megabytes, which are kept until they are written


class ParquetRows:
    """Writes rows to a Parquet file, a row group at a time."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        """Begin a new file.

        Args:
            path: of the file; an existing one is overwritten.
            columns: of the table.
        """
        import pyarrow
        from pyarrow import parquet

        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        self.path = path
        self._arrow = pyarrow
        self._schema = pyarrow.schema([(column.name, types[column.kind]) for column in columns])
        self._writer = parquet.ParquetWriter(path, self._schema)
        self._rows: list[Row] = []

    @staticmethod
    def names(path: Path) -> list[str]:
        """Return the names of a file's columns.

        Raises:
            InputError: it is no Parquet file.
        """
        import pyarrow
        from pyarrow import parquet

        try:
            return list(parquet.read_schema(path).names)
        except pyarrow.ArrowInvalid:
            raise InputError(f"{path} exists and is no Parquet file; name another file") from None

    @staticmethod
    def read(path: Path) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file."""
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()

    def copy(self, path: Path, stream: str, first_step: int) -> None:
        """Copy the rows of another file, without those of `stream` from `first_step` on."""
        from pyarrow import compute, parquet

        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(GROUP_ROWS):
                others = compute.not_equal(batch["stream"], stream)
                kept = compute.or_(others, compute.less(batch["step"], first_step))
                self._writer.write_batch(batch.filter(kept))

    def write(self, rows: Sequence[Row]) -> None:
        """Take rows, and write a row group if there are enough of them."""
        self._rows.extend(rows)
        if len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True))
        self._rows = []
        arrays = [
            self._arrow.array(values, field.type)
            for values, field in zip(columns, self._schema, strict=True)
        ]
        table = self._arrow.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Write the last rows and the end of the file."""
        if self._rows:
            self._flush()
        self._writer.close()
