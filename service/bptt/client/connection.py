"""Opens the `Learn` calls of one session, one at a time, and tells why they end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from bptt import v1 as pb
from bptt.client import cutting
from bptt.client.backoff import Backoff
from bptt.client.errors import from_broken_call, from_rpc_error, ServerUnreachable
from bptt.errors import ServiceError, UnknownStream

RECONNECT_SECONDS = 60.0  # as long as a restart with a long journal takes
ASK_SECONDS = 10.0  # for a stream's position
INTRODUCED_MAX = 16_384  # lanes in one message: its answer is half a megabyte
NAME_BYTES = 4  # of a name's tag and length

BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError)
"""What reading from a broken call raises, or writing to it."""


@dataclass(slots=True)
class NewCall:
    """A call that is open, and what its server has told so far."""

    call: Any
    opened: pb.LearnOpened
    introduced: list[pb.LanesIntroduced] = field(default_factory=list)
    """Where the streams of lanes stand, from lane 0 on."""
    early: list[pb.LearnResponse] = field(default_factory=list)
    """Acknowledgements that came before the last of those."""

    @property
    def limits(self) -> pb.ChunkLimits:
        """What a message may have at most."""
        return cutting.limits_of(self.opened)


class Connection:
    """The present call of a session, and the way to the next one.

    Args:
        stub: of the learner service.
        address: of the server, for errors.
        opening: the first message of each call.
        reconnect_seconds: how long to try each time before the session fails.
    """

    def __init__(
        self, stub: Any, address: str, opening: pb.OpenLearn, reconnect_seconds: float
    ) -> None:
        self._stub = stub
        self._address = address
        self._opening = opening
        self._reconnect_seconds = reconnect_seconds
        self._backoff = Backoff()
        self._failing_since: float | None = None
        self.call: Any = None
        """None while no call is open."""
        self.load_id = 0
        """Of the model, as the present call told."""
        self.limits = cutting.UNTOLD
        """Of the server, as the present call told."""

    async def open(self, streams: Sequence[str], lanes: Sequence[str]) -> NewCall:
        """Open a call, without using it yet.

        Args:
            streams: that the server tells the positions of.
            lanes: streams by lane, which are introduced from lane 0 on.

        Raises:
            ServiceError: the server does not open it.
        """
        call = self._stub.Learn()
        opening = pb.LearnRequest(open=self._opening)
        opening.open.stream_ids.extend(streams)
        try:
            await call.write(opening)
            answer = await call.read()
            if answer is not grpc.aio.EOF and answer.WhichOneof("message") == "opened":
                new = NewCall(call, answer.opened)
                for message in lanes_messages(lanes, 0, new.limits):
                    await call.write(message)
                    await self._introduced(new)
                return new
        except BROKEN:
            pass
        except asyncio.CancelledError:
            call.cancel()
            raise
        raise await _why(call, self._address, opened=False)

    async def _introduced(self, new: NewCall) -> None:
        while (answer := await new.call.read()) is not grpc.aio.EOF:
            kind = answer.WhichOneof("message")
            if kind == "introduced":
                new.introduced.append(answer.introduced)
                return
            if kind == "closed":
                raise ServerUnreachable(f"the server at {self._address} is stopping")
            new.early.append(answer)
        raise await _why(new.call, self._address, opened=True)

    def use(self, new: NewCall) -> None:
        """Use a new call from now on."""
        self.load_id, self.limits = new.opened.load_id, new.limits
        self.call = new.call

    def end(self) -> None:
        """End the present call."""
        call, self.call = self.call, None
        if call is not None:
            call.cancel()

    async def ending(self) -> ServiceError:
        """Return why the present call has ended before it was closed."""
        return await _why(self.call, self._address, opened=True)

    def broken(self, error: grpc.aio.AioRpcError) -> ServiceError:
        """Return the error of the present call that broke while it was read."""
        return from_broken_call(error, self._address)

    async def find(self, stream_id: str) -> pb.Stream | None:
        """Return where a stream stands; None if there is no such stream.

        Raises:
            ServiceError: the server does not answer.
        """
        request = pb.GetStreamRequest(model_id=self._opening.model_id, stream_id=stream_id)
        try:
            found: pb.Stream = (await self._stub.GetStream(request, timeout=ASK_SECONDS)).stream
        except grpc.aio.AioRpcError as broken:
            error = from_rpc_error(broken, self._address)
            if isinstance(error, UnknownStream):
                return None
            raise error from None
        return found

    async def lapse(self, error: ServiceError) -> None:
        """Wait before trying again; raise `error` if this has gone on for too long."""
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        seconds = self._backoff.next(error.retry_seconds)
        if now + seconds > self._failing_since + self._reconnect_seconds:
            raise error
        await asyncio.sleep(seconds)

    def goes_well(self) -> None:
        """Note that the server does what it is asked for."""
        if self._failing_since is not None:
            self._failing_since = None
            self._backoff.reset()


def lanes_messages(
    names: Sequence[str], first_lane: int, limits: pb.ChunkLimits
) -> Iterator[pb.LearnRequest]:
    """Return messages that introduce streams, each as long as the server takes.

    Args:
        names: streams by lane.
        first_lane: of the first of them to introduce; `names` begins at lane 0.
        limits: of the server.
    """
    room = limits.message_bytes - cutting.FRAME_BYTES
    start, held = first_lane, 0
    for lane in range(first_lane, len(names)):
        size = len(names[lane].encode()) + NAME_BYTES
        if lane > start and (held + size > room or lane - start == INTRODUCED_MAX):
            yield _lanes(names, start, lane)
            start, held = lane, 0
        held += size
    if start < len(names):
        yield _lanes(names, start, len(names))


def _lanes(names: Sequence[str], start: int, end: int) -> pb.LearnRequest:
    return pb.LearnRequest(lanes=pb.Lanes(first_lane=start, stream_ids=names[start:end]))


async def _why(call: Any, address: str, *, opened: bool) -> ServiceError:
    """Return why a call has ended."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return ServerUnreachable(f"the server at {address} stopped")
    error = grpc.aio.AioRpcError(
        code,
        await call.initial_metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
    )
    return (from_broken_call if opened else from_rpc_error)(error, address)
