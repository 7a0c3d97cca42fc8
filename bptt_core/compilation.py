"""Tells listeners when kernels are compiled.

Compiling takes seconds, so whoever waits for it wants to know. The core itself prints and logs
nothing, and reads no clock: a listener does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple


class Event(NamedTuple):
    """Something that happened to a kernel that Python calls; it contains the kernels it calls."""

    what: Literal["begun", "compiled", "failed", "not kept"]
    """`begun` is followed by `compiled` or `failed`. `not kept`: it is compiled, but could not be
    written to the cache, so the next process compiles it again."""
    kernel: str
    number: int
    """Its number among the kernels of a model, from 1."""
    of: int
    """Number of these kernels."""
    detail: str = ""
    """Why it was not kept."""


Listener = Callable[[Event], None]
_LISTENERS: list[Listener] = []
_BEGUN: list[Event] = []  # not ended yet
_LOCK = threading.Lock()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with every event in this process while the context lasts.

    If a kernel is being compiled already, it is told so at once.

    It is called in the thread that compiles, which holds Numba's lock meanwhile: it must not wait
    for another thread that may compile.
    """
    with _LOCK:
        _LISTENERS.append(listener)
        begun = list(_BEGUN)
    try:
        for event in begun:
            listener(event)
        yield
    finally:
        with _LOCK:
            _LISTENERS.remove(listener)


def tell(event: Event) -> None:
    """Call all listeners."""
    with _LOCK:
        listeners = list(_LISTENERS)
        if event.what == "begun":
            _BEGUN.append(event)
        else:
            _BEGUN[:] = [each for each in _BEGUN if each.kernel != event.kernel]
    for listener in listeners:
        listener(event)
