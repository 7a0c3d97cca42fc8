"""Charts of recent values, their forecasts, and what is forecast next: in characters or a file."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from bptt.cli.answers.digits import NumberTexts
from bptt.cli.answers.files import check_folder, Column, Row
from bptt.cli.data.problem import InputError

TERMINAL = "-"  # instead of a file
SUFFIXES = (".png", ".svg")
RECENT_STEPS = 64  # drawn before the forecast
CHARTS_MAX = 4  # targets that are drawn; more would be too small to read
WIDTH, HEIGHT = 78, 17
Y_TICKS = 5
RANGE_LEAST = 2e-5  # of an axis, relative to its values
DOTS_PER_INCH = 150
_BLUE, _ORANGE = "#0072B2", "#D55E00"  # of a palette that colour-blind people can tell apart


@dataclass(slots=True)
class Point:
    """One step of a chart; NaN where something is not known."""

    step: int
    time: str = ""
    value: float = math.nan
    prediction: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(slots=True)
class Chart:
    """One target: recent steps, then those that are yet to come."""

    title: str
    points: list[Point] = field(default_factory=list)
    """In order of steps."""
    next_step: int = 0
    """The first step that is yet to come."""

    def __bool__(self) -> bool:
        """Whether there is something to draw."""
        return any(math.isfinite(each.prediction) for each in self.points)


class RecentRows:
    """Keeps the last rows that a run records, for charts."""

    def __init__(self, columns: Sequence[Column]) -> None:
        """Keep nothing yet.

        Args:
            columns: of the rows.
        """
        self._names = [column.name for column in columns]
        self._points: dict[str, dict[int, Point]] = {}
        self._next_step = 0
        self._order: deque[int] = deque()

    def write(self, rows: Sequence[Row]) -> None:
        """Keep rows, and let go of old ones."""
        for row in rows:
            record = dict(zip(self._names, row, strict=True))
            points = self._points.setdefault(record["target"], {})
            step = record["step"]
            if step not in points:
                points[step] = Point(step, record["time"])
                if len(points) > 2 * RECENT_STEPS and record["value"] is not None:
                    del points[min(points)]
            point = points[step]
            if record["value"] is not None:
                point.value = record["value"]
                self._next_step = max(self._next_step, step + 1)
            if record["prediction"] is not None and math.isnan(point.prediction):
                # The first row of a step is the forecast from the step that is nearest.
                point.prediction = record["prediction"]
                point.low = math.nan if record["low"] is None else record["low"]
                point.high = math.nan if record["high"] is None else record["high"]

    def close(self) -> None:
        """Do nothing: charts are drawn at the end."""

    def charts(self) -> list[Chart]:
        """Return a chart for each target."""
        found = []
        for target, points in self._points.items():
            kept = [points[step] for step in sorted(points)]
            past = [point for point in kept if point.step < self._next_step][-RECENT_STEPS:]
            future = [point for point in kept if point.step >= self._next_step]
            found.append(Chart(target, past + future, self._next_step))
        return found


def check_picture(option: str, text: str) -> str:
    """Check that a picture can be written, before anything is learned.

    Raises:
        InputError: it is no PNG or SVG, matplotlib is missing, or the folder cannot be written.
    """
    if text == TERMINAL:
        return text
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{option} is {text!r}, but must end in .png or .svg; {option} alone draws in the "
            "terminal"
        )
    try:
        import matplotlib  # noqa: F401 - an optional package
    except ImportError:
        raise InputError(
            f"{option} {text} needs matplotlib, which is not installed; type: pip install "
            "'bptt[plots]'"
        ) from None
    check_folder(option, path)
    return text


# ---------------------------------------------------------------------- in the terminal


def terminal_text(chart: Chart) -> Text:
    """Draw a chart in characters, 78 columns wide."""
    import plotext  # imported only where it draws

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(WIDTH, HEIGHT)
    figure.title(f"{chart.title}: {_legend(chart)}")
    for attribute, mark, is_line in (
        ("low", "·", False), ("high", "·", False), ("value", "braille", True),
    ):  # fmt: skip
        places, values = _known(chart, attribute)
        if places:
            line = figure.signal(places, values, marker=mark)
            line.lines(is_line)
            figure.draw(line)
    places, values = _predicted(chart)
    figure.draw(figure.signal(places, values, marker="*"))
    _terminal_rulers(figure, chart)
    plain = Text.from_ansi(str(figure.build())).plain
    text = Text("\n".join(row.rstrip() for row in plain.splitlines()))
    text.highlight_regex("[\u2800-\u28ff]+", "cyan")  # the line consists of braille characters
    text.highlight_regex(r"\*+", "bold green")
    text.highlight_regex("·+", "dim")
    return text


def _legend(chart: Chart) -> str:
    has_band = any(math.isfinite(point.low) for point in chart.points)
    parts = ["values (line)"] if _known(chart, "value")[0] else []
    parts.append("forecast (*)" if _future(chart) else "predictions (*)")
    return ", ".join(parts + (["90 % band (·)"] if has_band else []))


def _terminal_rulers(figure: Any, chart: Chart) -> None:
    values = _all_values(chart)
    low, high = limits(values)
    figure.ruler("y").lim(low, high)
    ticks = np.linspace(low, high, Y_TICKS)
    texts = tick_texts(ticks)
    figure.ruler("y").ticks(ticks.tolist(), texts)
    places, labels = _x_ticks(chart)
    figure.ruler("x").ticks(places, labels)
    first, last = chart.points[0], chart.points[-1]
    if first.time or last.time:
        figure.label(f"{first.time or first.step} to {last.time or last.step}; steps from now")
    else:
        figure.label("step")


def limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of an axis for values; noise in their last digits is not magnified."""
    low, high = float(values.min()), float(values.max())
    least = max(abs(low), abs(high)) * RANGE_LEAST or 1.0
    wider = max(0.0, least - (high - low)) / 2
    return low - wider, high + wider


