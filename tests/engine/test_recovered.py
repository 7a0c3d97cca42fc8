"""A recovered model is saved with the replayed records, whether it learns more or not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bptt.config import ServerConfig
from bptt.domain import ModelDefinition
from bptt.durability import Record, SqliteStore, Tick
from bptt.engine.records import apply_record, make_checkpoint
from bptt.engine.recovery import recover, Recovered
from bptt.engine.registry import Registry
from bptt.observability.metrics import Metrics
from bptt_core import Chunk, Learner, ModelSpec

SPEC = ModelSpec(input_size=1, hidden_size=2, k1=2, k2=4)
TICKS = 5


def killed(store: SqliteStore) -> Learner:
    """The learner of a killed server that saved only its first checkpoint; the journal is whole."""
    learner = Learner(SPEC)
    store.save(make_checkpoint(ModelDefinition("m", SPEC), learner, 0))
    values = np.sin(np.arange(3 * TICKS, dtype=np.float32))[:, None]
    records = [
        Record(lsn, Tick.of([Chunk("s", 3 * lsn - 3, values[3 * lsn - 3 : 3 * lsn])]))
        for lsn in range(1, TICKS + 1)
    ]
    store.append("m", records)
    for record in records:
        apply_record(learner, record)
    return learner


async def stopped(store: SqliteStore) -> Recovered:
    """Start a server on the store and stop it without learning; return what the next one finds."""
    with ThreadPoolExecutor(1) as executor:
        registry = Registry(ServerConfig(), executor, store, Metrics())
        await registry.recover()
        assert await registry.stop(10.0) == []
    return recover(store, "m")


@pytest.mark.same_bits
async def test_a_clean_stop_saves_replayed_records(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.open()
    try:
        learner = killed(store)
        before = recover(store, "m")
        assert (before.saved_lsn, before.replayed_steps) == (0, 3 * TICKS)
        after = await stopped(store)
        assert (after.saved_lsn, after.replayed_steps) == (TICKS, 0)
        assert after.lsn == before.lsn == TICKS
        np.testing.assert_array_equal(
            after.learner.state()[0]["model.parameters"], learner.state()[0]["model.parameters"]
        )
        written = [each.lsn for each in store.checkpoints("m")]
        await stopped(store)
        assert [each.lsn for each in store.checkpoints("m")] == written, "nothing was new"
    finally:
        store.close()
