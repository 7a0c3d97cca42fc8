"""The streams of a session's batches, by lane: where each stands, in arrays. No connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bptt import v1 as pb
from bptt.client.types import Int64Array
from bptt.errors import InvalidRequest, LimitReached

LANES_MAX = 1 << 17  # the server's bound
STREAM_ID_BYTES_MAX = 256  # the server's bound
FIRST_ROOM = 64


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Where streams stand on the server: columns with one entry for each lane."""

    next_steps: Int64Array
    durable_steps: Int64Array
    incarnations: Int64Array

    @classmethod
    def of(cls, messages: Sequence[pb.LanesIntroduced]) -> Positions:
        """Return the columns of messages about consecutive lanes."""

        def column(name: str) -> Int64Array:
            found = [np.asarray(getattr(each, name)).astype(np.int64) for each in messages]
            return np.concatenate(found) if found else np.zeros(0, np.int64)

        return cls(column("next_steps"), column("durable_steps"), column("incarnations"))


class LaneBook:
    """Lanes by stream, and columns by lane.

    Attributes:
        names: streams by lane.
        ends: the step after everything that was sent.
        durable: the step before which everything is durable, as last told.
        incarnations: the stream's incarnation, as last told; 0: not known.
        kept: number of kept batches that hold the stream.
        known: whether the server has told where the stream stands.
        lent: lanes of streams that were last sent to as single chunks; where these stand, the
            session's `RetransmitBuffer` knows.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lent: set[int] = set()
        self._lanes: dict[str, int] = {}
        self._room(FIRST_ROOM)

    def _room(self, size: int) -> None:
        old = len(self.names)
        for name in ("ends", "durable", "incarnations", "kept", "known"):
            column = np.zeros(size, bool if name == "known" else np.int64)
            if old:
                column[:old] = getattr(self, name)[:old]
            setattr(self, name, column)

    ends: Int64Array
    durable: Int64Array
    incarnations: Int64Array
    kept: Int64Array
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._lanes

    def lane(self, stream_id: str) -> int | None:
        """Return the lane of a stream; None if it has none."""
        return self._lanes.get(stream_id)

    def lanes(self, stream_ids: Sequence[str]) -> Int64Array | None:
        """Return the lanes of streams; None if one of them has none."""
        try:
            found = map(self._lanes.__getitem__, stream_ids)
            return np.fromiter(found, np.int64, len(stream_ids))
        except KeyError:
            return None

    def add(self, stream_ids: Iterable[str]) -> list[str]:
        """Give a lane to each stream that has none; returns those streams.

        Raises:
            InvalidRequest: a name is not valid; no lane was given.
            LimitReached: a session can have no more lanes; none was given.
        """
        new = [each for each in dict.fromkeys(stream_ids) if each not in self._lanes]
        for stream_id in new:
            size = len(stream_id.encode())
            if not 1 <= size <= STREAM_ID_BYTES_MAX:
                value, bound = f"{size} bytes: {stream_id!r}", f"1 to {STREAM_ID_BYTES_MAX} bytes"
                raise InvalidRequest.of("stream_id", value, f"{bound} long", reason="stream_id")
        if len(self.names) + len(new) > LANES_MAX:
            raise LimitReached.of("streams in one session", LANES_MAX)
        if len(self.names) + len(new) > len(self.ends):
            self._room(max(2 * len(self.ends), len(self.names) + len(new)))
        for stream_id in new:
            self._lanes[stream_id] = len(self.names)
            self.names.append(stream_id)
        return new

    def tell(self, lanes: Int64Array, told: Positions) -> None:
        """Note where streams stand of which nothing was known."""
        new = ~self.known[lanes]
        lanes = lanes[new]
        self.ends[lanes] = np.maximum(self.ends[lanes], told.next_steps[new])
        self.durable[lanes] = told.durable_steps[new]
        self.incarnations[lanes] = told.incarnations[new]
        self.known[lanes] = True
