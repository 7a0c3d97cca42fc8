"""The slow twin: every formula once more, in plain Python floats and loops over single indices.

Written from the textbook, not from the code it is held against, and without NumPy (but for the
equations that `experts` solves): vectors are lists, matrices lists of rows. One stream at a time,
except in `learner`.
"""

from tests.core.naive.algebra import (
    add,
    affine,
    column_sums,
    Matrix,
    matrix_vector,
    sigmoid,
    tanh,
    Vector,
    vector_matrix,
)
from tests.core.naive.calibration import Calibration, sizes_of, Surprise
from tests.core.naive.cells import (
    gru_backward,
    gru_forward,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
    Twin,
    TWINS,
)
from tests.core.naive.experts import Experts, Fit, Remembered
from tests.core.naive.learner import Learner
from tests.core.naive.learning import (
    clip,
    global_norm,
    learning_rate_at,
    losses_and_slopes,
    optimizer_step,
    scale_to_norm,
    step_loss,
)
from tests.core.naive.network import layer_sizes, Network, outer_sum
from tests.core.naive.robust import Change, Level, Scale, scaled
from tests.core.naive.scaling import deviation, fade, Scaler, Statistics
from tests.core.naive.scoring import anomaly_scores, Figures, quantile, sizes

__all__ = [
    "TWINS",
    "Calibration",
    "Change",
    "Experts",
    "Figures",
    "Fit",
    "Learner",
    "Level",
    "Matrix",
    "Network",
    "Remembered",
    "Scale",
    "Scaler",
    "Statistics",
    "Surprise",
    "Twin",
    "Vector",
    "add",
    "affine",
    "anomaly_scores",
    "clip",
    "column_sums",
    "deviation",
    "fade",
    "global_norm",
    "gru_backward",
    "gru_forward",
    "layer_sizes",
    "learning_rate_at",
    "losses_and_slopes",
    "lstm_backward",
    "lstm_forward",
    "matrix_vector",
    "optimizer_step",
    "outer_sum",
    "quantile",
    "rnn_backward",
    "rnn_forward",
    "scale_to_norm",
    "scaled",
    "sigmoid",
    "sizes",
    "sizes_of",
    "step_loss",
    "tanh",
    "vector_matrix",
]
