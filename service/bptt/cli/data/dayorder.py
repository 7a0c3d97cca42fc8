"""Whether the day or the month comes first: what the rows show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bptt.cli.data.timeformat import Written

IRREGULAR = 0.5  # of the usual step: how far another step may be from it


def resolved(forms: Sequence[Written], texts: Iterable[str]) -> list[Written]:
    """Those of the formats under which the rows follow one another most evenly.

    Rows of one day cannot decide; the first row of the next day mostly does: one order makes it a
    usual step, the other a leap of a month. Where dots are between the numbers, the day is first.
    """
    dotted = [form for form in forms if form.order != "month first"]
    if dotted and all("." in form.label[:6] for form in forms):
        forms = dotted
    votes = [_Evenness(form) for form in forms]
    for text in texts:
        for vote in votes:
            vote.add(text)
    read = max(vote.read for vote in votes)
    votes = [vote for vote in votes if vote.read == read]
    least = min(vote.breaks for vote in votes)
    return [vote.form for vote in votes if vote.breaks == least]


class _Evenness:
    """Counts the rows that do not follow the one before by about the usual step."""

    _FIRST = 512  # steps from which the usual one is taken

    def __init__(self, form: Written) -> None:
        self.form = form
        self.read = 0
        self._last: float | None = None
        self._first: list[float] = []
        self._usual: float | None = None
        self._breaks = 0

    def add(self, text: str) -> None:
        found = self.form.seconds(text)
        if found is None:
            return
        self.read += 1
        if self._last is not None:
            step = found[0] - self._last
            if self._usual is None:
                self._first.append(step)
                if len(self._first) == self._FIRST:
                    self._settle()
            else:
                self._breaks += self._is_break(step, self._usual)
        self._last = found[0]

    @property
    def breaks(self) -> int:
        if self._usual is None:
            self._settle()
        return self._breaks

    def _settle(self) -> None:
        self._usual = usual = float(np.median(self._first)) if self._first else 0.0
        self._breaks = sum(self._is_break(step, usual) for step in self._first)
        self._first = []

    @staticmethod
    def _is_break(step: float, usual: float) -> bool:
        return abs(step - usual) > IRREGULAR * abs(usual)
