"""Small chunks of several streams that are written as one message, each answered by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from bptt import v1 as pb
from bptt.client import cutting
from bptt.client.retransmit import Sent

GROUP_CHUNKS_MAX = 256  # in one message: enough that its cost is spread
GROUP_BYTES_MAX = 64 << 10  # beyond it, cost for each byte exceeds that for each message
SMALL_BYTES = 4 << 10  # a larger chunk is written by itself


@dataclass(slots=True, eq=False)
class Group:
    """Chunks that one message holds: one, or small ones of different streams and of one kind.

    Those of one kind fill the same columns of a batch.
    """

    members: list[Sent]
    attempts: list[int] = field(default_factory=list)
    """Of each member, when the message was written."""
    is_open: bool = False
    """True: more chunks may join."""
    _streams: set[str] = field(default_factory=set)
    _kind: tuple[bool, ...] = ()
    _bytes: int = 0
    _rows: int = 0

    @classmethod
    def of(cls, sent: Sent) -> Group:
        """Return the group that a chunk begins."""
        group = cls([sent])
        if is_small(sent):
            group.is_open = True
            group._streams.add(sent.stream_id)
            group._kind = _kind(sent)
            group._bytes, group._rows = sent.size, max(sent.steps, sent.labels)
        return group

    def take(self, sent: Sent, limits: pb.ChunkLimits) -> bool:
        """Add a chunk; returns whether it fits. One that does not fit closes the group."""
        if not self.is_open:
            return False
        size, rows = self._bytes + sent.size, self._rows + max(sent.steps, sent.labels)
        self.is_open = (
            is_small(sent)
            and sent.stream_id not in self._streams
            and _kind(sent) == self._kind
            and size <= min(GROUP_BYTES_MAX, limits.message_bytes - cutting.FRAME_BYTES)
            and rows <= cutting.steps_max(sent.message.chunk, limits)
        )
        if not self.is_open:
            return False
        self.members.append(sent)
        self._streams.add(sent.stream_id)
        self._bytes, self._rows = size, rows
        self.is_open = len(self.members) < GROUP_CHUNKS_MAX
        return True

    def write(self) -> pb.LearnRequest | None:
        """Return the message to write now; None if every chunk has been given up."""
        self.is_open = False
        self.members = [sent for sent in self.members if not sent.given_up]
        self.attempts = [sent.attempt for sent in self.members]
        for sent in self.members:
            sent.written = True
        if not self.members:
            return None
        if len(self.members) == 1:
            return self.members[0].message
        return pb.LearnRequest(batch=_batch(self.members))


def is_small(sent: Sent) -> bool:
    """Return whether a chunk may be written together with others.

    Labels without steps go alone: they are acknowledged by their own answer.
    """
    return sent.steps > 0 and sent.size <= SMALL_BYTES and sent.whole is None


def _kind(sent: Sent) -> tuple[bool, ...]:
    chunk = sent.message.chunk
    return (
        chunk.HasField("first_step"),
        chunk.HasField("first_target_step"),
        bool(chunk.input_doubles),
        bool(chunk.target_doubles),
        not sent.labels,
    )


def _batch(members: list[Sent]) -> pb.ChunkBatch:
    chunks = [sent.message.chunk for sent in members]
    batch = pb.ChunkBatch(stream_ids=[each.stream_id for each in chunks], tell_members=True)
    if any(sent.steps != 1 for sent in members):
        batch.steps.extend([sent.steps for sent in members])
    if chunks[0].HasField("first_step"):
        batch.first_steps.extend([each.first_step for each in chunks])
    if chunks[0].HasField("first_target_step"):
        batch.first_target_steps.extend([each.first_target_step for each in chunks])
    if any(sent.labels not in (0, sent.steps) for sent in members):
        batch.target_steps.extend([sent.labels for sent in members])
    if any(each.end_of_sequence for each in chunks):
        batch.ends_of_sequence.extend([each.end_of_sequence for each in chunks])
    if any(each.incarnation for each in chunks):
        batch.incarnations.extend([each.incarnation for each in chunks])
    if any(each.source_position for each in chunks):
        batch.source_positions.extend([each.source_position for each in chunks])
    for each in chunks:
        batch.inputs.extend(each.inputs)
        batch.input_doubles.extend(each.input_doubles)
        batch.input_tokens.extend(each.input_tokens)
        batch.targets.extend(each.targets)
        batch.target_doubles.extend(each.target_doubles)
        batch.target_classes.extend(each.target_classes)
    return batch
