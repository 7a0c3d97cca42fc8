"""Writes the files of this folder: one walk of two sensors, as different programs write it.

python examples/files/make.py            writes them where they stand
python examples/files/make.py FOLDER     writes them elsewhere
"""

from __future__ import annotations

import gzip
import io
import lzma
import random
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

ROWS = 300
BEGIN = datetime(2024, 3, 25)
EVERY = timedelta(minutes=10)
ISO = "%Y-%m-%d %H:%M:%S"


def walk() -> Iterator[tuple[datetime, float, float]]:
    """Times, temperatures in °C and humidities in %."""
    chance = random.Random(7)
    temperature, humidity = 20.0, 57.6
    for row in range(ROWS):
        yield BEGIN + row * EVERY, round(temperature, 2), round(humidity, 1)
        temperature += chance.gauss(0.1 * (20 - temperature), 0.15)
        humidity += chance.gauss(0.1 * (55 - humidity), 0.4)


def comma(number: float, digits: int) -> str:
    """A number with a decimal comma, and dots between thousands."""
    return f"{number:,.{digits}f}".translate(str.maketrans(",.", ".,"))


def european() -> bytes:
    """A spreadsheet's export in half of Europe."""
    lines = ["Datum;Temperatur °C;Zählerstand kWh"]
    lines += [
        f"{time:%d.%m.%Y %H:%M};{comma(one, 2)};{comma(12_345 + two * 10, 1)}"
        for time, one, two in walk()
    ]
    return ("\r\n".join(lines) + "\r\n").encode("cp1252")


def american() -> bytes:
    """Month first, with AM and PM; numbers in quotes."""
    lines = ["When,Temp F,RH"]
    lines += [
        f'{time:%m/%d/%Y %I:%M:%S %p},"{one * 1.8 + 32:.2f}","{two}"' for time, one, two in walk()
    ]
    return ("\n".join(lines) + "\n").encode()


def logger() -> bytes:
    """A data logger's file: a preamble, titles, units, a column that numbers the rows."""
    lines = [
        '"TOA5","Station 1","CR1000","1234","CR1000.Std.32","CPU:met.CR1","5678","Table1"',
        '"TIMESTAMP","RECORD","AirTC_Avg","RH"',
        '"TS","RN","Deg C","%"',
        '"","","Avg","Smp"',
    ]
    lines += [f'"{time:{ISO}}",{row},{one},{two}' for row, (time, one, two) in enumerate(walk())]
    return ("\r\n".join(lines) + "\r\n").encode()


def unicode_text() -> bytes:
    """A spreadsheet's "Unicode text": UTF-16, tabs."""
    lines = ["Zeit\tTemperatur\tFeuchte"]
    lines += [f"{time:{ISO}}\t{one}\t{two}" for time, one, two in walk()]
    return ("\r\n".join(lines) + "\r\n").encode("utf-16")


def spaces() -> bytes:
    """Columns set with spaces, comments before them."""
    lines = ["# station 1", "# two sensors", "time             temp    hum"]
    lines += [f"{time:%Y-%m-%dT%H:%M} {one:7.2f} {two:6.1f}" for time, one, two in walk()]
    return ("\n".join(lines) + "\n").encode()


def pipes() -> bytes:
    """Pipes between cells, and a line that says so."""
    lines = ["sep=|", "time|temp|hum"]
    lines += [f"{time:{ISO}}|{one}|{two}" for time, one, two in walk()]
    return ("\n".join(lines) + "\n").encode()


def indexed() -> bytes:
    """A pandas table with its index."""
    lines = [",time,temp,hum"]
    lines += [f"{row},{time:{ISO}},{one},{two}" for row, (time, one, two) in enumerate(walk())]
    return ("\n".join(lines) + "\n").encode()


def untitled() -> bytes:
    """No header."""
    return "".join(f"{time:{ISO}},{one},{two}\n" for time, one, two in walk()).encode()


def epoch() -> bytes:
    """Times in milliseconds since 1970, in UTC."""
    utc = ZoneInfo("UTC")
    lines = ["ts,temp,hum"]
    lines += [
        f"{int(time.replace(tzinfo=utc).timestamp() * 1000)},{one},{two}"
        for time, one, two in walk()
    ]
    return ("\n".join(lines) + "\n").encode()


