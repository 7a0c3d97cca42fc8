"""What a session writes: chunks, groups of small chunks, batches, and lanes.

Small chunks of a caller who does not wait are written together, as a batch of which each chunk is
answered by itself (Nagle's algorithm): while a message has no answer, chunks that fit a group wait
for more of their kind, but for no longer than HOLD_SECONDS.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bptt import v1 as pb
from bptt.client.batch_buffer import Part
from bptt.client.retransmit import Sent

HOLD_SECONDS = 0.002  # the longest that a small chunk waits for more: a few round trips
GROUP_CHUNKS_MAX = 256  # in one message
GROUP_BYTES_MAX = (
    64 << 10
)  # of one message: beyond it, cost for each byte exceeds that for each call
SMALL_BYTES = 4 << 10  # a larger chunk is written by itself


@dataclass(frozen=True, slots=True)
class SentLanes:
    """Lanes that the call introduces."""

    first: int
    count: int


@dataclass(slots=True, eq=False)
class Group:
    """Chunks that one message holds; one chunk, mostly."""

    members: list[tuple[Sent, int]]
    """Each with its attempt."""


Waiting = Sent | Part | SentLanes
Flight = Group | Part | SentLanes


def is_small(sent: Sent) -> bool:
    """Return whether a chunk may be written together with others."""
    return sent.size <= SMALL_BYTES


def group_of(waiting: Iterable[Waiting]) -> list[Sent]:
    """Return the chunks at the head of a queue that are written as one message; at least one.

    They belong to different streams, and are of one kind: a column holds the same of each.
    """
    found: list[Sent] = []
    streams: set[str] = set()
    kind, held = None, 0
    for each in waiting:
        if not isinstance(each, Sent):
            break
        if each.given_up:
            continue
        held += each.size
        alike = kind in (None, _kind(each)) and each.stream_id not in streams
        fits = alike and held <= GROUP_BYTES_MAX and is_small(each)
        if found and not fits:
            break
        found.append(each)
        streams.add(each.stream_id)
        kind = _kind(each)
        if not is_small(each) or len(found) == GROUP_CHUNKS_MAX:
            break
    return found


def _kind(sent: Sent) -> tuple[bool, ...]:
    chunk = sent.message.chunk
    return (
        chunk.HasField("first_step"),
        chunk.HasField("first_target_step"),
        bool(chunk.input_doubles),
        bool(chunk.target_doubles),
        not sent.steps,
        not sent.labels,
    )


def message_of(group: list[Sent]) -> pb.LearnRequest:
    """Return the message of a group."""
    if len(group) == 1:
        return group[0].message
    chunks = [sent.message.chunk for sent in group]
    batch = pb.ChunkBatch(stream_ids=[each.stream_id for each in chunks], tell_members=True)
    first = chunks[0]
    if any(sent.steps != 1 for sent in group):
        batch.steps.extend([sent.steps for sent in group])
    if first.HasField("first_step"):
        batch.first_steps.extend([each.first_step for each in chunks])
    if first.HasField("first_target_step"):
        batch.first_target_steps.extend([each.first_target_step for each in chunks])
    if any(sent.labels not in (0, sent.steps) for sent in group):
        batch.target_steps.extend([sent.labels for sent in group])
    if any(each.end_of_sequence for each in chunks):
        batch.ends_of_sequence.extend([each.end_of_sequence for each in chunks])
    if any(each.incarnation for each in chunks):
        batch.incarnations.extend([each.incarnation for each in chunks])
    for each in chunks:
        batch.inputs.extend(each.inputs)
        batch.input_doubles.extend(each.input_doubles)
        batch.input_tokens.extend(each.input_tokens)
        batch.targets.extend(each.targets)
        batch.target_doubles.extend(each.target_doubles)
        batch.target_classes.extend(each.target_classes)
    return pb.LearnRequest(batch=batch)
