"""One table: `understand` tells what it holds, then `read` gives its rows.

It blocks; `pump` gives it a thread. Memory is bounded: decisions are made on the first rows, and a
later row that contradicts them is an error that names its line.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from bptt.cli.data import times as times_of
from bptt.cli.data.bad_rows import BadRows, LIVE_MAX
from bptt.cli.data.clock import Clock
from bptt.cli.data.columns import (
    columns_of,
    markers_of,
    match_names,
    number_cells,
    split_names,
)
from bptt.cli.data.dayorder import resolved
from bptt.cli.data.decode import Encoding, encoding_of, Lines
from bptt.cli.data.dialect import decide, Dialect, Layout
from bptt.cli.data.numbers import format_of
from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError, shown
from bptt.cli.data.records import NAMES, Record, Records
from bptt.cli.data.rows import BatchBuilder, RowReader
from bptt.cli.data.source import Batch, Source
from bptt.cli.data.timeformat import Written
from bptt.cli.data.times import TimeColumn, TimeOptions
from bptt.cli.data.titles import unique
from bptt.cli.data.understood import Choice, Understood
from bptt.cli.data.unpack import Unpacked

HEAD_BYTES = 1 << 20  # read before anything is decided
SAMPLE_ROWS_MAX = 10_000  # of them looked at
LIVE_ROWS = 100  # a live input is waited for at most so long, for a value in every column
LIVE_SECONDS = 0.2  # of silence: what a live input had to say at once was said
SORT_ROWS_MAX = 5_000_000  # kept in memory by `--sort`


BLOCK_ROWS = 8192  # of all series in a block: half of what the server takes in a message
SeriesBatch = tuple[str, Batch]
"""A series, and rows of it."""
Look = Callable[[int, list[str], float | None], None]
"""Is shown the line, the cells and the time of each row."""


class DataTable(Source):
    """One table of text: a file, packed or not, or standard input."""

    def __init__(self, path: str, options: ReadOptions | None = None) -> None:
        """Open `path`; `-` is standard input.

        Raises:
            InputError: it is not there or cannot be opened.
        """
        super().__init__(path)
        self.path = path
        self.options = options or ReadOptions()
        self.missing: Counter[tuple[str, str]] = Counter()
        """Values that were missing in rows read so far, by column and what stood for them."""
        self.skipped: Counter[str] = Counter()
        """Lines left out of what was read so far, by reason."""
        most = LIVE_MAX if self.is_live else 0
        self.bad = BadRows(most if self.options.bad_rows is None else self.options.bad_rows)
        """Rows left out because they cannot be read."""
        self.other_classes: Counter[str] = Counter()
        """Names of classes that were read as `Choice.other_class`."""
        self._on_wait: Callable[[], None] = lambda: None
        self._head: list[bytes] = []
        self._source: Unpacked | None = None
        self._understood: Understood | None = None

    # ------------------------------------------------------------------ what it is

    def understand(self) -> Understood:
        """Read the first rows, and tell from them what the table is.

        Raises:
            InputError: it cannot be told; names the place and the option that helps.
        """
        self._source = source = Unpacked(self._raw, self.name, is_live=self.is_live)
        size = 0
        while True:
            piece = source.read()
            self._head.append(piece)
            size += len(piece)
            is_all = not piece
            if not is_all and size < HEAD_BYTES and not source.waits(LIVE_SECONDS):
                continue
            understood = self._decided(is_all=is_all or size >= HEAD_BYTES, ended=is_all)
            if understood is not None:
                self._understood = understood
                return understood

    def _decided(self, *, is_all: bool, ended: bool) -> Understood | None:
        """What the head shows; None: more of a live input must be waited for."""
        head = b"".join(self._head)
        encoding = encoding_of(head, self.name, self.options.encoding)
        assert self._source is not None
        packing = self._source.packing
        found = Lines([head], encoding, self.name, take_last=ended and packing is not None)
        lines = list(found)
        if not is_all and sum(bool(line.strip()) and line[0] != "#" for line in lines) < 2:
            return None
        if ended and not lines and found.unfinished:
            raise InputError(
                f"line 1 of {self.name} has no line end, so it may not be whole; end it with a "
                "line end if it is"
            )
        understood = self._explain(lines, encoding, packing, found.line_end, ended=ended)
        waits = any(column.kind == "empty" for column in understood.columns)
        if not is_all and (not understood.sample or (waits and len(understood.sample) < LIVE_ROWS)):
            return None
        if not understood.sample:
            line = understood.dialect.title_line
            raise InputError(f"{self.name} has a header in line {line}, but no rows after it")
        return understood

    def _explain(
        self,
        lines: list[str],
        encoding: Encoding,
        packing: str | None,
        line_end: str,
        *,
        ended: bool,
    ) -> Understood:
        options = self.options
        layout = Layout(
            options.delimiter_sign, options.comment, options.skip_rows, not options.no_header
        )
        dialect = decide(lines, layout, self.name)
        rows = self._sample(lines, dialect)
        names, notes = unique(dialect.titles)
        markers = markers_of(options.missing, options.not_missing)
        wanted = split_names(options.time) if options.time else []
        asked = TimeOptions(
            tuple(match_names("--time", wanted, names)),
            options.time_format,
            options.time_zone,
            options.no_time,
        )
        time = times_of.find(names, rows, asked, self.name) if rows else None
        if time is not None and time.rivals and not self.is_live:
            self._look_further(time, dialect, encoding)
        times = time.columns if time is not None else ()
        numbers = format_of(
            number_cells(names, rows, times),
            decimal=options.decimal,
            thousands=options.thousands,
            delimiter=dialect.delimiter,
            name=self.name,
        )
        columns = columns_of(
            names, dialect.titles, rows, times, numbers, markers, has_header=not options.no_header
        )
        return Understood(
            self.name, packing, encoding, line_end, dialect, numbers, columns, time, markers,
            notes, rows,
        )  # fmt: skip

    def _sample(self, lines: list[str], dialect: Dialect) -> list[Record]:
        records = _records(lines, dialect, self.name, is_part=True)
        rows = itertools.islice(records, SAMPLE_ROWS_MAX)
        width = dialect.width
        return [(line, row[:width]) for line, row in rows if len(row) >= width and any(row)]

    def _look_further(self, time: TimeColumn, dialect: Dialect, encoding: Encoding) -> None:
        """Read on until a row tells the order of day and month."""
        assert isinstance(time.format, Written)
        with DataTable(self.path, self.options) as again:
            source = Unpacked(again._raw, self.name, is_live=False)
            lines = Lines(iter(source.read, b""), encoding, self.name)
            width = dialect.width
            texts = (
                time.cell(row)
                for _, row in _records(lines, dialect, self.name)
                if len(row) >= width
            )
            forms = resolved([time.format, *time.rivals], texts)
        time.format, time.rivals = forms[0], forms[1:]
        if not time.rivals:
            time.why = f"{time.format.order}: so the rows follow one another evenly"

    # ------------------------------------------------------------------ its rows

    def read(
        self,
        choice: Choice,
        rows_max: int,
        emit: Callable[[Batch], None],
        look: Look | None = None,
    ) -> None:
        """Hand all rows to `emit`, in batches of at most `rows_max`.

        Args:
            choice: what of each row is read.
            rows_max: rows in a batch; fewer where more would have to be waited for.
            emit: takes a batch.
            look: is shown each row before it is taken.

        Raises:
            InputError: a row is not what the first rows showed; the rows before it were handed on.
        """
        understood = self._understood
        assert understood is not None, "understand() comes first"
        builder = BatchBuilder(emit, self.position, has_times=understood.time is not None)
        if choice.sort:
            self._read_sorted(understood, choice, rows_max, builder, look)
            return
        if self.is_live:
            self._on_wait = builder.flush
        before: float | None = None
        is_moment = understood.time is None or understood.time.format.is_moment
        try:
            for line, row, now, time, _ in self._rows(understood, choice, look):
                if now is not None:
                    if before is not None and (
                        now - before >= choice.gap_seconds
                        or (now < before and not is_moment and choice.gap_seconds < math.inf)
                    ):
                        builder.begin()
                    before = now
                builder.add(line, row, now, time)
                if len(builder) >= rows_max:
                    builder.flush()
        finally:
            self._on_wait = lambda: None
            builder.flush()

    def read_one(
        self, choice: Choice, series: str, rows_max: int, emit: Callable[[Batch], None]
    ) -> None:
        """As `read_series`, for the rows of one series."""

        def take(block: list[SeriesBatch]) -> None:
            for name, batch in block:
                if name == series:
                    emit(batch)

        self.read_series(choice, rows_max, take)

    def read_series(
        self, choice: Choice, rows_max: int, emit: Callable[[list[SeriesBatch]], None]
    ) -> None:
        """Hand all rows to `emit`, those of several series in one block.

        Args:
            choice: what of each row is read; its `series` tells the series apart.
            rows_max: rows of one series in a batch.
            emit: takes a block: batches of series, of one series in their order.

        Raises:
            InputError: a row is not what the first rows showed; the rows before it were handed on.
        """
        understood = self._understood
        assert understood is not None, "understand() comes first"
        has_times = understood.time is not None
        is_moment = understood.time is None or understood.time.format.is_moment
        falls = not is_moment and choice.gap_seconds < math.inf
        block: list[SeriesBatch] = []
        builders: dict[str, BatchBuilder] = {}
        before: dict[str, float] = {}
        rows = 0

        def builder_of(series: str) -> BatchBuilder:
            def take(batch: Batch) -> None:
                block.append((series, batch))

            return BatchBuilder(take, self.position, has_times=has_times)

        def flush() -> None:
            nonlocal block, rows
            for each in builders.values():
                each.flush()
            if block:
                emit(block)
            block, rows = [], 0

        read = self._sorted if choice.sort else self._rows
        try:
            for line, row, now, time, series in read(understood, choice, None):
                builder = builders.get(series)
                if builder is None:
                    builder = builders[series] = builder_of(series)
                if now is not None:
                    last = before.get(series, now)
                    if now - last >= choice.gap_seconds or (now < last and falls):
                        builder.begin()
                    before[series] = now
                builder.add(line, row, now, time)
                rows += 1
                if len(builder) >= rows_max or rows >= BLOCK_ROWS:
                    flush()
        finally:
            flush()

    def _read_sorted(
        self,
        understood: Understood,
        choice: Choice,
        rows_max: int,
        builder: BatchBuilder,
        look: Look | None,
    ) -> None:
        before: float | None = None
        for line, row, now, time, _ in self._sorted(understood, choice, look):
            if before is not None and now is not None and now - before >= choice.gap_seconds:
                builder.begin()
            before = now
            builder.add(line, row, now, time)
            if len(builder) >= rows_max:
                builder.flush()
        builder.flush()

    def _sorted(
        self, understood: Understood, choice: Choice, look: Look | None
    ) -> Iterator[tuple[int, list[float] | None, float | None, str, str]]:
        """As `_rows`, in the order of their times, without rows that repeat another."""
        kept = list(itertools.islice(self._rows(understood, choice, look), SORT_ROWS_MAX + 1))
        if len(kept) > SORT_ROWS_MAX:
            raise InputError(
                f"{self.name} has more than {SORT_ROWS_MAX:,} rows, which --sort does not keep in "
                "memory; sort the file first, such as with sort(1)"
            )
        kept.sort(key=lambda each: each[2] if each[2] is not None else -math.inf)
        before: float | None = None
        same: set[tuple[str, str | None]] = set()
        for each in kept:
            _, row, now, _, series = each
            key = series, None if row is None else str(row)  # in which one NaN is as another
            if now != before:
                same = set()
            elif key in same:
                self.skipped["repeats another row"] += 1
                continue
            same.add(key)
            before = now
            yield each

    def _rows(
        self, understood: Understood, choice: Choice, look: Look | None
    ) -> Iterator[tuple[int, list[float] | None, float | None, str, str]]:
        """Line, values, time and its text, and series of each row.

        There are no values where one is missing that may not be.
        """
        needs_time = choice.gap_seconds < math.inf or choice.sort
        clock = understood.time.clock() if understood.time is not None else None
        reader = RowReader(understood, choice, self.missing, self.other_classes)
        for line, cells in self._records(understood):
            now, time = None, ""
            try:
                row = reader.row(line, cells)
                if clock is not None and understood.time is not None:
                    time = understood.time.cell(cells)
                    now = self._time(understood.time, clock, line, cells, needed=needs_time)
            except InputError as error:
                self.bad.leave_out(error)
                continue
            self.bad.good()
            if look is not None:
                look(line, cells, now)
            series = "" if choice.series is None else cells[choice.series]
            yield line, row, now, time, series

    def _time(
        self, time: TimeColumn, clock: Clock, line: int, cells: list[str], *, needed: bool
    ) -> float | None:
        text = time.cell(cells)
        try:
            now = clock.seconds(text)
        except ValueError as error:
            raise InputError(f"line {line}, column {time.name} of {self.name} is {error}") from None
        if now is None:
            if needed and any(cells[column] for column in time.columns):
                raise InputError(
                    f"line {line}, column {time.name} of {self.name} is {shown(text)}, but must be "
                    f"a time such as the others ({time.format.label}); say how times are written "
                    "with --time-format"
                )
            self.skipped["time not read"] += 1
        return now

    def _records(self, understood: Understood) -> Iterator[Record]:
        """Rows of the table's width, without those that are no data."""
        dialect = understood.dialect
        titles, width = dialect.titles, dialect.width
        has_time = understood.time is not None
        assert self._source is not None
        pieces = itertools.chain(self._pieces(), iter(self._source.read, b""))
        lines = Lines(
            pieces,
            understood.encoding,
            self.name,
            take_last=understood.packing is not None,
            on_wait=lambda: self._on_wait(),
        )
        records = _records(lines, dialect, self.name, on_problem=self.bad.leave_out)
        for line, row in records:
            if len(row) != width:
                try:
                    row = self._fitted(line, row, width)
                except InputError as error:
                    self.bad.leave_out(error)
                    continue
            if row[0] == titles[0] and row == titles and dialect.title_line is not None:
                self.skipped["repeats the header"] += 1
            elif has_time and not any(row):
                self.skipped["holds no value"] += 1
            else:
                yield line, row
        for reason, count in (("is blank", records.blank), ("is a comment", records.comments)):
            if count:
                self.skipped[reason] += count
        if lines.unfinished:
            self.skipped["has no line end yet"] += 1

    def _pieces(self) -> Iterator[bytes]:
        head, self._head = self._head, []
        return iter(head)

    def _fitted(self, line: int, row: list[str], width: int) -> list[str]:
        if len(row) > width and not any(row[width:]):
            return row[:width]
        understood = self._understood
        assert understood is not None
        where = understood.dialect.title_line
        header = f"its header in line {where}" if where is not None else "its first rows"
        raise InputError(
            f"line {line} of {self.name} has {len(row)} values ({shown(', '.join(row))}), but "
            f"{header} has {width} (delimiter {NAMES.get(understood.dialect.delimiter, 'given')}); "
            "--comment names what lines begin with that are no data, --delimiter another delimiter"
        )


def _records(
    lines: Sequence[str] | Lines,
    dialect: Dialect,
    name: str,
    *,
    is_part: bool = False,
    on_problem: Callable[[InputError], None] | None = None,
) -> Records:
    """The rows of data."""
    rest = itertools.islice(iter(lines), dialect.data_line - 1, None)
    return Records(
        rest,
        dialect.delimiter,
        dialect.quote,
        dialect.comment,
        name=name,
        first=dialect.data_line,
        is_part=is_part,
        on_problem=on_problem,
    )
