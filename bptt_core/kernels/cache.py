"""Keeps compiled kernels on disk.

Each file has a seal: a checksum, and a digest of all that its code depends on. A file that is cut
short, damaged, or of other sources, versions or processors is as good as none: the kernel is
compiled again. Numba's own cache raises an error for such a file, notices changes in a function's
own file only, and falls back to a folder beside the sources, so that old code runs after an update.

Each process locks the folder that it uses, so that none is removed while it is in use.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

try:
    import fcntl
except ImportError:  # pragma: no cover - not POSIX: nothing is locked, and nothing removed
    LOCKS = False
else:
    LOCKS = True

MAGIC = b"bptt kernel 1\n"
SEAL_BYTES = hashlib.sha256().digest_size
LOCK = "in-use"  # file in each folder that processes lock
FOLDERS_KEPT = 16  # last used: as many versions take turns on one machine without compiling again
DAYS_KEPT = 30.0  # since the last use
DAY_SECONDS = 86_400.0
OPENED_MOST = 3  # attempts to lock a folder that other processes are removing


def digest() -> str:
    """Digest of all sources and versions that compiled code depends on."""
    found = hashlib.sha256()
    for version in (sys.version, numba.__version__, llvmlite.__version__):
        found.update(version.encode() + b"\0")
    core = Path(__file__).parents[1]
    for source in sorted(core.rglob("*.py")):
        found.update(source.read_bytes())
    return found.hexdigest()


def root_folder() -> Path | None:
    """NUMBA_CACHE_DIR, or else the user's cache; None if there is no home folder either."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "bptt"
    except RuntimeError:
        return None


class Folder:
    """The folder of the kernels that this version of the core compiled."""

    def __init__(self, root: Path | None) -> None:
        self.digest = digest()
        self.root = root
        self.path = None if root is None else root / f"kernels-{self.digest[:16]}"
        self._lock: int | None = None

    def read(self, name: str, key: bytes) -> bytes | None:
        """The contents of a file; None if there is none, or none of this key that is whole."""
        if self.path is None:
            return None
        try:
            self._hold()
            sealed = (self.path / name).read_bytes()
        except OSError:
            return None
        head, contents = MAGIC + self._seal(key), sealed[len(MAGIC) + 2 * SEAL_BYTES :]
        if sealed != head + hashlib.sha256(contents).digest() + contents:
            return None
        return contents

    def write(self, name: str, key: bytes, contents: bytes) -> None:
        """Write a file as a whole, and remove old folders.

        Raises:
            OSError: it cannot be written; a file of that name is as before.
        """
        if self.path is None:
            raise OSError("there is no home folder; set NUMBA_CACHE_DIR")
        self.path.mkdir(parents=True, exist_ok=True)
        self._hold()
        aside = self.path / f"{name}.{uuid.uuid4().hex[:16]}.tmp"
        checksum = hashlib.sha256(contents).digest()
        try:
            aside.write_bytes(MAGIC + self._seal(key) + checksum + contents)
            aside.replace(self.path / name)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        remove_old(self.path)

    def _seal(self, key: bytes) -> bytes:
        return hashlib.sha256(self.digest.encode() + key).digest()

    def _hold(self) -> None:
        """Keep the folder from being removed while this process lives, if it exists."""
        if self.path is None or self._lock is not None or not LOCKS or not self.path.is_dir():
            return
        for _ in range(OPENED_MOST):
            lock = _locked(self.path / LOCK, fcntl.LOCK_SH)
            if lock is not None:
                self._lock = lock
                break
            if os.access(self.path, os.W_OK):  # else nobody writes the lock, nor removes the folder
                self.path.mkdir(parents=True, exist_ok=True)


def _locked(path: Path, how: int) -> int | None:
    """A descriptor of the file with this lock; None if another process prevents it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # else it was removed meanwhile
            os.utime(path)
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def remove_old(used: Path, now: float | None = None) -> None:
    """Remove folders of other versions that nobody uses, and remains of broken-off writes.

    Kept are folders that a process has locked, and the FOLDERS_KEPT last used ones if they were
    used in the last DAYS_KEPT days. What cannot be removed stays.

    Args:
        used: the folder in use; its siblings are removed.
        now: seconds since the epoch; None: the present.
    """
    if not LOCKS:  # pragma: no cover - not POSIX
        return
    oldest = (time.time() if now is None else now) - DAYS_KEPT * DAY_SECONDS
    others = sorted(_last_uses(used), reverse=True)
    for place, (last, folder) in enumerate(others):
        if place >= FOLDERS_KEPT - 1 or last < oldest:
            _remove(folder)
    for aside in used.glob("*.tmp"):
        try:
            if aside.stat().st_mtime < oldest:
                aside.unlink()
        except OSError:
            continue


def _last_uses(used: Path) -> Iterator[tuple[float, Path]]:
    for folder in used.parent.glob("kernels-*"):
        try:
            if folder != used and folder.is_dir() and not folder.is_symlink():
                places = [each for each in (folder, folder / LOCK) if each.exists()]
                yield max(each.stat().st_mtime for each in places), folder
        except OSError:  # pragma: no cover - removed meanwhile
            continue


def _remove(folder: Path) -> None:
    """Remove a folder unless a process has locked it."""
    lock = _locked(folder / LOCK, fcntl.LOCK_EX)
    if lock is None:
        return
    try:
        aside = folder.with_name(f"removed-{folder.name}-{uuid.uuid4().hex[:16]}")
        folder.rename(aside)  # whoever comes now makes a new one
        shutil.rmtree(aside, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(lock)


class KernelCache(_Cache):  # type: ignore[misc]
    """The files of one kernel, one for each signature and processor; Numba calls it."""

    def __init__(
        self, function: Callable[..., Any], folder: Folder, not_kept: Callable[[str], None]
    ) -> None:
        module = function.__module__.rpartition(".")[2]
        self._kernel = f"{module}.{function.__qualname__}"
        self._folder = folder
        self._not_kept = not_kept

    @property
    def cache_path(self) -> str:
        """The folder."""
        return str(self._folder.path)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel; None if there is none of these argument types."""
        target_context.refresh()
        name, key = self._place(sig, target_context.codegen())
        contents = self._folder.read(name, key)
        if contents is None:
            return None
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(contents))  # noqa: S301
        except Exception:  # noqa: BLE001 - whatever is wrong with it: it is compiled again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel; tell `not_kept` if that cannot be done."""
        name, key = self._place(sig, data.codegen)
        try:
            self._folder.write(name, key, dumps(data._reduce()))
        except OSError as error:
            self._not_kept(str(error))

    def _place(self, sig: Any, codegen: Any) -> tuple[str, bytes]:
        """The name of the file, and the key of its contents."""
        key = repr((self._kernel, [str(each) for each in sig], codegen.magic_tuple())).encode()
        return f"{self._kernel}-{hashlib.sha256(key).hexdigest()[:16]}.kernel", key

    def enable(self) -> None:
        """It cannot be disabled."""

    def disable(self) -> None:
        """As `enable`."""

    def flush(self) -> None:
        """Keep everything: a file of other sources is not used."""
