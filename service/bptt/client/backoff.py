"""Exponential back-off with jitter."""

from __future__ import annotations

import random

FIRST_SECONDS = 0.1  # a server that restarts is back in a second or two
MOST_SECONDS = 5.0


class Backoff:
    """Doubles the wait with each try; jitter keeps many clients from returning at once."""

    def __init__(self) -> None:
        self._random = random.Random()
        self._tries = 0

    def reset(self) -> None:
        """Start again with the shortest wait, after a success."""
        self._tries = 0

    def next(self, least: float = 0.0) -> float:
        """Return the seconds to wait now.

        Args:
            least: the lower bound in seconds, as the server asked for.
        """
        longest = min(MOST_SECONDS, FIRST_SECONDS * 2**self._tries)
        self._tries = min(self._tries + 1, 16)  # 0.1 s times 2^16 is beyond any bound
        return float(max(least, longest * self._random.uniform(0.5, 1.0)))
