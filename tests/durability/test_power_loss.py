"""Power failures: with `full`, acknowledged steps survive any loss of unsynced writes.

`kill -9` cannot show this: the operating system keeps what a killed process has written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bptt.config import Durability, Kept
from bptt.domain import ModelDefinition
from bptt.durability import Command, journal, Record, SqliteStore, Tick
from bptt.engine.records import apply_record, make_checkpoint
from bptt.engine.recovery import recover
from bptt.engine.replay import different, State
from bptt.errors import ServiceError
from bptt_core import Chunk, Learner, ModelSpec
from tests.support.power import PowerDisk

RUNS, FAILURES = 20, 10  # 200 power failures
OPERATIONS = 30
SPEC = ModelSpec(input_size=1, hidden_size=2, k1=1, k2=2)
KEPT = Kept(checkpoints=2, history_bytes=0)


@dataclass
class Run:
    """A server's operations on its store, and the model after each record."""

    disk: PowerDisk
    durability: Durability
    seed: int
    states: list[State] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._store = SqliteStore(self.disk.root / "data", self.durability, KEPT, disk=self.disk)
        self._definition = ModelDefinition("m", SPEC)
        self._learner = Learner(SPEC)
        self._step = 0

    def live(self) -> None:
        self._store.open()
        self._note_state()
        self._save()
        for _ in range(OPERATIONS):
            kind = self._random.integers(8)
            if kind == 0:
                self._save()
            elif kind == 1:
                self._other_model()
            elif kind == 2:
                self._append([Command("reset", {"stream_id": "s"})] if self._step else [])
            else:
                self._append([self._tick() for _ in range(self._random.integers(1, 4))])
        self._store.close()
        self.disk.told(("lsn", len(self.states) - 1))

    def _note_state(self) -> None:
        arrays, metadata = self._learner.state()
        self.states.append(({name: each.copy() for name, each in arrays.items()}, metadata))

    def _tick(self) -> Tick:
        steps = int(self._random.integers(1, 4))
        inputs = self._random.standard_normal((steps, 1)).astype(np.float32)
        self._step += steps
        return Tick.of([Chunk("s", self._step - steps, inputs)])

    def _append(self, bodies: Sequence[Tick | Command]) -> None:
        records = []
        for body in bodies:
            record = Record(len(self.states), body)
            records.append(record)
            self._learner = apply_record(self._learner, record).learner
            self._note_state()
        self._store.append("m", records)
        self.disk.told(("lsn", len(self.states) - 1))

    def _save(self) -> None:
        lsn = len(self.states) - 1
        self._store.save(make_checkpoint(self._definition, self._learner, lsn))
        self.disk.told(("lsn", lsn))

    def _other_model(self) -> None:
        definition = ModelDefinition("other", SPEC)
        self._store.save(make_checkpoint(definition, Learner(SPEC), 0))
        self.disk.told(("made", "other"))
        self._store.delete("other")
        self.disk.told(("deleted", "other"))


def what_is_wrong(run: Run, at: int, seed: int, target: Path) -> str:
    """Simulate a power failure after `at` operations, recover, and return the broken promise."""
    told = run.disk.fail(at, random.Random(seed), target)
    acknowledged = max((what for kind, what in told if kind == "lsn"), default=-1)
    store = SqliteStore(target / "data", run.durability)
    try:
        store.open()
        if acknowledged < 0:
            return ""
        models = store.models()
        if "m" not in models:
            return "the model is gone"
        if told[-1] == ("deleted", "other") and "other" in models:
            return "a deleted model came back"
        found = recover(store, "m")
        if found.damage is not None:
            return f"damaged: {found.damage}"
        if found.lsn < acknowledged:
            return f"{acknowledged} was acknowledged, and {found.lsn} is there"
        if different(found.learner.state(), run.states[found.lsn]):
            return f"another model after {found.lsn}"
        store.append("m", [Record(found.lsn + 1, Command("reset", {"stream_id": "s"}))])
    except ServiceError as error:
        return f"{type(error).__name__}: {error.message}"
    finally:
        store.close()
    return ""


def broken(
    tmp_path: Path, durability: Durability, ignored: Sequence[str] = (), until_found: bool = False
) -> list[str]:
    """The broken promises of 200 power failures; or of as many as it takes to find one."""
    found: list[str] = []
    for seed in range(RUNS):
        root = tmp_path / f"run-{seed}"
        root.mkdir()
        run = Run(PowerDisk(root, ignored), durability, seed)
        run.live()
        chance = random.Random(seed)
        for failure in range(FAILURES):
            at = chance.randrange(1, len(run.disk.log) + 1)
            wrong = what_is_wrong(run, at, chance.randrange(1 << 30), root / f"left-{failure}")
            if wrong:
                found.append(f"seed {seed}, failure {failure}, after {at}: {wrong}")
        if found and until_found:
            break
    return found


@pytest.fixture(autouse=True)
def _small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make SQLite checkpoint its log every few commits, so that failures also occur during that."""
    monkeypatch.setattr(journal, "LOG_PAGES", 8)


def test_with_full_no_acknowledged_step_is_lost(tmp_path: Path) -> None:
    assert broken(tmp_path, "full") == []


def test_with_process_a_power_failure_loses_steps_and_nothing_else(tmp_path: Path) -> None:
    found = broken(tmp_path, "process")
    lost = [each for each in found if "was acknowledged, and" in each]
    assert lost, "as `process` says, so the test above can fail"
    assert found == lost, "the model is one that the server had"


@pytest.mark.parametrize("ignored", ["write", "sync_file", "sync_folder", "sqlite"])
def test_no_sync_can_be_left_out(tmp_path: Path, ignored: str) -> None:
    assert broken(tmp_path, "full", (ignored,), until_found=True)
