"""A table written in any dialect is read back equal, or refused with a place or an option."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import tempfile
import zipfile
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st

from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError
from tests.support.tables import read

START = datetime(2023, 12, 28, 22, 30)
TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
    "%d.%m.%Y %H:%M:%S",
    "%d-%b-%Y %H:%M:%S",
    "%Y%m%d%H%M%S",
    "%d/%m/%y %H:%M",
)
WORDS = st.text("abcdefghijkXYZäµ°%()/ ,;_", min_size=1, max_size=12).map(str.strip)
TITLES = WORDS.filter(
    # A first title such as `% X` is read as `X`: programs write headers as comments.
    lambda text: any(c.isalpha() and c not in "na" for c in text) and not text.startswith("% ")
)


@dataclass(frozen=True)
class Dialect:
    """How the table is written."""

    delimiter: str
    decimal: str
    thousands: str
    encoding: str
    line_end: str
    decimals: int
    preamble: list[str]
    units: bool
    index: bool
    trailing: bool
    missing: str
    time_format: str | None
    minutes: int
    packing: str
    has_sep_line: bool
    is_quoted: bool
    is_split: bool
    """Date and time of day are in two columns."""
    blank_every: int
    """A blank line stands after so many rows; 0: none does."""


dialects = st.builds(
    Dialect,
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    decimal=st.sampled_from([".", ","]),
    thousands=st.sampled_from(["", "", " ", "'", ".", ",", "\u00a0"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    decimals=st.integers(0, 4),
    preamble=st.lists(
        st.sampled_from(["Logger: ACME 12", "# a comment", "Serial,1234", "Station;Roof"]),
        max_size=2,
        unique=True,
    ),
    units=st.booleans(),
    index=st.booleans(),
    trailing=st.booleans(),
    missing=st.sampled_from(["", "NA", "-", "#N/A", "NaN"]),
    time_format=st.sampled_from([None, *TIME_FORMATS]),
    minutes=st.sampled_from([1, 10, 60]),
    packing=st.sampled_from(["", "", "gzip", "xz", "bz2", "zip"]),
    has_sep_line=st.sampled_from([False, False, False, True]),
    is_quoted=st.booleans(),
    is_split=st.booleans(),
    blank_every=st.sampled_from([0, 0, 0, 7]),
)
values = st.one_of(
    st.none(),
    st.floats(-50, 50, allow_nan=False),
    st.floats(-5e6, 5e6, allow_nan=False),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[float | None]]]:
    """Titles, and columns of values."""
    titles = draw(st.lists(TITLES, min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(3, 30))
    column = st.lists(values, min_size=rows, max_size=rows).filter(lambda c: c[-1] is not None)
    return titles, [draw(column) for _ in titles]


def number_text(value: float, dialect: Dialect) -> str:
    whole, _, digits = f"{value:,.{dialect.decimals}f}".partition(".")
    whole = whole.replace(",", dialect.thousands)
    return whole + (dialect.decimal + digits if digits else "")


def written(titles: list[str], columns: list[list[float | None]], dialect: Dialect) -> bytes:
    out = io.StringIO()
    if dialect.has_sep_line:
        out.write(f"sep={dialect.delimiter}\n")
    out.write("".join(line + "\n" for line in dialect.preamble))
    writer = csv.writer(
        out,
        delimiter=dialect.delimiter,
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if dialect.is_quoted else csv.QUOTE_MINIMAL,
    )
    form = dialect.time_format or ""
    is_split = dialect.is_split and " " in form
    has_time = (dialect.time_format is not None) + is_split
    head = [""] * dialect.index + ["date", "time"][2 - has_time :]
    tail = [""] * dialect.trailing
    writer.writerow(head + titles + tail)
    if dialect.units:
        writer.writerow(["-"] * dialect.index + ["UTC"] * has_time + ["m/s"] * len(titles) + tail)
    for place, row in enumerate(zip(*columns, strict=True)):
        cells = [str(place)] * dialect.index
        if dialect.time_format is not None:
            when = START + timedelta(minutes=dialect.minutes * place)
            text = when.strftime(form)
            cells += text.split(" ", 1) if is_split else [text]
        if dialect.blank_every and place and place % dialect.blank_every == 0:
            out.write("\n")
        cells += [dialect.missing if v is None else number_text(v, dialect) for v in row]
        writer.writerow(cells + tail)
    text = out.getvalue().replace("\n", dialect.line_end)
    data = text.encode(dialect.encoding)
    if dialect.encoding == "utf-16":
        assert data.startswith(codecs.BOM_UTF16_LE)
    if dialect.packing == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("t.csv", data)
        return packed.getvalue()
    if dialect.packing == "gzip":
        return gzip.compress(data)
    if dialect.packing == "bz2":
        return bz2.compress(data)
    return lzma.compress(data) if dialect.packing == "xz" else data


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(tables(), dialects)
def test_a_table_is_read_back_equal_or_refused(
    table: tuple[list[str], list[list[float | None]]], dialect: Dialect
) -> None:
    titles, columns = table
    if dialect.thousands == dialect.decimal:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(written(titles, columns, dialect))
        try:
            found = read(path)
        except InputError as error:
            refusal = str(error)
        else:
            refusal = ""
    if refusal:
        assert "line " in refusal or "--" in refusal
        return
    assert len(found.values) == len(columns[0])
    expected = {
        " ".join(title.split()): [
            np.nan if v is None else round(v, dialect.decimals) for v in column
        ]
        for title, column in zip(titles, columns, strict=True)
    }
    for place, name in enumerate(found.understood.numeric):
        np.testing.assert_allclose(found.values[:, place], expected[name], rtol=1e-12, atol=1e-9)
    for name in set(expected) - set(found.understood.numeric):
        assert found.understood.left_out[name] in found.text
    if dialect.time_format is not None:
        assert found.found.order is not None
        assert found.found.order.steps.quantile(0.5) == dialect.minutes * 60


edits = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(0, 3), st.sampled_from('x;,"\n\r\t-. 0\x00ä')),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(tables(), dialects, edits)
def test_a_damaged_table_is_refused_with_a_place_or_read(
    table: tuple[list[str], list[list[float | None]]],
    dialect: Dialect,
    edits: list[tuple[int, int, str]],
) -> None:
    if dialect.thousands == dialect.decimal:
        return
    plain = replace(dialect, packing="", encoding="utf-8")
    text = written(*table, plain).decode()
    for place, cut, sign in edits:
        place %= len(text)
        text = text[:place] + sign + text[place + cut :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(text, encoding="utf-8", newline="")
        for options in (ReadOptions(), ReadOptions(bad_rows=5)):
            refusal = ""
            try:
                read(path, options=options)
            except InputError as error:
                refusal = str(error)
            # Anything but an InputError is a fault of the reader, and fails here.
            assert not refusal or any(words in refusal for words in ("line ", "--", "no rows"))