def two_columns() -> bytes:
    """Date and time of day in two columns; a night without rows."""
    lines = ["Date,Time,temp,hum"]
    lines += [
        f"{time:%d/%m/%Y},{time:%H:%M},{one},{two}"
        for time, one, two in walk()
        if not (time.day == 26 and time.hour < 6)
    ]
    return ("\n".join(lines) + "\n").encode()


def daylight_saving() -> bytes:
    """Local times of a night in which the clocks are put back: an hour is there twice."""
    zone, utc = ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")
    begin = datetime(2024, 10, 26, 22, tzinfo=utc)
    lines = ["local,temp,hum"]
    lines += [
        f"{(begin + row * EVERY).astimezone(zone):{ISO}},{one},{two}"
        for row, (_, one, two) in enumerate(walk())
    ]
    return ("\n".join(lines) + "\n").encode()


def markers() -> bytes:
    """Values that are missing, in the words of different programs."""
    words = {5: "NA", 17: "", 40: "null", 77: "-", 120: "#N/A", 200: "Err"}
    lines = ["time,temp,hum"]
    lines += [
        f"{time:{ISO}},{one},{words.get(row, two)}" for row, (time, one, two) in enumerate(walk())
    ]
    return ("\n".join(lines) + "\n").encode()


def sentinels() -> bytes:
    """A number that stands for a missing value."""
    lines = ["time,temp,hum"]
    lines += [
        f"{time:{ISO}},{-9999 if row % 50 == 7 else one},{two}"
        for row, (time, one, two) in enumerate(walk())
    ]
    return ("\n".join(lines) + "\n").encode()


def newest_first() -> bytes:
    """Rows whose newest comes first."""
    rows = [f"{time:{ISO}},{one},{two}" for time, one, two in walk()]
    return ("\n".join(["time,temp,hum", *reversed(rows)]) + "\n").encode()


def long_form() -> bytes:
    """Three sensors below one another in one column."""
    lines = ["time,sensor,value"]
    lines += [
        f"{time:{ISO}},{sensor},{value:.2f}"
        for time, one, two in walk()
        for sensor, value in (("hall", one), ("cellar", one - 6), ("humidity", two))
    ]
    return ("\n".join(lines) + "\n").encode()


def classes() -> bytes:
    """A class for each row; one class is called none."""
    lines = ["time,temp,hum,fault"]
    for time, one, two in walk():
        fault = "none" if one < 20.1 else "hot" if two < 55 else "humid"
        lines.append(f"{time:{ISO}},{one},{two},{fault}")
    return ("\n".join(lines) + "\n").encode()


def digits() -> bytes:
    """A meter at a large reading, which grows by a little."""
    lines, reading = ["time,meter_wh"], 1_700_000_000.0
    for time, one, _ in walk():
        lines.append(f"{time:{ISO}},{reading:.1f}")
        reading += round(one / 10, 1)
    return ("\n".join(lines) + "\n").encode()


def half_line() -> bytes:
    """A logger still writes: the last line has no end."""
    return pipes()[len("sep=|\n") : -3]


def zipped(content: bytes) -> bytes:
    """A zip archive of one file."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        info = zipfile.ZipInfo("readings.csv", (2024, 3, 25, 0, 0, 0))
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
    return target.getvalue()


FILES = {
    "european.csv": european,
    "american.csv": american,
    "logger.dat": logger,
    "unicode.txt": unicode_text,
    "spaces.txt": spaces,
    "pipes.csv": pipes,
    "indexed.csv": indexed,
    "untitled.csv": untitled,
    "epoch.csv.gz": lambda: gzip.compress(epoch(), mtime=0),
    "two_columns.csv.xz": lambda: lzma.compress(two_columns()),
    "daylight_saving.csv.zip": lambda: zipped(daylight_saving()),
    "markers.csv": markers,
    "sentinels.csv": sentinels,
    "newest_first.csv": newest_first,
    "long_form.csv": long_form,
    "classes.csv": classes,
    "digits.csv": digits,
    "half_line.csv": half_line,
}


def main(folder: Path) -> None:
    """Write all files into a folder."""
    for name, make in FILES.items():
        (folder / name).write_bytes(make())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
