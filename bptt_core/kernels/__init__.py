"""The compiled backend: Numba lives here and nowhere else."""

from bptt_core.kernels.backend import Compiled

__all__ = ["Compiled"]
