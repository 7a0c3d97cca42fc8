"""Shared by the long-lag examples: initial gate biases, and gradient curves printed as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bptt_core import GradientFlow, Learner

CELLS = ("lstm", "gru", "rnn_tanh")


def open_gates(learner: Learner, steps: float, random: np.random.Generator) -> None:
    """Set biases with which each unit initially keeps its value for 1 to `steps` steps.

    Args:
        learner: of a one-layer LSTM or GRU; its biases are replaced.
        steps: about the number of steps that a dependency spans.
        random: source of each unit's own number of steps.

    Source:
        Tallec and Ollivier (2018), "Can recurrent neural networks warp time?". An LSTM's blocks are
        i, f, g, o; a GRU's are r, z, n, of which z keeps the old state.
    """
    H = learner.spec.hidden_size
    kept, zero = np.log(random.uniform(1, max(steps - 1, 1.5), H)), np.zeros(H)
    blocks = (-kept, kept, zero, zero) if learner.spec.cell == "lstm" else (zero, kept, zero)
    parameters = learner.parameters()
    parameters["rnn.bias_ih_l0"][:] = np.concatenate(blocks)
    parameters["rnn.bias_hh_l0"][:] = 0
    learner.load_parameters(parameters)


def show_curves(curves: Sequence[tuple[str, GradientFlow]]) -> None:
    """Print the remaining share of a gradient's norm at each lag, one row for each curve."""
    print("\nremaining share of a gradient's norm, by number of steps back:")
    lags = sorted(curves[0][1].by_lag)
    print(f"{'':<18}" + "".join(f"{lag:>9}" for lag in lags))
    for name, flow in curves:
        print(f"{name:<18}" + "".join(f"{flow.by_lag[lag]:>9.0e}" for lag in lags))
