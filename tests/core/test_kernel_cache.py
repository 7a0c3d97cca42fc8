"""The kernel cache: damaged, foreign and unwritable files and folders, and old folders."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bptt_core.kernels import cache
from bptt_core.kernels.cache import DAY_SECONDS, DAYS_KEPT, Folder, FOLDERS_KEPT, LOCK, remove_old
from tests.support.jit import PLAIN_PYTHON

CORE = Path(cache.__file__).parents[1]
compiles = pytest.mark.skipif(PLAIN_PYTHON, reason="nothing is compiled in this run")

# One small kernel, its result, and what a listener is told.
PROGRAM = """
import numpy as np
from bptt_core.compilation import listening
told = []
with listening(lambda event: told.append(f"{event.what} {event.detail}".strip())):
    from bptt_core.kernels.linear import add_column_sums
    out = np.zeros(3)
    add_column_sums(np.ones((2, 3)), out)
print(*out, told)
"""
COMPILED = "2.0 2.0 2.0 ['begun', 'compiled']\n"
LOADED = "2.0 2.0 2.0 []\n"
NOT_KEPT = re.compile(r"2\.0 2\.0 2\.0 \['begun', 'compiled', ['\"]not kept ")

# Root may write everywhere, unless it gives this up.
UNPRIVILEGED = (
    ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)


def run(
    folder: Path | str | None,
    prepare: Callable[[], None] | None = None,
    before: tuple[str, ...] = (),
    **more: str,
) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    if folder is not None:
        environment["NUMBA_CACHE_DIR"] = str(folder)
    done = subprocess.run(
        [*before, sys.executable, "-B", "-c", PROGRAM],
        capture_output=True, text=True, check=False, env=environment | more,
        preexec_fn=prepare, cwd=CORE.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("kernels-*/*.kernel"))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut in the head": lambda whole: whole[:9],
    "cut in the seal": lambda whole: whole[:40],
    "cut at its end": lambda whole: whole[:-1],
    "half": lambda whole: whole[: len(whole) // 2],
    "a page of zeros": lambda whole: whole[:1000] + bytes(512) + whole[1512:],
    "one bit": lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
    "longer": lambda whole: whole + b"x",
    "a pickle of Numba's": lambda whole: (
        b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00\x8c\x060.61."
    ),
    "text": lambda whole: b"<html>404</html>\n",
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    assert run(folder) == COMPILED
    assert run(folder) == LOADED
    assert len(files(folder)) == 1
    return folder


@compiles
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_counts_as_none(filled: Path, damage: str) -> None:
    """Read directly: whatever is read is compiled again, which another test shows."""
    [path] = files(filled)
    whole = path.read_bytes()
    folder, name, key = Folder(filled), "own.kernel", b"any key: the seal covers it"
    folder.write(name, key, whole)
    assert folder.read(name, key) == whole
    own = path.with_name(name)
    own.write_bytes(DAMAGES[damage](own.read_bytes()))
    try:
        assert folder.read(name, key) is None
    finally:
        own.unlink()


@compiles
def test_a_damaged_kernel_is_compiled_again_and_replaced(filled: Path) -> None:
    [path] = files(filled)
    whole = path.read_bytes()
    for damage in ("empty", "half", "a pickle of Numba's"):
        path.write_bytes(DAMAGES[damage](whole))
        assert run(filled) == COMPILED
        assert run(filled) == LOADED
    path.unlink()
    path.mkdir()  # not even a file: nothing can be kept, but it runs
    assert NOT_KEPT.match(run(filled))
    path.rmdir()
    path.write_bytes(whole)
    assert run(filled) == LOADED


def test_the_folder_is_the_named_one_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/learner")
    assert cache.root_folder() == Path("/home/learner/.cache/bptt")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache.root_folder() == Path("/caches/bptt")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/named")
    assert cache.root_folder() == Path("/named")


def test_without_a_folder_nothing_is_read_or_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache.root_folder() is None
    nowhere = Folder(None)
    assert nowhere.read("a.kernel", b"") is None
    with pytest.raises(OSError, match="set NUMBA_CACHE_DIR"):
        nowhere.write("a.kernel", b"", b"code")


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.read("a.kernel", b"") is None
    folder.write("a.kernel", b"", b"code")
    assert folder.path is not None
    (folder.path / "b.kernel").mkdir()  # a file cannot take its place
    with pytest.raises(OSError, match="directory"):
        folder.write("b.kernel", b"", b"code")
    assert folder.read("b.kernel", b"") is None
    assert folder.read("a.kernel", b"") == b"code"
    assert {each.name for each in folder.path.iterdir()} == {LOCK, "a.kernel", "b.kernel"}


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    """Another process removes it between its creation and the lock."""
    folder = Folder(tmp_path)
    assert folder.path is not None
    folder.path.mkdir()
    (folder.path / LOCK).mkdir()  # no file, so it cannot be locked
    assert folder.read("a.kernel", b"") is None
    assert folder._lock is None
    (folder.path / LOCK).rmdir()
    folder.write("a.kernel", b"", b"code")
    assert folder._lock is not None


def test_what_cannot_be_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, link = aged(tmp_path, "old", DAYS_KEPT + 1), tmp_path / "kernels-link"
    link.symlink_to(old)
    mine = Folder(tmp_path)
    mine.write("a.kernel", b"", b"code")
    assert link.is_symlink()
    stuck = aged(tmp_path, "stuck", DAYS_KEPT + 1)
    assert mine.path is not None
    remains = mine.path / "b.kernel.1.tmp"
    remains.mkdir()  # unlink fails
    os.utime(remains, (0, 0))

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    remove_old(mine.path)
    assert stuck.exists()
    assert remains.exists()


def test_a_file_of_another_kernel_or_version_counts_as_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("a.kernel", b"signature of a", b"code")
    assert folder.path is not None
    copied = folder.path / "b.kernel"
    copied.write_bytes((folder.path / "a.kernel").read_bytes())
    assert folder.read("b.kernel", b"signature of b") is None
    assert folder.read("a.kernel", b"signature of a") == b"code"
    folder.digest = "of other sources"
    assert folder.read("a.kernel", b"signature of a") is None


def test_a_contents_that_cannot_be_rebuilt_is_none(tmp_path: Path) -> None:
    """Whole, but of a Numba whose number did not change with its format."""
    pytest.importorskip("numba")
    from bptt_core.kernels.cache import KernelCache

    class Codegen:
        def magic_tuple(self) -> tuple[str, ...]:
            return ("processor",)

    class Context:
        def refresh(self) -> None:
            pass

        def codegen(self) -> Codegen:
            return Codegen()

    folder = Folder(tmp_path)
    kept = KernelCache(test_a_damaged_file_counts_as_none, folder, pytest.fail)
    name, key = kept._place((), Codegen())
    for contents in (b"", b"not a pickle", b"\x80\x04N."):
        folder.write(name, key, contents)
        assert kept.load_overload((), Context()) is None


@compiles
def test_a_folder_that_is_a_file_is_told_and_nothing_is_kept(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    for folder in (taken, taken / "below"):
        told = run(folder)
        assert NOT_KEPT.match(told), told
        assert str(taken) in told
    assert taken.read_text() == ""


@compiles
@pytest.mark.skipif(
    bool(UNPRIVILEGED) and shutil.which("setpriv") is None, reason="root, and no setpriv"
)
def test_a_folder_that_cannot_be_written_leaves_nothing_beside_the_sources(
    tmp_path: Path,
) -> None:
    copied, locked = tmp_path / "copied", tmp_path / "locked"
    shutil.copytree(CORE, copied / CORE.name, ignore=shutil.ignore_patterns("__pycache__"))
    locked.mkdir(mode=0o555)
    before = sorted(copied.rglob("*"))
    for _ in range(2):
        told = run(locked, None, UNPRIVILEGED, PYTHONPATH=str(copied), PYTHONSAFEPATH="1")
        assert NOT_KEPT.match(told), told
        assert "Permission denied" in told
    assert sorted(copied.rglob("*")) == before
    assert not list(locked.iterdir())


@compiles
def test_without_a_home_folder_nothing_is_kept(tmp_path: Path) -> None:
    """A user whom the system does not know, as in a container with an arbitrary number."""
    program = PROGRAM.replace(
        "import numpy", "import pathlib\n"
        "def no_home(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = no_home\nimport numpy", 1
    )  # fmt: skip
    without = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in without}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment,
        check=True,
    )  # fmt: skip
    expected = "2.0 2.0 2.0 ['begun', 'compiled', 'not kept there is no home folder; set NUMBA_CAC"
    assert done.stdout.startswith(expected)


@compiles
def test_a_full_disk_keeps_nothing_half(tmp_path: Path) -> None:
    """A bound on the size of files stands for it: the write fails after its first bytes."""

    def bound() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    told = run(tmp_path, bound)
    assert NOT_KEPT.match(told), told
    assert "File too large" in told
    [folder] = tmp_path.iterdir()
    assert [each.name for each in folder.iterdir()] == [LOCK]
    assert run(tmp_path) == COMPILED


def aged(root: Path, name: str, days: float) -> Path:
    folder = root / f"kernels-{name}"
    folder.mkdir()
    for path in (folder / LOCK, folder / "a.kernel", folder):
        if path != folder:
            path.touch()
        os.utime(path, (time.time() - days * DAY_SECONDS,) * 2)
    return folder


def test_old_folders_are_removed_and_used_ones_stay(tmp_path: Path) -> None:
    old, used = aged(tmp_path, "old", DAYS_KEPT + 1), aged(tmp_path, "used", DAYS_KEPT + 1)
    recent = aged(tmp_path, "recent", DAYS_KEPT - 1)
    numbas = tmp_path / "kernels-numba" / "module"  # from before there were locks
    numbas.mkdir(parents=True)
    os.utime(numbas.parent, (0, 0))
    stranger = tmp_path / "models"
    stranger.mkdir()
    os.utime(stranger, (0, 0))
    mine = Folder(tmp_path)
    with (used / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        mine.write("a.kernel", b"", b"code")
        assert mine.path is not None
        names = {each.name for each in tmp_path.iterdir()}
        assert names == {used.name, recent.name, stranger.name, mine.path.name}
    remove_old(mine.path)
    assert not used.exists()
    assert not old.exists()


def test_of_many_folders_the_last_used_ones_stay(tmp_path: Path) -> None:
    made = [aged(tmp_path, f"{day:02d}", day) for day in range(1, FOLDERS_KEPT + 4)]
    mine = Folder(tmp_path)
    mine.write("a.kernel", b"", b"code")
    assert [each for each in made if each.exists()] == made[: FOLDERS_KEPT - 1]


def test_a_folder_that_a_process_reads_is_in_use(tmp_path: Path) -> None:
    """A second process removes it only after the first has ended."""
    mine = Folder(tmp_path)
    mine.write("a.kernel", b"", b"code")
    assert mine.path is not None
    program = (
        "import sys; from pathlib import Path; from bptt_core.kernels.cache import Folder;"
        f"print(Folder(Path({str(tmp_path)!r})).read('a.kernel', b''), flush=True);"
        "sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"b'code'\n"
    assert mine._lock is not None
    os.close(mine._lock)
    other, later = tmp_path / "kernels-other", time.time() + 2 * DAYS_KEPT * DAY_SECONDS
    remove_old(other, later)
    assert mine.path.exists()
    reader.stdin.close()
    assert reader.wait() == 0
    reader.stdout.close()
    remove_old(other, later)
    assert not mine.path.exists()


def test_remains_of_a_broken_off_write_are_removed(tmp_path: Path) -> None:
    mine = Folder(tmp_path)
    mine.write("a.kernel", b"", b"code")
    assert mine.path is not None
    remains, fresh = mine.path / "b.kernel.1.tmp", mine.path / "c.kernel.2.tmp"
    for each in (remains, fresh):
        each.write_bytes(b"half")
    os.utime(remains, (0, 0))
    mine.write("d.kernel", b"", b"code")
    assert not remains.exists()
    assert fresh.exists()
