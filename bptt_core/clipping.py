"""Gradient clipping. Every function returns the norm before clipping."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.errors import NonFiniteError

Array = NDArray[Any]

NORM_EPSILON = 1e-6  # keeps the scale finite at a norm of 0; PyTorch's value


def global_norm(gradient: Array) -> float:
    """L2 norm of a whole gradient (P,), summed in float64."""
    return float(np.sqrt(np.square(gradient, dtype=np.float64).sum()))


def clip_by_global_norm(gradient: Array, max_norm: float) -> float:
    """Scale a gradient in place so that its L2 norm is at most `max_norm`.

    Args:
        gradient: (P,) float32 or float64; overwritten.
        max_norm: the bound, > 0, in the gradient's own unit.

    Returns:
        The norm before scaling.

    Raises:
        NonFiniteError: the norm is NaN or infinite; `gradient` is untouched.

    Source:
        Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural
        networks", algorithm 1; the scale max_norm / (norm + 1e-6), at most 1, is
        `torch.nn.utils.clip_grad_norm_`'s.
    """
    norm = global_norm(gradient)
    if not np.isfinite(norm):
        raise NonFiniteError("gradient", f"of norm {norm}", "finite")
    gradient *= min(1.0, max_norm / (norm + NORM_EPSILON))
    return norm


def clip_by_layer_norm(gradient: Array, ends: list[int], max_norm: float) -> float:
    """Scale each layer's part of a gradient in place so that its own L2 norm is at most `max_norm`.

    Args:
        gradient: (P,) float32 or float64; overwritten.
        ends: the end index of each part; the last one is P.
        max_norm: the bound of each part, > 0, in the gradient's own unit.

    Returns:
        The norm of the whole before scaling.

    Raises:
        NonFiniteError: the norm is NaN or infinite; `gradient` is untouched.
    """
    norm = global_norm(gradient)
    if not np.isfinite(norm):
        raise NonFiniteError("gradient", f"of norm {norm}", "finite")
    for part in np.split(gradient, ends[:-1]):
        clip_by_global_norm(part, max_norm)
    return norm


def clip_by_value(gradient: Array, max_value: float) -> float:
    """Limit every element of a gradient to [-max_value, max_value], in place.

    Args:
        gradient: (P,) float32 or float64; overwritten.
        max_value: the bound, > 0, in the gradient's own unit.

    Returns:
        The norm before clipping.

    Raises:
        NonFiniteError: the norm is NaN or infinite; `gradient` is untouched.
    """
    norm = global_norm(gradient)
    if not np.isfinite(norm):
        raise NonFiniteError("gradient", f"of norm {norm}", "finite")
    np.clip(gradient, -max_value, max_value, out=gradient)
    return norm
