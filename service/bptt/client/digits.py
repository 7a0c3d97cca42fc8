"""Chooses whether numbers are sent as floats or as doubles.

A float keeps about 7 digits. Numbers go as doubles if rounding one of them to a float changes its
first SIGNIFICANT_DIGITS digits, or if it has more: readings such as 21.5 go as floats, a counter at
1,700,000,001 as doubles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bptt.client.types import FloatArray
from bptt.errors import InvalidRequest

SIGNIFICANT_DIGITS = 7
SAMPLE = 64  # numbers that are looked at first: of measured doubles most have all their digits
_ROUNDING = 1e-8  # of a number with 7 digits before its point: far above a double's own rounding


def number_array(field: str, values: ArrayLike) -> FloatArray:
    """Return `values` as float32, or as float64 where float32 would lose digits.

    Raises:
        InvalidRequest: not numbers.
    """
    given = np.asarray(values)
    if given.dtype == np.float32:
        return given
    try:
        exact = given.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest.of(field, type(values).__name__, "an array of numbers") from error
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rounded = exact.astype(np.float32)
        return exact if _loses_digits(exact.ravel(), rounded.ravel()) else rounded


def _loses_digits(exact: NDArray[np.float64], rounded: NDArray[np.float32]) -> bool:
    changed = exact != rounded
    if not changed.any():
        return False
    exact, rounded = exact[changed], rounded[changed]
    known = ~np.isnan(exact)
    if not known.all():
        exact, rounded = exact[known], rounded[known]
    if np.isinf(rounded).any():  # too large for a float
        return bool(np.isfinite(exact).any())
    return _any_changed(exact[:SAMPLE], rounded[:SAMPLE]) or _any_changed(
        exact[SAMPLE:], rounded[SAMPLE:]
    )


def _any_changed(exact: NDArray[np.float64], rounded: NDArray[np.float32]) -> bool:
    if not len(exact):
        return False
    places = SIGNIFICANT_DIGITS - 1 - np.floor(np.log10(np.abs(exact)))
    scale = 10.0**places
    wanted = exact * scale
    digits = np.rint(wanted)
    same = np.rint(rounded * scale) == digits
    # A number too small for its scale has no such digits.
    return not bool((same & (np.abs(wanted - digits) <= _ROUNDING)).all())
