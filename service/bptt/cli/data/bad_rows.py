"""Rows that cannot be read, of which a bounded number may be left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bptt.cli.data.problem import InputError

WINDOW_ROWS = 10_000  # of which so many may be left out: a live input runs for weeks
LIVE_MAX = 100  # of a live input, unless `--bad-rows` says otherwise


class BadRows:
    """Counts the rows that are left out because they cannot be read."""

    def __init__(self, most: int) -> None:
        """Begin before the first row.

        Args:
            most: rows of the last WINDOW_ROWS that may be left out; 0: the first one is an error.
        """
        self._most = most
        self._rows = 0
        self._recent: deque[int] = deque()
        self.count = 0
        self.first = ""
        """What was wrong with the first one."""
        self.on_bad: Callable[[str], None] = lambda problem: None
        """Is told what was wrong with each."""

    def good(self) -> None:
        """A row was read."""
        self._rows += 1

    def leave_out(self, error: InputError) -> None:
        """Count a row that cannot be read.

        Raises:
            InputError: it is one too many; `error` itself if none may be left out.
        """
        self._rows += 1
        self._recent.append(self._rows)
        while self._recent[0] <= self._rows - WINDOW_ROWS:
            self._recent.popleft()
        if len(self._recent) > self._most:
            if not self._most:
                raise error
            raise InputError(
                f"{error}; {len(self._recent):,} of the last {min(self._rows, WINDOW_ROWS):,} rows "
                f"cannot be read, but --bad-rows leaves out at most {self._most:,}"
            ) from error
        self.count += 1
        self.first = self.first or str(error)
        self.on_bad(str(error))
