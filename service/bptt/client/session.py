"""A `Learn` session: sends chunks and batches and receives answers, neither waiting for the other.

A session outlives its call. When the connection breaks, or the server stops or is killed, the
session opens another call, learns from its first answers where its streams stand, and sends again
what is not durable. `retransmit` and `batch_buffer` have the rules.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from bptt import v1 as pb
from bptt.client import columns as columns_of
from bptt.client import convert, cutting, tables
from bptt.client.batch_answers import ResultBuilder
from bptt.client.batch_buffer import BatchBuffer
from bptt.client.columns import BatchColumns
from bptt.client.connection import Connection, RECONNECT_SECONDS
from bptt.client.keeping import Keeper
from bptt.client.lanes import LaneBook
from bptt.client.notifier import Notifier
from bptt.client.outbox import Outbox
from bptt.client.placing import Placer
from bptt.client.retransmit import RetransmitBuffer
from bptt.client.sent_batch import parts_of
from bptt.client.types import Answer, BatchResult, Int64Array, Model, Refused
from bptt.errors import InvalidRequest, ServerStopping

UNANSWERED_MAX = 256  # chunks in flight: enough for a fast server, few enough for a quick stop
UNREAD_MAX = 4096  # answers that the caller has not read; 10 MB at 64 steps of 8 outputs
KEPT_CHUNKS_MAX = 4096  # chunks that are not durable: a second of small ones
KEPT_BYTES_MAX = 64 << 20  # their bytes: sixteen of the largest chunks


class LearnSession:
    """A session, used as `async with client.learn(model_id) as session`.

    `send` waits while `UNANSWERED_MAX` chunks have no answer or too many are not durable, so a slow
    server slows its client down. Read the answers with `async for answer in session`, in another
    task than the one that sends, or after sending; the loop ends when `close` was called and every
    chunk is answered. Leaving the block closes the session and waits until everything that was sent
    is learned and durable; it raises the error of a refusal that was not read.
    """

    model: Model
    """The model at the time when the session opened."""

    def __init__(
        self,
        stub: Any,
        address: str,
        opening: pb.OpenLearn,
        *,
        resume: bool = True,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> None:
        """Use `Client.learn` instead."""
        self._resume = resume
        self._connection = Connection(stub, address, opening, reconnect_seconds)
        self._news = Notifier()  # wakes readers of answers
        self._progress = Notifier()  # wakes tasks that wait for room or for acknowledgements
        self._buffer = RetransmitBuffer()
        self._book = LaneBook()
        self._batches = BatchBuffer(self._book, self._buffer)
        self._outbox = Outbox(self._batches, self._book)
        self._keeper = Keeper(
            self._connection,
            self._outbox,
            self._buffer,
            self._batches,
            self._book,
            self._hand_out,
            self._ring,
            resume=resume,
            predictions=not opening.omit_predictions,
        )
        self._placer = Placer(
            self._connection,
            self._outbox,
            self._buffer,
            self._book,
            self._progress,
            lambda: self._keeper.ended,
        )
        self._answers: deque[Answer] = deque()
        self._reader: asyncio.Task[Any] | None = None

    def _ring(self) -> None:
        self._progress.ring()
        if self._keeper.ended:
            self._news.ring()

    @property
    def server_stopping(self) -> bool:
        """True: the server was stopping when the session ended.

        It has answered what it accepted; send the rest later. Only without `resume`.
        """
        return self._keeper.server_stopping

    @property
    def reconnections(self) -> int:
        """How many further calls the session has opened."""
        return self._keeper.reconnections

    async def __aenter__(self) -> Self:
        """Open the model.

        Raises:
            UnknownModel: no such model.
            ServerUnreachable: no server answers; the first call is not repeated.
        """
        new = await self._connection.open([], [])
        self.model = convert.model_from_proto(new.opened.model)
        self._keeper.begin(new, self.model)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close, and wait until all is learned; after an exception, end the call at once."""
        try:
            if error is None:
                await self._finish()
        finally:
            await self._keeper.stop()

    # ------------------------------------------------------------------ for the caller

    async def send(
        self,
        stream_id: str,
        inputs: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        *,
        first_step: int | None = None,
        first_target_step: int | None = None,
        end_of_sequence: bool = False,
        source_position: bytes = b"",
    ) -> None:
        """Send consecutive steps of one stream; a stream that does not exist is opened.

        A chunk that is larger than the server takes is sent in pieces and answered once, as if it
        had been one message. It is copied, and may exceed what the session otherwise keeps.

        Args:
            stream_id: the stream, 1 to 256 bytes.
            inputs: (T, input_size) numbers, read as float32; next token: (T,) token ids. None: no
                steps, only targets or an end of sequence, for a model with a label_delay.
            targets: regression: (S, output_size) numbers; classification: (S,) class ids. NaN or -1
                is a missing target, if the model allows it.
            first_step: number of the first step. Steps that the stream has already are trimmed
                away; a gap is refused. None: the stream's next step.
            first_target_step: number of the step of the first target, for a model with a
                label_delay: at most that many steps before first_step, which should be given, too.
                None: first_step.
            end_of_sequence: learn the unfinished window, then reset the stream's state.
            source_position: where your source stands after these steps, in a form of your own, at
                most 256 bytes. It is stored with the steps, exactly as durable, and told by
                `Client.get_stream`: a program that was killed goes on from there.

        Raises:
            InvalidRequest: an array has another shape, or one step is larger than the server takes;
                nothing was sent.
            Unavailable: the server is stopping or gone, and did not come back in time.
        """
        chunk, steps, labels = convert.chunk(
            self.model,
            stream_id,
            inputs,
            targets,
            first_step=first_step,
            first_target_step=first_target_step,
            end_of_sequence=end_of_sequence,
            source_position=source_position,
        )
        placed = self._resume and first_step is None
        await self._room()
        while not self._placer.may_lend(stream_id):
            await self._wait(lambda: self._placer.may_lend(stream_id))
        self._placer.lend(stream_id)
        limits = self._connection.limits
        large = cutting.is_too_large(chunk, steps, labels, limits)
        if large and not self._resume:  # chunks without first_step leave no trace in `ends`
            self._buffer.ends.pop(stream_id, None)
        if placed or (large and first_step is None):
            await self._placer.find(stream_id)
            if self._keeper.error is not None:
                raise self._keeper.error
            chunk.first_step = self._buffer.ends.get(stream_id, 0)
        if large:
            self._add_in_pieces(chunk, steps, labels, placed=placed)
        else:
            sent = self._buffer.add(pb.LearnRequest(chunk=chunk), steps, labels, placed=placed)
            self._outbox.put(sent)
        await self._keeper.writer.write()

    async def send_many(
        self,
        stream_ids: Sequence[str],
        values: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        *,
        steps: ArrayLike | None = None,
        first_steps: ArrayLike | None = None,
        target_steps: ArrayLike | None = None,
        first_target_steps: ArrayLike | None = None,
        ends_of_sequence: ArrayLike | None = None,
        source_positions: Sequence[bytes] | None = None,
    ) -> None:
        """Send steps of many streams in one message; the answer is one `BatchResult`.

        It means for each stream what `send` means. A stream that is refused has its reason in
        `BatchResult.refused`, and the others are learned. More than the server takes in a message
        is sent in several, and answered once.

        A stream may be sent to by `send` and by `send_many`. Changing from one to the other waits
        until what was sent of the stream is durable.

        Args:
            stream_ids: B streams, each once.
            values: (B, input_size) numbers, one step of each stream, or (B, T, input_size); next
                token: (B,) or (B, T) token ids. With `steps`: (N, input_size) or (N,), one stream
                after another. None: no steps, only targets or ends, for a model with a label_delay.
            targets: regression: numbers with output_size in place of input_size; classification:
                (B,) or (B, T) class ids. NaN or -1 is a missing target, if the model allows it.
            steps: (B,) number of steps of each stream.
            first_steps: (B,) number of the first step of each stream, as in `send`. None: the
                streams' next steps.
            target_steps: (B,) number of targets of each stream, for a model with a label_delay.
                None: as many as steps.
            first_target_steps: (B,) step of the first target of each stream, as in `send`.
            ends_of_sequence: (B,) or one for all, as in `send`.
            source_positions: (B,) as in `send`; b"" of a stream without one.

        Raises:
            InvalidRequest: an array has another shape, a stream is named twice, or one step is
                larger than the server takes; nothing was sent.
            LimitReached: the session has sent to 131072 streams.
            Unavailable: the server is stopping or gone, and did not come back in time.
        """
        names = list(stream_ids)
        columns = columns_of.columns_of(
            self.model,
            values,
            targets,
            streams=len(names),
            steps=steps,
            target_steps=target_steps,
            first_target_steps=first_target_steps,
            ends=ends_of_sequence,
            sources=source_positions,
        )
        firsts = None
        if first_steps is not None:
            firsts = columns_of.step_numbers("first_steps", first_steps, len(names))
        await self._send_columns(names, columns, firsts)

    async def send_table(
        self,
        table: Any,
        stream_column: str,
        *,
        input_columns: Sequence[str] | None = None,
        target_columns: Sequence[str] = (),
    ) -> None:
        """Send the rows of a table: each is a step of the stream that a column names.

        Rows of one stream are its steps in the table's order. The answer is one `BatchResult` whose
        arrays have one row for each row of the table; `BatchResult.to_table` makes a table of it.

        Args:
            table: of pandas, polars or pyarrow.
            stream_column: name of the column that names the streams.
            input_columns: columns of the inputs, or of the token. None: the model's input_names if
                it has names, else all columns that have no other use, in their order.
            target_columns: columns of the targets, or of the class id.

        Raises:
            InvalidRequest: a column is missing, or holds something else; nothing was sent.
        """
        names, columns = tables.columns_of_table(
            self.model, table, stream_column, input_columns, target_columns
        )
        await self._send_columns(names, columns, None)

    async def _send_columns(
        self, names: list[str], columns: BatchColumns, first_steps: Int64Array | None
    ) -> None:
        if len(set(names)) < len(names):
            twice = next(name for place, name in enumerate(names) if name in names[:place])
            raise InvalidRequest.of("stream_ids", f"{twice!r} twice", "each stream once")
        if not names:
            raise InvalidRequest.of("stream_ids", "none", "at least one stream")
        await self._room()
        lanes = self._placer.introduce(names)
        await self._keeper.writer.write()
        limits = self._connection.limits
        longest = columns_of.steps_of_stream_max(columns, limits)
        rounds = int(columns.steps.max()) > longest
        if rounds and (columns.labels is not None or columns.first_targets is not None):
            bound = f"at most {longest} steps of a stream that has late targets"
            raise InvalidRequest.of("values", f"{columns.steps.max()} steps", bound)
        placed = first_steps is None and (self._resume or rounds)
        await self._wait(lambda: self._placer.are_ready(lanes, placed=placed))
        self._placer.take_back(lanes)
        batches = [(0, np.arange(len(names)), columns)]
        if rounds:
            batches = list(columns.rounds(longest))
        whole = ResultBuilder(names, columns, convert.target_names(self.model), len(batches))
        for offset, places, each in batches:
            firsts = None if first_steps is None else first_steps[places] + offset
            sent = self._batches.add(
                lanes[places], each, firsts, whole, places, offset, placed=placed
            )
            for part in parts_of(sent, None, limits):
                self._outbox.put_part(part)
        await self._keeper.writer.write()

    async def close(self) -> None:
        """Tell the server that everything was sent. Answers still arrive. May be called twice."""
        if not self._keeper.closing and not self._keeper.ended:
            self._keeper.closing = True
            await self._keeper.writer.write()

    def durable_step(self, stream_id: str) -> int:
        """The step before which all of a stream is durable, as last told; 0 if it was not told."""
        return self._placer.durable_step(stream_id)

    async def acknowledged(self, stream_id: str) -> int:
        """Wait until everything that was sent of a stream is answered and durable.

        If another client deletes the stream, that still holds: a step is durable before its
        stream's deletion is. Only if the connection breaks as well, steps that were answered before
        the deletion may be left out of the returned step, because that can no longer be known.

        Returns:
            The step before which all of the stream is durable, as last told.

        Raises:
            ServiceError: the session has failed.
        """
        await self._progress.until(lambda: self._keeper.ended or not self._placer.keeps(stream_id))
        if self._placer.keeps(stream_id):
            raise self._keeper.error or ServerStopping()
        return self.durable_step(stream_id)

    def __aiter__(self) -> Self:
        """Iterate over the answers, in the order of their chunks."""
        return self

    async def __anext__(self) -> Answer:
        """Return the next answer."""
        self._reader = asyncio.current_task()
        await self._news.until(lambda: bool(self._answers) or self._keeper.ended)
        if self._answers:
            if len(self._answers) >= UNREAD_MAX:
                self._progress.ring()
            return self._answers.popleft()
        if self._keeper.error is not None:
            raise self._keeper.error
        raise StopAsyncIteration

    # ------------------------------------------------------------------ sending

    async def _room(self) -> None:
        """Wait until one more chunk may be sent."""
        if self._keeper.closing:
            raise ValueError("the session is closed: nothing more can be sent")
        no_reader = self._reader in (None, asyncio.current_task())
        if len(self._answers) >= UNREAD_MAX and no_reader:
            raise RuntimeError(
                f"{UNREAD_MAX} answers are not read: read them in another task while sending"
            )
        await self._wait(lambda: self._has_room(no_reader))

    async def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true.

        Raises:
            ServiceError: the session has ended before.
        """
        await self._progress.until(lambda: self._keeper.ended or condition())
        if self._keeper.error is not None:
            raise self._keeper.error
        if self._keeper.ended:
            raise ServerStopping

    def _has_room(self, no_reader: bool) -> bool:
        buffer = self._buffer
        return (
            buffer.unanswered < UNANSWERED_MAX
            and buffer.chunks < KEPT_CHUNKS_MAX
            and buffer.size < KEPT_BYTES_MAX
            and (no_reader or len(self._answers) < UNREAD_MAX)
        )

    def _add_in_pieces(self, chunk: pb.Chunk, steps: int, labels: int, *, placed: bool) -> None:
        """Add the pieces of a chunk that is too large; refuse it if one would be refused."""
        buffer = self._buffer
        if (error := cutting.problem(self.model, chunk, steps, labels)) is not None:
            sent = buffer.add(pb.LearnRequest(chunk=chunk), 0, 0, placed=placed)
            expected = buffer.ends.get(chunk.stream_id, chunk.first_step)
            refused = Refused(sent.chunk_index, chunk.stream_id, chunk.first_step, expected, error)
            self._hand_out(buffer.refused(sent, refused))
            return
        pieces = cutting.cut(chunk, steps, labels, self._connection.limits)
        whole = cutting.Whole(len(pieces))
        for place, (piece, its_steps, its_labels) in enumerate(pieces):
            sent = buffer.add(
                pb.LearnRequest(chunk=piece),
                its_steps,
                its_labels,
                placed=placed,
                whole=whole,
                is_first=place == 0,
            )
            self._outbox.put(sent)

    def _hand_out(self, ready: list[Answer]) -> None:
        if ready:
            self._answers.extend(ready)
            self._news.ring()

    async def _finish(self) -> None:
        """Close, wait for the last answer, and raise the error of a refusal that was not read."""
        await self.close()
        await self._keeper.wait()
        if self._keeper.error is not None:
            raise self._keeper.error
        for answer in self._answers:
            if isinstance(answer, Refused):
                raise answer.error
            if isinstance(answer, BatchResult) and answer.refused:
                raise next(iter(answer.refused.values())).error
