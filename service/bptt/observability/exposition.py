"""Families of series, and their text in Prometheus's format.

prometheus_client builds an object for each series. For 1,000 models that took 2.4 s of processor
time, during which predictions waited. Here a family writes its lines directly.

Source:
    "Exposition formats", Prometheus documentation, text format 0.0.4.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from bptt.observability.counts import Histogram

Kind = Literal["gauge", "counter", "histogram"]

WORK_SECONDS = 200e-6
"""How long a rendering may keep the interpreter's lock."""
YIELD_SECONDS = 50e-6
"""Pause after that, long enough for another thread to wake up and take the lock."""

T = TypeVar("T")


class Pace:
    """Gives other threads the interpreter's lock from time to time."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + WORK_SECONDS

    def step(self) -> None:
        """Pause if the lock was kept for `WORK_SECONDS`."""
        if time.perf_counter() > self._until:
            time.sleep(YIELD_SECONDS)
            self._until = time.perf_counter() + WORK_SECONDS


@dataclass(frozen=True)
class Family(Generic[T]):
    """A metric: what it means, and how its value is read from a subject, such as a model."""

    name: str
    kind: Kind
    help: str
    """What a reading means, and what to do about it."""
    read: Callable[[T], Any]
    """Its value in a subject: a number; a mapping to numbers from the values of `label`; or a
    `Histogram`. None: the subject has no such series."""
    label: str = ""
    """Name of a label beyond those of the subject; "" without one."""
    full_only: bool = False
    """True: the family is left out unless all detail is wanted."""

    def kind_at(self, buckets: bool) -> str:
        """The type that is exported: a histogram without buckets is a summary."""
        return "summary" if self.kind == "histogram" and not buckets else self.kind

    def render(
        self, subjects: Iterable[tuple[str, T]], out: list[str], pace: Pace, buckets: bool = True
    ) -> None:
        """Append the family's text.

        Args:
            subjects: each with its labels as text, such as `model="a"`.
            out: the page so far.
            pace: is told after each subject.
            buckets: False: only the count and the sum of a histogram.
        """
        kind = self.kind_at(buckets)
        out.append(f"# HELP {self.name} {_help(self.help)}\n# TYPE {self.name} {kind}\n")
        line = {
            "histogram": self._histogram,
            "summary": self._summary,
        }.get(kind, self._labelled if self.label else self._number)
        for labels, subject in subjects:
            value = self.read(subject)
            if value is not None:
                out.append(line(labels, value))
            pace.step()

    def _number(self, labels: str, value: float) -> str:
        return f"{self.name}{{{labels}}} {value}\n" if labels else f"{self.name} {value}\n"

    def _labelled(self, labels: str, values: Mapping[str, float]) -> str:
        start = f"{self.name}{{{labels},{self.label}" if labels else f"{self.name}{{{self.label}"
        return "".join(
            f'{start}="{escape(str(key))}"}} {number}\n' for key, number in list(values.items())
        )

    def _histogram(self, labels: str, value: Histogram) -> str:
        counts, total = value.read()
        template = _template(self.name, value.bounds)
        return (template % (*counts, total, counts[-1])).replace("\0", labels)

    def _summary(self, labels: str, value: Histogram) -> str:
        name = self.name
        return f"{name}_sum{{{labels}}} {value.sum}\n{name}_count{{{labels}}} {value.count}\n"


@functools.cache
def _template(name: str, bounds: tuple[float, ...]) -> str:
    """A histogram's lines, with NUL for the labels of its subject."""
    limits = [*map(str, bounds), "+Inf"]
    buckets = "".join(f'{name}_bucket{{\0,le="{limit}"}} %d\n' for limit in limits)
    return f"{buckets}{name}_sum{{\0}} %s\n{name}_count{{\0}} %d\n"


def labels_of(**labels: str) -> str:
    """Labels as they stand between braces."""
    return ",".join(f'{name}="{escape(value)}"' for name, value in labels.items())


def escape(text: str) -> str:
    """A label's value as it stands between quotation marks."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def page(out: list[str]) -> bytes:
    """Join the pieces. NaN and infinity are spelled as Prometheus does.

    A space and a line's end enclose them only where they are values: labels contain no line's end.
    """
    text = "".join(out)
    return text.replace(" nan\n", " NaN\n").replace(" inf\n", " +Inf\n").encode()
