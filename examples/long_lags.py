"""What the long-lag problems beside this file share: gates that begin open, and curves as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bptt_core import GradientFlow, Learner

CELLS = ("lstm", "gru", "rnn_tanh")


def open_gates(learner: Learner, steps: float, random: np.random.Generator) -> None:
    """Biases with which each unit keeps what it holds for 1 to `steps` steps.

    Args:
        learner: of an LSTM or a GRU of one layer, whose biases are replaced.
        steps: about as many as a dependency spans.
        random: where each unit's own number comes from.

    Source: Tallec and Ollivier (2018), "Can recurrent neural networks warp time?"; an LSTM's blocks
        are i, f, g, o, and a GRU's r, z, n, of which z keeps the old state.
    """
    H = learner.spec.hidden_size
    kept, zero = np.log(random.uniform(1, max(steps - 1, 1.5), H)), np.zeros(H)
    blocks = (-kept, kept, zero, zero) if learner.spec.cell == "lstm" else (zero, kept, zero)
    parameters = learner.parameters()
    parameters["rnn.bias_ih_l0"][:] = np.concatenate(blocks)
    parameters["rnn.bias_hh_l0"][:] = 0
    learner.load_parameters(parameters)


def show_curves(curves: Sequence[tuple[str, GradientFlow]]) -> None:
    """Print what is left of a gradient at each lag, a row for each curve."""
    print("\nwhat is left of a gradient after so many steps back (1 at lag 0):")
    lags = sorted(curves[0][1].by_lag)
    print(f"{'':<18}" + "".join(f"{lag:>9}" for lag in lags))
    for name, flow in curves:
        print(f"{name:<18}" + "".join(f"{flow.by_lag[lag]:>9.0e}" for lag in lags))
