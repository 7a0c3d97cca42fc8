"""Experts: cheap forecasters beside the network, and the weights that mix all of them.

Each target and each step ahead has its own weights, which follow the experts' recent losses, so
that a forecast is hardly ever worse than that of the best single expert. All streams of a model
share coefficients and weights; a stream of its own has only the values that experts start from.

| module | holds |
|---|---|
| `least_squares` | recursive least squares on levels and on changes |
| `mixing` | one step: losses of earlier forecasts, new forecasts, weights (MLpol) |
| `season` | the value one period ago, and how a period is found |

The network learns as if it were alone: its loss and gradients know nothing of the mixture.
"""

from __future__ import annotations

from bptt_core.specs import ModelSpec

LAGS = 8  # last changes in a regression; 4 was 0.3 % worse one step ahead, 16 no better
LEVEL_TERMS = LAGS + 2  # a constant, the level, the changes

NAMES = (
    "network",
    "last_value",
    "mean",
    "fast_average",
    "slow_average",
    "least_squares_levels",
    "least_squares_changes",
)
"""The experts of every forecast, in the order of their weights."""
(
    NETWORK,
    LAST_VALUE,
    RUNNING_MEAN,
    FAST_AVERAGE,
    SLOW_AVERAGE,
    LEAST_SQUARES_LEVELS,
    LEAST_SQUARES_CHANGES,
    SEASONS,
) = range(8)
"""Their places; from SEASONS on two experts for each period: its value, and its change."""
AVERAGES = 3  # the running mean and two exponential averages

SEASON_ROWS = 1088  # values in which a period is looked for, and one horizon more
SEASON_TARGETS_MAX = 16  # targets whose period is looked for


def periods(spec: ModelSpec) -> int:
    """Number of periods for which there are experts: those given, or one that is found."""
    return len(spec.periods) or 1


def count(spec: ModelSpec) -> int:
    """E, the number of experts with the network."""
    return SEASONS + 2 * periods(spec)


def names(spec: ModelSpec) -> tuple[str, ...]:
    """Names of all experts in the order of their weights, as metrics show them."""
    found = [str(period) for period in spec.periods] or ["found"]
    return NAMES + tuple(
        f"{kind}_one_period_ago_{period}" for period in found for kind in ("value", "change")
    )
