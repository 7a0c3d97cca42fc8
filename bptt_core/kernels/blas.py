"""One BLAS thread inside the library, and the host process's own setting outside of it.

Windows are too small to share among threads, and models learn side by side anyway. Numba's products
call the OpenBLAS that SciPy brings; its number of threads is one setting for the whole process, so
it is set to 1 while any kernel runs, and set back when the last one is done. A process that has set
it to 1 itself pays nothing.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import scipy.linalg.cython_blas  # noqa: F401  loads the library that Numba's products call
from threadpoolctl import ThreadpoolController


class OneThread:
    """Context manager: BLAS has one thread while anyone is inside. For use in several threads."""

    def __init__(self) -> None:
        libraries: list[Any] = ThreadpoolController().lib_controllers
        blas = [each for each in libraries if each.user_api == "blas"]
        # SciPy's own, which is what Numba calls; all of them where it shares one with others.
        self._blas = [each for each in blas if "scipy" in each.filepath] or blas
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int] = []

    def __enter__(self) -> None:
        """Take one thread, unless somebody has."""
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
        """Give the host its setting back, if nobody else is inside."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for blas, threads in zip(self._blas, self._before, strict=True):
                    if threads != 1:
                        blas.set_num_threads(threads)


one_thread = OneThread()