def tick_texts(ticks: NDArray[np.float64]) -> list[str]:
    """Format the numbers beside an axis, with as many digits as tell them apart."""
    half = float(ticks[1] - ticks[0]) / 2
    text = NumberTexts(ticks, ticks - half, ticks + half)
    return [text(float(tick)) for tick in ticks]


def _x_ticks(chart: Chart) -> tuple[list[int], list[str]]:
    """Places and labels below the chart: steps, or steps from now where times are known."""
    places = _places(chart)
    count = len(places)
    every = max(1, math.ceil(count / 6))
    now = next((i for i, p in enumerate(chart.points) if p.step >= chart.next_step), count)
    chosen = [i for i in range(count) if (i - now) % every == 0]
    if any(point.time for point in chart.points):
        return [places[i] for i in chosen], [f"{i - now + 1:+d}" for i in chosen]
    return [places[i] for i in chosen], [f"{chart.points[i].step}" for i in chosen]


def _places(chart: Chart) -> list[int]:
    return [point.step - chart.next_step for point in chart.points]


def _known(chart: Chart, attribute: str) -> tuple[list[int], list[float]]:
    """Places and values of what is known; of the band, where the predictions are drawn."""
    drawn = set(_predicted(chart)[0])
    found = [
        (place, getattr(point, attribute))
        for place, point in zip(_places(chart), chart.points, strict=True)
        if math.isfinite(getattr(point, attribute)) and (attribute == "value" or place in drawn)
    ]
    return [place for place, _ in found], [value for _, value in found]


def _predicted(chart: Chart) -> tuple[list[int], list[float]]:
    """The forecasts of what is yet to come; without any, the predictions of what has come."""
    points = _future(chart) or chart.points
    found = [point for point in points if math.isfinite(point.prediction)]
    return [point.step - chart.next_step for point in found], [p.prediction for p in found]


def _future(chart: Chart) -> list[Point]:
    return [point for point in chart.points if point.step >= chart.next_step]


def _all_values(chart: Chart) -> NDArray[np.float64]:
    known = [*_known(chart, "value")[1], *_predicted(chart)[1]]
    known += [*_known(chart, "low")[1], *_known(chart, "high")[1]]
    return np.array(known)


# ---------------------------------------------------------------------- in a file


def write_picture(path: str, charts: Sequence[Chart]) -> None:
    """Draw charts one below the other in a PNG or SVG file.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # an optional package

    figure = Figure(figsize=(9, 3.4 * len(charts)), layout="constrained")
    for place, chart in enumerate(charts):
        _draw(figure.add_subplot(len(charts), 1, place + 1), chart)
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _draw(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    steps = [point.step for point in chart.points]
    column = {
        name: np.array([getattr(point, name) for point in chart.points])
        for name in ("value", "prediction", "low", "high")
    }
    axes.fill_between(
        steps, column["low"], column["high"], color=_ORANGE, alpha=0.2, linewidth=0,
        label="band that held 90 % of recent values",
    )  # fmt: skip
    axes.plot(steps, column["value"], color=_BLUE, marker=".", markersize=3, label="value")
    axes.plot(
        steps, column["prediction"], color=_ORANGE, linestyle="--", marker=".", markersize=3,
        label="prediction, made before the value came",
    )  # fmt: skip
    if _future(chart) and steps[0] < chart.next_step:
        axes.axvline(chart.next_step - 0.5, color="grey", linewidth=0.8)
    times = {point.step: point.time for point in chart.points}
    if any(times.values()):
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: times.get(round(x), "")))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("step")
    axes.ticklabel_format(axis="y", useOffset=False) if _is_plain(column["value"]) else None
    drawn = np.concatenate(list(column.values()))
    low, high = limits(drawn[np.isfinite(drawn)])
    margin = (high - low) / 20
    axes.set_ylim(low - margin, high + margin)
    axes.set_title(chart.title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")


def _is_plain(values: NDArray[np.float64]) -> bool:
    """Numbers beside the axis are written whole, and not as differences from an offset."""
    known = np.abs(values[np.isfinite(values)])
    return not len(known) or bool(known.max() < 1e7)
