"""A data folder as a server leaves it, made without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bptt.config import Durability, Kept
from bptt.domain import ModelDefinition
from bptt.durability import Command, Record, SqliteStore, Tick
from bptt.engine.records import apply_record, make_checkpoint
from bptt_core import Chunk, Learner, ModelSpec

SPEC = ModelSpec(input_size=2, hidden_size=8, k1=2, k2=4)


def tick_records(count: int, *, streams: int = 2, steps: int = 3, seed: int = 0) -> list[Tick]:
    """Ticks of random walks, one chunk of each stream in each."""
    random = np.random.default_rng(seed)
    shape = (streams, count * steps, 2)
    walks = random.standard_normal(shape).cumsum(axis=1).astype(np.float32)
    return [
        Tick.of(
            [
                Chunk(f"s{lane}", place * steps, walks[lane, place * steps : (place + 1) * steps])
                for lane in range(streams)
            ]
        )
        for place in range(count)
    ]


def learn(
    folder: Path,
    bodies: Sequence[Tick | Command],
    *,
    save_every: int = 10,
    model_id: str = "m",
    spec: ModelSpec = SPEC,
    durability: Durability = "full",
    kept: Kept | None = None,
) -> Learner:
    """Have a new model learn, journal and save as a server does, and leave it as a killed one."""
    store = SqliteStore(folder, durability, kept)
    store.open()
    try:
        definition = ModelDefinition(model_id, spec)
        learner = Learner(spec)
        store.save(make_checkpoint(definition, learner, 0))
        for number, body in enumerate(bodies, 1):
            record = Record(number, body)
            learner = apply_record(learner, record, lambda lsn: store.load(model_id, lsn)).learner
            store.append(model_id, [record])
            if number % save_every == 0:
                store.save(make_checkpoint(definition, learner, number))
    finally:
        store.close()
    return learner


def journal_of(folder: Path, model_id: str = "m") -> Path:
    """The file of a model's journal."""
    return folder / "models" / model_id / "journal.sqlite3"


def checkpoint_of(folder: Path, number: int, model_id: str = "m") -> Path:
    """The file of a model's checkpoint."""
    return folder / "models" / model_id / f"checkpoint-{number:012d}.safetensors"


def flip(path: Path, place: int) -> None:
    """Flip a bit of a file, counted from its end where `place` is negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
