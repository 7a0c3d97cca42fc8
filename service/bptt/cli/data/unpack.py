"""Bytes of a file as they were before compression: gzip, zip, xz, bzip2 and Zstandard.

The format is told from the first bytes, never from the file's name. Formats that hold no text
table are refused by their names.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import select
import sys
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, cast, IO

from bptt.cli.data.problem import InputError, join_names

READ_BYTES = 1 << 16  # what a pipe holds
_MAGIC_BYTES_MAX = 8
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
_FOREIGN = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite f": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"\x89HDF": "an HDF5 file",
    b"CDF\x01": "a NetCDF file",
    b"CDF\x02": "a NetCDF file",
    b"%PDF": "a PDF",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x04\x22\x4d\x18": "an lz4 file",
    b"\x1f\x9d": "a .Z file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a picture",
}
_TAR_MAGIC = slice(257, 262)


class Unpacked:
    """The unpacked bytes of a file or of standard input, piece by piece."""

    def __init__(self, raw: io.FileIO, name: str, *, is_live: bool) -> None:
        """Look at the first bytes, which tell the format.

        Raises:
            InputError: the format holds no table of text.
        """
        self._raw = raw
        self._name = name
        self._is_live = is_live
        self.packing: str | None = None
        """Name of the compression; None: there is none."""
        with reading(name):
            self._head = self._magic()
            found = _of_magic(self._head, _PACKED)
            self._stream = self._opened(found) if found else None
            self.packing = found
            if self._stream is not None:
                self._head = self._stream.read(READ_BYTES)
        self._refuse_foreign()

    def read(self) -> bytes:
        """The next piece; empty at the end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        with reading(self._name):
            if self._stream is not None:
                return self._stream.read(READ_BYTES)
            return self._raw.read(READ_BYTES) or b""

    def waits(self, seconds: float) -> bool:
        """Nothing came within so long from an input that may give more."""
        if self._head or not self._is_live:
            return False
        ready, _, _ = select.select([self._raw], [], [], seconds)
        return not ready

    def _magic(self) -> bytes:
        """The first bytes; of a pipe as many as it takes to know the format."""
        head = self._raw.read(READ_BYTES) or b""
        every = (*_PACKED, *_FOREIGN)
        while head and len(head) < _MAGIC_BYTES_MAX:
            if not any(magic.startswith(head) for magic in every):
                break
            more = self._raw.read(READ_BYTES)
            if not more:
                break
            head += more
        return head

    def _opened(self, packing: str) -> IO[bytes]:
        raw = cast(IO[bytes], io.BufferedReader(_Replayed(self._head, self._raw)))
        if not self._is_live:
            self._raw.seek(0)
            raw = cast(IO[bytes], self._raw)
        if packing == "gzip":
            return cast(IO[bytes], gzip.open(raw))
        if packing == "xz":
            return cast(IO[bytes], lzma.open(raw))
        if packing == "bzip2":
            return cast(IO[bytes], bz2.open(raw))
        if packing == "Zstandard":
            return cast(IO[bytes], _zstandard(self._name).open(raw))
        if self._is_live:
            raise InputError(
                f"{self._name} is a zip archive, which cannot be read from a pipe; "
                "give the file's name, or `unzip -p FILE | bptt learn -`"
            )
        return _zip_member(raw, self._name)

    def _refuse_foreign(self) -> None:
        what = _of_magic(self._head, _FOREIGN)
        if what is None and self._head[_TAR_MAGIC] == b"ustar":
            what = "a tar archive"
        if what is not None:
            raise InputError(
                f"{self._name} is {what}, but must be a table of text, such as CSV; export it "
                "as CSV"
            )


class _Replayed(io.RawIOBase):
    """A pipe with the bytes that were already read from it in front."""

    def __init__(self, head: bytes, raw: io.FileIO) -> None:
        self._head = head
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._raw.readinto(buffer) or 0
        size = min(len(buffer), len(self._head))
        buffer[:size] = self._head[:size]
        self._head = self._head[size:]
        return size


def _of_magic(head: bytes, magics: dict[bytes, str]) -> str | None:
    return next((what for magic, what in magics.items() if head.startswith(magic)), None)


def _zstandard(name: str) -> Any:
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"{name} is compressed with Zstandard, which needs `pip install 'bptt[zstd]'`; "
            "or unpack it with `zstd -d`"
        ) from None


def _zip_member(raw: IO[bytes], name: str) -> IO[bytes]:
    """The one file in an archive."""
    archive = zipfile.ZipFile(raw)
    members = [
        each
        for each in archive.infolist()
        if not each.is_dir() and not each.filename.startswith(("__MACOSX/", "."))
    ]
    names = [each.filename for each in members]
    if "[Content_Types].xml" in names or "content.xml" in names:
        raise InputError(
            f"{name} is a workbook of a spreadsheet program, but must be a table of text; "
            "save the sheet as CSV"
        )
    if len(members) != 1:
        held = join_names(names) or "none"
        raise InputError(
            f"{name} holds {len(members)} files, but must hold one: {held}; "
            "`unzip -p FILE MEMBER | bptt learn -` reads one of them"
        )
    if members[0].flag_bits & 1:
        raise InputError(f"{name} is encrypted; unpack it first")
    return archive.open(members[0])


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what reading and unpacking may raise into an InputError."""
    try:
        yield
    except (
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as error:
        raise InputError(f"cannot read {name}: {error}") from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # its class is there only with its package
            raise InputError(f"cannot read {name}: {error}") from None
        raise
