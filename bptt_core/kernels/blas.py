"""Limits BLAS to one thread while kernels run, and restores the host process's setting.

Windows are too small to divide among threads, and models learn in parallel anyway. Numba's products
call SciPy's OpenBLAS, whose number of threads is one setting for the whole process. It is set to 1
while any kernel runs, and restored when the last one is done. If it is 1 already, nothing is set.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import scipy.linalg.cython_blas  # noqa: F401  loads the library that Numba's products call
from threadpoolctl import ThreadpoolController


class OneThread:
    """Context manager that limits BLAS to one thread. Thread-safe and reentrant."""

    def __init__(self) -> None:
        libraries: list[Any] = ThreadpoolController().lib_controllers
        blas = [each for each in libraries if each.user_api == "blas"]
        # Numba calls SciPy's own library; use all of them if SciPy shares one with others.
        self._blas = [each for each in blas if "scipy" in each.filepath] or blas
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int] = []

    def __enter__(self) -> None:
        """Limit BLAS to one thread, if this is the first entry."""
        with self._lock:
            if not self._inside:
                self._before = [each.get_num_threads() for each in self._blas]
                for blas, threads in zip(self._blas, self._before, strict=True):
                    if threads != 1:
                        blas.set_num_threads(1)
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the host's setting, if this is the last exit."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for blas, threads in zip(self._blas, self._before, strict=True):
                    if threads != 1:
                        blas.set_num_threads(threads)


one_thread = OneThread()
