"""Medians over seeds, for tests that assert how well a model learns.

One seed's result also depends on the processor: kernels of another instruction set add in another
order, and training amplifies the last digit. A bound on one seed is therefore luck. The median over
seeds hardly moves, and the test that compares it states the range that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

SEEDS = 7


def medians(
    measure: Callable[[int], Mapping[str, float]], seeds: int = SEEDS
) -> Mapping[str, float]:
    """The median over the seeds 0 to `seeds` - 1 of each figure.

    Args:
        measure: trains a model whose `spec.seed` is its argument; returns named figures.
        seeds: how many runs; an odd number, so that each median is the figure of one run.
    """
    runs = [measure(seed) for seed in range(seeds)]
    return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
