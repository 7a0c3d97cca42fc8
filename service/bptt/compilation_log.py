"""Logs what the core tells of compiling kernels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from bptt_core.compilation import Event, Listener

log = logging.getLogger(__name__)


def worded(
    say: Callable[[int, str], None], clock: Callable[[], float] = time.monotonic
) -> Listener:
    """A listener that puts each event into words, with the seconds that a kernel took.

    Args:
        say: called with a level of `logging` and a line.
        clock: seconds.
    """
    begun: dict[str, float] = {}

    def listen(event: Event) -> None:
        name = f"kernel {event.kernel}, {event.number} of {event.of}"
        if event.what == "begun":
            begun[event.kernel] = clock()
            say(logging.INFO, f"compiling {name}; this happens once")
            return
        seconds = clock() - begun.pop(event.kernel, clock())
        if event.what == "not kept":
            why = " ".join(event.detail.split())
            say(logging.WARNING, f"{name} cannot be kept for the next start: {why}")
        elif event.what == "compiled":
            say(logging.INFO, f"compiled {name}, in {seconds:.1f} s")
        else:
            say(logging.ERROR, f"{name} could not be compiled, after {seconds:.1f} s")

    return listen


def logged() -> Listener:
    """A listener that logs."""
    return worded(log.log)
