"""`bptt replay`: the same journal under another spec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bptt.config import Kept
from bptt.durability import Command, SqliteStore
from bptt.engine import replay
from bptt_core import Batch, Chunk, ModelSpec
from tests.cli.conftest import run
from tests.support.data import learn, SPEC, tick_records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "data"
    bodies = tick_records(60)
    learn(folder, bodies)
    learn(
        folder,
        [*bodies[:20], Command("delete", {"stream_id": "s0"}), Command("restore", {"lsn": 10})],
        model_id="restored",
        save_every=5,
    )
    return folder


@pytest.mark.same_bits
def test_the_same_spec_from_the_beginning_gives_the_same_model(data: Path, tmp_path: Path) -> None:
    learner = learn(tmp_path / "again", tick_records(60))
    trial = replay.Trial("same", SPEC)
    found = replay.compare(SqliteStore(data), "m", [trial])
    assert found.from_beginning
    assert (found.first, found.last, found.steps, found.streams) == (1, 60, 360, 2)
    assert replay.different(trial.learner.state(), learner.state()) == []
    learned = sum(steps for steps, _, _ in trial.losses)
    assert learned == 2 * 178, "of each stream's 180 steps, all whose target and window are there"


def test_another_spec_is_compared_with_the_models_own(data: Path) -> None:
    done = run(
        "replay",
        str(data),
        *("--model", "m", "--set", "cell=lstm", "--set", "learning_rate=0.01"),
        "--json",
    )
    assert done.status == 0, done.err
    found = done.document
    assert (found["first_lsn"], found["last_lsn"], found["from_beginning"]) == (1, 60, True)
    own, other = found["trials"]
    assert own["spec"] == dict(SPEC.to_dict(), target_columns=[])
    assert (other["spec"]["cell"], other["spec"]["learning_rate"]) == ("lstm", 0.01)
    assert {**other["spec"], "cell": "rnn_tanh", "learning_rate": own["spec"]["learning_rate"]} == (
        own["spec"]
    )
    for trial in (own, other):
        assert trial["updates"] > 50
        for ratio in ("loss_ratio", "second_half_loss_ratio", "skill_ratio"):
            assert 0 < trial[ratio] < np.inf
    assert own["loss"] != other["loss"]


def test_people_see_both_side_by_side(data: Path) -> None:
    done = run("replay", str(data), "--model", "m", "--set", "hidden_size=4")
    assert done.status == 0, done.err
    assert "m: lsn 1 to 60, from the model's beginning; 360 steps of 2 streams" in done.out
    assert "as it is" in done.out
    assert "hidden_size=4" in done.out
    alone = run("replay", str(data), "--model", "m")
    assert alone.status == 0
    assert "hidden_size" not in alone.out


def test_losses_of_different_kinds_are_not_compared_in_silence(data: Path) -> None:
    done = run("replay", str(data), "--model", "m", "--set", "loss=squared_error")
    assert "losses of different kinds cannot be compared: huber, squared_error" in done.out


def test_a_journal_whose_beginning_is_gone_is_learned_from_where_it_begins(tmp_path: Path) -> None:
    bodies = tick_records(60)
    learn(tmp_path, bodies, kept=Kept(checkpoints=1, history_bytes=0), save_every=25)
    done = run("replay", str(tmp_path), "--model", "m", "--json")
    assert done.status == 0, done.err
    found = done.document
    assert (found["first_lsn"], found["last_lsn"], found["steps"]) == (51, 60, 60)
    assert not found["from_beginning"]
    assert found["trials"][0]["updates"] > 5


def test_commands_are_followed_as_far_as_a_fresh_model_can(data: Path) -> None:
    done = run("replay", str(data), "--model", "restored")
    assert done.status == 0, done.err
    assert "1 commands that go back to a checkpoint are left out" in done.out
    trial = replay.Trial("same", SPEC)
    replay.compare(SqliteStore(data), "restored", [trial])
    assert trial.learner.stream_ids() == ["s1"]


def test_settings_that_were_changed_are_changed_again_unless_they_are_what_is_tried(
    tmp_path: Path,
) -> None:
    change = Command("configure", {"learning_rate": 0.02})
    bodies = tick_records(30)
    learner = learn(tmp_path, [*bodies[:10], change, *bodies[10:]])
    own = replay.Trial("own", SPEC)
    other = replay.Trial(
        "other",
        replay.changed_spec(SPEC, {"learning_rate": 0.005}),
        frozenset({"learning_rate"}),
    )
    replay.compare(SqliteStore(tmp_path), "m", [own, other])
    assert replay.different(own.learner.state(), learner.state()) == []
    assert own.learner.figures.learning_rate == 0.02
    assert other.learner.figures.learning_rate < 0.02
    assert run("verify", str(tmp_path)).status == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("cell=gruu", "cell is gruu, but must be one of"),
        ("sell=gru", "unknown field 'sell'"),
        ("learning_rate=fast", "learning_rate is fast"),
        ("input_size=3", "input_size=3 cannot learn lsn 1"),
        ("cell", "'cell' must be FIELD=VALUE"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(data: Path, settings: str, words: str) -> None:
    done = run("replay", str(data), "--model", "m", "--set", settings)
    assert done.status in (1, 2)
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_late_targets_of_steps_before_the_beginning_are_left_out() -> None:
    """A chunk of a journal that begins in the middle of its streams is moved to a beginning."""
    spec = ModelSpec(task="regression", input_size=1, output_size=1, hidden_size=4, k1=2, k2=2)
    trial = replay.Trial("same", spec)
    x = np.arange(6, dtype=np.float32).reshape(6, 1)
    trial.apply(Batch.of([Chunk("s", 100, x, x)]))
    trial.apply(Batch.of([Chunk("s", 106, x, x)]))
    assert trial.learner.next_step("s") == 12
