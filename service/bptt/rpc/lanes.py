"""The lanes of one Learn call: numbers that stand for streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bptt.config import LANES_MAX
from bptt.domain import check_stream_id
from bptt.errors import InvalidRequest

FIRST_ROOM = 1024  # lanes that the first table holds; it doubles


class LaneTable:
    """Streams by lane. A lane and a stream are introduced once."""

    def __init__(self) -> None:
        self._names: npt.NDArray[np.object_] = np.full(0, None, object)
        self._known: set[str] = set()

    def introduce(self, first_lane: int, stream_ids: Sequence[str]) -> None:
        """Have the lanes from `first_lane` on stand for these streams.

        Raises:
            InvalidRequest: a name is not valid, or a lane or a stream was introduced before; no
                lane was introduced.
        """
        end = first_lane + len(stream_ids)
        if end > LANES_MAX:
            value = f"{first_lane} with {len(stream_ids)} streams"
            raise InvalidRequest.of("lanes.first_lane", value, f"lanes below {LANES_MAX}")
        if not stream_ids:
            raise InvalidRequest.of("lanes.stream_ids", "empty", "at least one name")
        for stream_id in stream_ids:
            check_stream_id(stream_id)
        taken = self._names[first_lane:end]
        if taken.any():
            lane = first_lane + int(np.argmax(taken.astype(bool)))
            value = f"{lane}, which stands for {self._names[lane]!r}"
            raise InvalidRequest.of("lanes.first_lane", value, "lanes that are not in use yet")
        new = set(stream_ids)
        if len(new) < len(stream_ids) or new & self._known:
            seen = set(self._known)
            twice = next(each for each in stream_ids if each in seen or seen.add(each))  # type: ignore[func-returns-value]
            bound = "streams that have no lane yet"
            raise InvalidRequest.of("lanes.stream_ids", repr(twice), bound)
        self._grow(end)
        self._names[first_lane:end] = stream_ids
        self._known |= new

    def _grow(self, size: int) -> None:
        if size > len(self._names):
            room = max(FIRST_ROOM, 2 * len(self._names), size)
            names = np.full(min(room, LANES_MAX), None, object)
            names[: len(self._names)] = self._names
            self._names = names

    def names(self, lanes: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        """Return the names of the streams of these lanes; None where a lane was not introduced."""
        found = np.full(len(lanes), None, object)
        inside = lanes < len(self._names)
        if inside.all():
            return self._names[lanes]
        found[inside] = self._names[lanes[inside]]
        return found
