"""`bptt learn` again and again: what a stream remembers, and rows that cannot be read."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from pathlib import Path

from bptt.durability import Checkpoint, SqliteStore
from tests.cli.conftest import BPTT, Bptt
from tests.rpc.harness import Harness, harness

CASES = Path(__file__).parent / "data" / "cases"
TIMED = (CASES / "c22b_trunc_number.csv").read_text()
HEADER = TIMED.splitlines(keepends=True)[0]
ROWS = TIMED.splitlines(keepends=True)[1:801]


def table(rows: list[str]) -> str:
    return HEADER + "".join(rows)


def without_times(rows: list[str]) -> str:
    return "".join(line.partition(",")[2] for line in [HEADER, *rows])


def learned(bptt: Bptt, file: str, name: str, *options: str, stdin: str | None = None) -> int:
    """Steps that a run has learned."""
    done = bptt("learn", file, "--model", name, "--json", *options, stdin=stdin)
    assert done.status == 0, done.err
    steps: int = done.lines[-1]["steps"]
    return steps


# ---------------------------------------------------------------------- files


def test_a_rotated_file_of_the_same_name_is_learned_after_the_first(bptt: Bptt, name: str) -> None:
    first = bptt("learn", str(CASES / "rotated/day1/sensor.csv"), "--model", name)
    assert "1,440 steps learned on stream sensor" in first.out
    second = bptt("learn", str(CASES / "rotated/day2/sensor.csv"), "--model", name)
    assert second.status == 0, second.err
    assert "later than the last of them (2024-01-01 23:59:00)" in second.err
    assert "1,441 steps learned on stream sensor" in second.out
    assert "next step 2,881" in second.out
    back = bptt("learn", str(CASES / "rotated/day1/sensor.csv"), "--model", name)
    assert back.status == 1
    assert "line 2 of " in back.err
    assert "(2,881 steps up to 2024-01-03 00:00:00)" in back.err
    for option in ("--append", "--stream", "--by-number"):
        assert option in back.err
    again = bptt("learn", str(CASES / "rotated/day2/sensor.csv"), "--model", name)
    assert "nothing new" in again.err


def test_an_edited_file_is_told_and_other_rows_are_refused(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(without_times(ROWS[:200]))
    assert learned(bptt, str(path), name) == 200
    edited = [*ROWS[:250]]
    edited[40] = edited[40].replace(",2", ",1")
    path.write_text(without_times(edited))
    told = bptt("learn", str(path), "--model", name)
    assert "note: among lines 34 to 65 of " in " ".join(told.err.split())
    assert "50 steps learned" in told.out
    path.write_text(without_times(ROWS[300:700]))
    refused = bptt("learn", str(path), "--model", name)
    assert refused.status == 1
    assert refused.err.splitlines()[-1].startswith(f"bptt: line 2 of {path} is a row other than")
    assert bptt("predict", "--model", name, "--stream", "a", "--json").document["next_step"] == 250
    assert learned(bptt, str(path), name, "--by-number") == 150
    assert learned(bptt, str(path), name, "--append") == 400
    twice = bptt("learn", str(path), "--model", name, "--append")
    assert "note: stream a has the first 400 rows" in " ".join(twice.err.split())
    both = bptt("learn", str(path), "--model", name, "--append", "--by-number")
    assert both.status == 2


def test_a_file_whose_head_was_cut_off_goes_on(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(without_times(ROWS[:200]))
    assert learned(bptt, str(path), name) == 200
    path.write_text(without_times(ROWS[150:230]))
    done = bptt("learn", str(path), "--model", name)
    assert "which end with row 50 of" in done.err
    assert "30 steps learned" in done.out


def test_each_series_of_a_file_goes_on(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    lines = [f"{i // 2 % 60:03d};{'ab'[i % 2]};{i % 7}.5" for i in range(80)]
    path.write_text("row;sensor;v\n" + "\n".join(lines[:60]) + "\n")
    options = ("--stream-column", "sensor", "--columns", "v", "--no-time")
    assert learned(bptt, str(path), name, *options) == 60
    path.write_text("row;sensor;v\n" + "\n".join(lines) + "\n")
    done = bptt("learn", str(path), "--model", name, *options)
    for stream in "ab":
        assert f"stream {stream} has 30 steps: continuing after them" in done.err
        assert f"10 steps learned on stream {stream}" in done.out


def test_a_text_that_was_edited_is_refused(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two three\n" * 40)
    assert learned(bptt, str(path), name, "--text") == 560
    path.write_text("one two three\n" * 41)
    assert learned(bptt, str(path), name, "--text") == 14
    path.write_text("two three four\n" * 60)
    refused = bptt("learn", str(path), "--model", name, "--text")
    assert refused.status == 1
    assert "line 1 of" in refused.err


# ---------------------------------------------------------------------- standard input


def test_standard_input_again_skips_what_is_known_by_time(bptt: Bptt, name: str) -> None:
    assert learned(bptt, "-", name, stdin=table(ROWS[:300])) == 300
    again = bptt("learn", "-", "--model", name, stdin=table(ROWS[:300]))
    assert "rows up to 2024-01-01 04:59:00 already" in " ".join(again.err.split())
    assert "300 rows skipped" in again.err
    assert "nothing new for stream stdin" in again.err
    assert learned(bptt, "-", name, stdin=table(ROWS[250:400])) == 100
    assert learned(bptt, "-", name, "--append", stdin=table(ROWS[:10])) == 10


def test_standard_input_without_times_skips_what_is_known_by_digest(bptt: Bptt, name: str) -> None:
    assert learned(bptt, "-", name, stdin=without_times(ROWS[:300])) == 300
    assert learned(bptt, "-", name, stdin=without_times(ROWS[:340])) == 40
    assert learned(bptt, "-", name, stdin=without_times(ROWS[:100])) == 0
    other = bptt("learn", "-", "--model", name, stdin=without_times(ROWS[400:420]))
    assert "has 340 other rows" in " ".join(other.err.split())
    assert "20 steps learned" in other.out


def test_bad_rows_of_a_live_input_are_left_out_counted_and_shown(bptt: Bptt, name: str) -> None:
    bad = [
        "2024-01-01 00:20:30,oops,50\n",
        "2024-01-01 00:20:31,1\n",
        '2024-01-01 00:20:32,"21.0"x,50\n',
    ]
    text = table([*ROWS[:20], HEADER, *bad, *ROWS[20:50]])
    done = bptt("learn", "-", "--model", name, stdin=text)
    assert done.status == 0, done.err
    assert "50 steps learned" in done.out
    assert "left out: line 23, column 'temp' of standard input is 'oops'" in done.err
    assert "left out: line 24 of standard input has 2 values" in done.err
    assert "left out: line 25 of standard input holds a quote" in done.err
    assert "3 rows left out because they cannot be read" in done.err
    assert "repeats the header: 1" in done.err
    stopped = bptt("learn", "-", "--model", f"{name}-2", "--bad-rows", "2", stdin=text)
    assert stopped.status == 1
    assert "3 of the last 23 rows cannot be read, but --bad-rows leaves out at most 2" in (
        stopped.err
    )
    strict = bptt("learn", "-", "--model", f"{name}-3", "--bad-rows", "0", stdin=text)
    assert strict.err.splitlines()[-1].startswith("bptt: line 23, column 'temp'")
    events = bptt("learn", "-", "--model", f"{name}-4", "--json", stdin=text).lines
    assert [each["event"] for each in events].count("bad_row") == 3
    assert events[-1]["rows_unreadable"] == 3


def test_bad_rows_of_a_file_are_left_out_if_told(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(table([*ROWS[:20], "2024-01-01 00:20:30,oops,50\n", *ROWS[20:50]]))
    refused = bptt("learn", str(path), "--model", name)
    assert refused.status == 1
    assert "line 22, column 'temp'" in refused.err
    done = bptt("learn", str(path), "--model", name, "--bad-rows", "1")
    assert done.status == 0, done.err
    assert "left out because they cannot be read: 1 row, the first: line 22" in done.err
    assert "50 steps learned" in done.out


# ---------------------------------------------------------------------- classes


def test_new_classes_are_met_before_anything_is_learned(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    def faults(*kinds: str) -> str:
        path = tmp_path / "f.csv"
        path.write_text(
            "a,fault\n" + "".join(f"{i}.5,{kinds[i % len(kinds)]}\n" for i in range(60))
        )
        return str(path)

    options = ("--task", "classification", "--targets", "fault")
    assert learned(bptt, faults("ok", "worn"), name, *options) == 60
    refused = bptt("learn", faults("ok", "broken"), "--model", name, "--stream", "b", *options)
    assert refused.status == 1
    assert "line 3, column 'fault'" in refused.err
    assert "'broken', but the classes are ok, worn" in refused.err
    assert "--new-classes" in refused.err
    no_room = bptt("learn", faults("ok", "broken"), "--model", name, *options, "--new-classes")
    assert no_room.status == 1
    assert "needs the class 'other'" in no_room.err
    with_room = f"{name}-room"
    assert learned(bptt, faults("ok", "worn"), with_room, *options, "--new-classes") == 60
    more = faults("ok", "broken", "worn")
    refused = bptt("learn", more, "--model", with_room, "--stream", "b", *options)
    assert "--new-classes learns it as 'other'" in refused.err
    done = bptt("learn", more, "--model", with_room, "--stream", "b", *options, "--new-classes")
    assert done.status == 0, done.err
    assert "learned as class 'other': 'broken' (20)" in done.err
    forecast = bptt("learn", more, "--model", f"{name}-3", "--new-classes")
    assert "--new-classes applies to classification" in forecast.err


def test_a_new_class_of_a_live_input_is_a_row_that_is_left_out(bptt: Bptt, name: str) -> None:
    options = ("--task", "classification", "--targets", "fault", "--classes", "ok,worn")
    text = "a,fault\n" + "".join(f"{i}.5,{'ok' if i % 3 else 'worn'}\n" for i in range(200_000))
    late = f"{text}1.5,broken\n2.5,ok\n"
    done = bptt("learn", "-", "--model", name, *options, "--hidden-size", "1", stdin=late)
    assert done.status == 0, done.err
    assert "left out: line 200002, column 'fault'" in done.err
    assert "200,001 steps learned" in done.out


# ---------------------------------------------------------------------- killed, and recovering


def killed(bptt: Bptt, name: str, *, rows: str) -> None:
    """Feed a learner in pieces, and kill it with signal 9 while it learns."""
    command = [*BPTT, "learn", "-", "--model", name, "--json", "--address", bptt.server.address]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(rows)
    process.stdin.flush()
    while '"progress"' not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.wait(30)
    process.stdin.close()
    process.stdout.close()


def test_a_learner_that_is_killed_learns_each_row_once(bptt: Bptt, name: str) -> None:
    rows = [f"2024-01-01T00:00:00.{i:06d},{i % 37},{i % 11}.5\n" for i in range(200_000)]
    text = "time,a,b\n" + "".join(rows)
    options = ("--hidden-size", "4")
    calm = f"{name}-calm"
    assert learned(bptt, "-", calm, *options, stdin=text) == 200_000
    assert learned(bptt, "-", name, *options, stdin="".join(["time,a,b\n", *rows[:100]])) == 100
    for _ in range(2):
        killed(bptt, name, rows=text)
    last = bptt("learn", "-", "--model", name, "--json", stdin=text).lines[-1]
    assert last["next_step"] == 200_000
    assert last["rows_skipped"] > 100
    predictions = [
        bptt("predict", "--model", model, "--stream", "stdin", "--json").document["predictions"]
        for model in (name, calm)
    ]
    assert predictions[0] == predictions[1]


class HeldStore(SqliteStore):
    """Loads checkpoints once it may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_load = threading.Event()

    def load(self, model_id: str, lsn: int) -> Checkpoint:
        assert self.may_load.wait(60)
        return super().load(model_id, lsn)


async def test_a_model_that_is_recovered_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(table(ROWS[:100]))
    store = SqliteStore(tmp_path / "data")
    store.open()
    async with harness(store=store) as server:
        first = await start(server, path)
        assert await first.wait() == 0
    store.close()
    store = HeldStore(tmp_path / "data")
    store.open()
    path.write_text(table(ROWS[:120]))
    async with harness(store=store) as server:
        recovery = asyncio.create_task(server.registry.recover())
        waiting = await start(server, path)
        assert waiting.stderr is not None
        line = b""
        while b"waiting until it can learn" not in line:
            line = await waiting.stderr.readline()
            assert line, "it has ended"
        assert b"model m is recovering" in line
        store.may_load.set()
        await recovery
        out, err = await waiting.communicate()
        assert waiting.returncode == 0, err
        assert b"20 steps learned" in out
    store.close()


async def start(server: Harness, path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *BPTT,
        *("learn", str(path), "--model", "m", "--address", server.rpc.address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
