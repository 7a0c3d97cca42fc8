"""A disk that loses power: it records what a store does, and builds what a power failure leaves.

What was not synced when the power failed is kept or lost operation by operation: each 512-byte
sector of a write, each change of a file's size, each change of a folder's names. A sync of a file
makes its contents durable and nothing else; a sync of a folder, the names in it.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import apsw

from bptt.durability.files import Disk, Piece

SECTOR = 512  # bytes that a disk writes as one


@dataclass(frozen=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    file: int
    size: int


@dataclass(frozen=True)
class Names:
    """Changes in one folder that happen together, as a rename's do."""

    folder: int
    changes: dict[str, int | None]


@dataclass(frozen=True)
class Sync:
    """Of a file or of a folder."""

    what: int


@dataclass(frozen=True)
class Told:
    """The store has returned: everything it promised to keep is durable."""

    what: Any


Operation = Write | Resize | Names | Sync | Told


class PowerDisk(Disk):
    """A disk on which a store works as on any other, and whose operations are recorded.

    Args:
        root: folder for everything; must exist.
        ignored: syncs that are left out: "write" of files, "sync_file", "sync_folder", "sqlite".
    """

    def __init__(self, root: Path, ignored: Sequence[str] = ()) -> None:
        self.root = root.absolute()
        self.log: list[Operation] = []
        self._ignored = ignored
        self._folders: dict[int, dict[str, int]] = {0: {}}
        self._new = 1
        self._vfs = _Vfs(self)

    def told(self, what: Any) -> None:
        """Note what the store has promised by now."""
        self.log.append(Told(what))

    # ------------------------------------------------------------------ names

    def _place(self, path: Path) -> tuple[int, str]:
        """The folder that holds a path, and the name in it."""
        folder = 0
        parts = path.absolute().relative_to(self.root).parts
        for name in parts[:-1]:
            folder = self._folders[folder][name]
        return folder, parts[-1]

    def _known(self, path: Path) -> int | None:
        if path.absolute() == self.root:
            return 0
        folder, name = self._place(path)
        return self._folders[folder].get(name)

    def _rename(self, folder: int, changes: dict[str, int | None]) -> None:
        self.log.append(Names(folder, changes))
        for name, what in changes.items():
            if what is None:
                self._folders[folder].pop(name, None)
            else:
                self._folders[folder][name] = what

    def file(self, path: Path) -> int:
        """The number of a file, which is created if it is not known."""
        known = self._known(path)
        if known is None:
            folder, name = self._place(path)
            known, self._new = self._new, self._new + 1
            self._rename(folder, {name: known})
        return known

    def sync(self, kind: str, what: int) -> None:
        """Make a file or folder durable, unless syncs of that kind are left out."""
        if kind not in self._ignored:
            self.log.append(Sync(what))

    # ------------------------------------------------------------------ see Disk

    def connect(self, path: Path, mode: str) -> sqlite3.Connection:
        flags = {"ro": apsw.SQLITE_OPEN_READONLY, "rw": apsw.SQLITE_OPEN_READWRITE}
        wanted = flags.get(mode, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        return cast(sqlite3.Connection, _Connection(str(path.absolute()), wanted, self._vfs.name))

    def write(self, path: Path, pieces: Iterable[Piece]) -> None:
        data = b"".join(pieces)
        path.write_bytes(data)
        file = self.file(path)
        self.log += [Resize(file, 0), Write(file, 0, data)]
        self.sync("write", file)

    def overwrite(self, descriptor: int, path: Path, data: bytes) -> None:
        super().overwrite(descriptor, path, data)
        self.log.append(Write(self.file(path), 0, data))

    def sync_file(self, path: Path) -> None:
        self.sync("sync_file", self.file(path))

    def sync_folder(self, folder: Path) -> None:
        known = self._known(folder)
        assert known is not None, folder
        self.sync("sync_folder", known)

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for each in (*reversed(path.absolute().relative_to(self.root).parents), None):
            self._make(self.root / each if each is not None else path)

    def _make(self, path: Path) -> None:
        if self._known(path) is None:
            self._folders[self.file(path)] = {}

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)
        (folder, old), (other, new) = self._place(source), self._place(target)
        assert folder == other, "the store renames within a folder"
        self._rename(folder, {old: None, new: self._folders[folder][old]})

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        folder, name = self._place(path)
        if name in self._folders[folder]:
            self._rename(folder, {name: None})

    def remove_tree(self, path: Path) -> None:
        for each in sorted(path.iterdir()):
            self.unlink(each)
        shutil.rmtree(path)
        self.unlink(path)

    # ------------------------------------------------------------------ the failure

    def fail(self, at: int, chance: random.Random, target: Path) -> list[Any]:
        """Build in `target` what a power failure after `at` operations may leave.

        Returns:
            Everything the store had promised to keep until then.
        """
        disk = _Remains(chance, frozenset(self._folders))
        told = []
        for operation in self.log[:at]:
            if isinstance(operation, Told):
                told.append(operation.what)
            else:
                disk.take(operation)
        disk.lose()
        disk.lay_out(0, target)
        return told


