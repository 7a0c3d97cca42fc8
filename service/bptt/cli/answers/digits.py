"""How many digits an answer is printed with: as many as its error band needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DIGITS_LEAST = 4  # significant digits that are printed even if the band is wider
DIGITS_WITHOUT_BAND = 6  # significant digits of a value whose error is not known
FIXED_FROM, FIXED_BELOW = -5, 15  # powers of ten of values that are printed without an exponent

Float64Array = NDArray[np.float64]


def band_texts(
    values: NDArray[np.floating[Any]], low: ArrayLike | None, high: ArrayLike | None
) -> list[str]:
    """Format the values of one column, each with its band: `1013.25 (1013.24 to 1013.26)`.

    All get the same number of decimals: that of the narrowest band.

    Args:
        values: (N,) predictions; their type limits the digits.
        low: (N,) ends of the bands, in the unit of the values; NaN: no band. None: no bands.
        high: the same.
    """
    none = np.full(len(values), np.nan)
    lows = none if low is None else np.asarray(low, np.float64)
    highs = none if high is None else np.asarray(high, np.float64)
    numbers = NumberTexts(values, lows, highs)
    rows = zip(values.tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [
        numbers(value) + (f" ({numbers(a)} to {numbers(b)})" if math.isfinite(b - a) else "")
        for value, a, b in rows
    ]


class NumberTexts:
    """Formats numbers of one column with the decimals that its bands need."""

    def __init__(
        self, values: NDArray[np.floating[Any]], low: Float64Array, high: Float64Array
    ) -> None:
        """Choose the decimals.

        Args:
            values: (N,) values of the column; their type limits the digits.
            low: (N,) lower ends of their bands; NaN: no band.
            high: (N,) upper ends.
        """
        rows = list(zip(values, low.tolist(), high.tolist(), strict=True))
        # Values without a band get as many as their neighbours, whose error is known.
        rows = [row for row in rows if math.isfinite(row[2] - row[1])] or rows
        decimals = [_decimals(value, a, b) for value, a, b in rows]
        self._decimals = max([each for each in decimals if each is not None], default=0)
        size = max((abs(x) for x in (*values, *low, *high) if math.isfinite(x)), default=0.0)
        self._magnitude = _magnitude(float(size)) if size else 0
        self._is_fixed = FIXED_FROM <= self._magnitude < FIXED_BELOW

    def __call__(self, value: float) -> str:
        """Format a value; a dash if it is not finite."""
        if not math.isfinite(value):
            return "–"
        if not self._is_fixed:
            return f"{value:.{max(0, self._decimals + self._magnitude)}e}"
        text = f"{value:.{max(0, self._decimals)}f}"
        return text.removeprefix("-") if not float(text) else text


def _decimals(value: np.floating[Any], low: float, high: float) -> int | None:
    """Return the decimals of a value; negative: its last digits are zeros. None: any will do."""
    ends = [abs(float(x)) for x in (value, low, high) if math.isfinite(x)]
    size = max(ends, default=0.0)
    if not size:
        return None
    magnitude = _magnitude(size)
    most = int(np.finfo(value.dtype).precision) - magnitude
    half = (high - low) / 2
    if not math.isfinite(half):
        wanted = min(_shortest(value), DIGITS_WITHOUT_BAND - 1 - magnitude)
    elif half > 0 and -_magnitude(half) <= most:
        wanted = max(DIGITS_LEAST - 1 - magnitude, -_magnitude(half))
    else:  # narrower than what the value's type can tell apart
        wanted = _shortest(value)
    return min(wanted, most)


def _magnitude(size: float) -> int:
    """Return the power of ten of the first digit, after rounding to three digits."""
    return int(f"{size:.2e}".partition("e")[2])


def _shortest(value: np.floating[Any]) -> int:
    """Return the decimals of the shortest text that reads back as the same value."""
    text = np.format_float_positional(value, unique=True, trim="-")
    return len(text.partition(".")[2])