@dataclass
class _Remains:
    """What of the recorded operations is durable, and what waits for a sync."""

    chance: random.Random
    folders: frozenset[int]
    contents: dict[int, bytearray] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    waiting: dict[int, list[Operation]] = field(default_factory=dict)

    def take(self, operation: Operation) -> None:
        if isinstance(operation, Sync):
            for each in self.waiting.pop(operation.what, []):
                self._do(each)
            return
        assert isinstance(operation, (Write, Resize, Names))
        what = operation.folder if isinstance(operation, Names) else operation.file
        self.waiting.setdefault(what, []).extend(_sectors(operation))

    def lose(self) -> None:
        """Keep a random subset of what waits: of some files all or nothing, of others some."""
        for operations in self.waiting.values():
            share = self.chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
            for each in operations:
                if self.chance.random() < share:
                    self._do(each)

    def _do(self, operation: Operation) -> None:
        if isinstance(operation, Names):
            names = self.names.setdefault(operation.folder, {})
            for name, what in operation.changes.items():
                if what is None:
                    names.pop(name, None)
                else:
                    names[name] = what
        elif isinstance(operation, Write):
            content = self.contents.setdefault(operation.file, bytearray())
            end = operation.offset + len(operation.data)
            content.extend(bytes(max(0, operation.offset - len(content))))
            content[operation.offset : end] = operation.data
        elif isinstance(operation, Resize):
            content = self.contents.setdefault(operation.file, bytearray())
            del content[operation.size :]
            content.extend(bytes(operation.size - len(content)))

    def lay_out(self, folder: int, target: Path) -> None:
        target.mkdir()
        for name, what in self.names.get(folder, {}).items():
            if what in self.folders:
                self.lay_out(what, target / name)
            else:
                (target / name).write_bytes(self.contents.get(what, b""))


def _sectors(operation: Operation) -> Iterator[Operation]:
    if not isinstance(operation, Write):
        yield operation
        return
    at = 0
    while at < len(operation.data):
        place = operation.offset + at
        size = SECTOR - place % SECTOR
        yield Write(operation.file, place, operation.data[at : at + size])
        at += size


# ---------------------------------------------------------------------- under SQLite


class _Vfs(apsw.VFS):
    """SQLite's own file layer, with what it does to files recorded."""

    def __init__(self, disk: PowerDisk) -> None:
        self.name = f"power-{id(disk)}"
        self._disk = disk
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None:  # a temporary file, of which nothing outlives its process
            return apsw.VFSFile("", path, flags)
        return _File(self._disk, Path(path), path if name is path else name, flags)

    def xDelete(self, name: str, sync_folder: bool) -> None:
        super().xDelete(name, False)
        self._disk.unlink(Path(name))
        if sync_folder:
            self._disk.sync_folder(Path(name).parent)


class _File(apsw.VFSFile):
    def __init__(self, disk: PowerDisk, path: Path, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._path = path
        # SQLite's own layer syncs the folder when it first syncs a log that it has created.
        logs = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
        self._sync_folder = bool(flags[0] & logs) and not path.exists()
        super().__init__("", name, flags)
        self._file = disk.file(path)

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._disk.log.append(Write(self._file, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._disk.log.append(Resize(self._file, size))

    def xSync(self, flags: int) -> None:
        self._disk.sync("sqlite", self._file)
        if self._sync_folder:
            self._sync_folder = False
            self._disk.sync_folder(self._path.parent)


class _Connection:
    """apsw's connection with the methods of sqlite3's that the store uses."""

    def __init__(self, path: str, flags: int, vfs: str) -> None:
        with _errors():
            self._connection = apsw.Connection(path, flags, vfs)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, statement: str, values: Sequence[Any] = ()) -> apsw.Cursor:
        with _errors():
            return self._connection.execute(statement, tuple(values))

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> apsw.Cursor:
        with _errors():
            return self._connection.executemany(statement, list(rows))

    def close(self) -> None:
        self._connection.close(True)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise sqlite3.OperationalError(str(error)) from error
