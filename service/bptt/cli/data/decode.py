"""Bytes in, lines of text out: the encoding is told from the first bytes, line ends are any.

| first bytes | taken as |
|---|---|
| a byte order mark | UTF-8, UTF-16 or UTF-32, as it says |
| every other byte is zero | UTF-16 without a mark |
| valid UTF-8 | UTF-8 |
| bytes that are letters and signs of Western Europe in CP1252, among ASCII | CP1252 |
| others | an error that shows a line in some encodings and names `--encoding` |
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bptt.cli.data.problem import InputError, shown

LINE_CHARACTERS_MAX = 1 << 20  # a longer line is no row of a table
_CANDIDATES = ("cp1252", "cp1250", "cp1251", "cp850", "mac_roman", "shift_jis", "gb18030")
"""Shown where the encoding cannot be told."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WESTERN = set(
    "äöüÄÖÜßéèêëàâáãåæçñóòôõíìîïúùûøœÉÈÊËÀÂÁÃÅÆÇÑÓÒÔÕÍÌÎÏÚÙÛØŒŠšŽžŸÿýÝðþÐÞ°µ²³¹½¼¾£€§±·×÷«»ºª®©™’‘“”–—…\xa0¢¥"
)
_LINE_END = re.compile(r"\r*\n|\r")
_DOS_DEGREE = re.compile(r"[øØ][CFK]\b")  # the degree sign of DOS code pages, read as CP1252


@dataclass(frozen=True, slots=True)
class Encoding:
    """How bytes become text."""

    name: str
    """A codec of Python."""
    why: str
    """What it was told from."""
    mark: int = 0
    """Bytes of the byte order mark before the text."""


def encoding_of(head: bytes, name: str, asked: str | None = None) -> Encoding:
    """The encoding of a text that begins with `head`.

    Args:
        head: the first bytes.
        name: of the input, for messages.
        asked: what `--encoding` says.

    Raises:
        InputError: there is no such encoding, or it cannot be told.
    """
    marked = next(((mark, codec) for mark, codec in _MARKS if head.startswith(mark)), None)
    if asked is not None:
        return _asked(asked, marked)
    if marked is not None:
        return Encoding(marked[1], "byte order mark", len(marked[0]))
    zeros = head[:4096].count(0)
    if zeros:
        return _with_zeros(head[:4096], zeros, name)
    if _decodes(head, "utf-8"):
        return Encoding("utf-8", "no other bytes" if head.isascii() else "valid")
    if _decodes(head, "cp1252") and _is_western(head.decode("cp1252", "ignore")):
        return Encoding("cp1252", "letters and signs of Western Europe")
    raise _unknown(head, name)


def _asked(asked: str, marked: tuple[bytes, str] | None) -> Encoding:
    try:
        codec = codecs.lookup(asked)
        if not codec._is_text_encoding:
            raise LookupError
    except LookupError:
        raise InputError(
            f"--encoding is {asked!r}, but must be an encoding's name, "
            "such as utf-8, utf-16, cp1252 or latin-1"
        ) from None
    if marked is not None and codec.name in (marked[1], marked[1].rsplit("-", 1)[0], "utf-8-sig"):
        return Encoding(marked[1], "--encoding", len(marked[0]))
    return Encoding(
        {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(codec.name, codec.name), "--encoding"
    )


def _with_zeros(head: bytes, zeros: int, name: str) -> Encoding:
    even, odd = head[::2].count(0), head[1::2].count(0)
    if odd > 0.3 * len(head) / 2 and not even:
        return Encoding("utf-16-le", "every other byte is zero")
    if even > 0.3 * len(head) / 2 and not odd:
        return Encoding("utf-16-be", "every other byte is zero")
    line = head[: head.index(0)].count(b"\n") + 1
    raise InputError(
        f"line {line} of {name} holds zero bytes ({zeros} of the first {len(head):,}), but must be "
        "text; say with --encoding which it is, if it is text"
    )


def _decodes(head: bytes, codec: str) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _is_western(text: str) -> bool:
    """Whether CP1252 gives words and signs that occur, not rows of accented letters."""
    other = [character for character in text if not character.isascii()]
    runs = re.search(r"[^\x00-\x7f]{3}", text)
    return set(other) <= _WESTERN and not runs and not _DOS_DEGREE.search(text)


def _unknown(head: bytes, name: str) -> InputError:
    """Shows the first line that is not ASCII as the usual encodings read it."""
    number, line = next(
        (i, line) for i, line in enumerate(head.splitlines(), 1) if not line.isascii()
    )
    readings = []
    for codec in _CANDIDATES:
        if _decodes(head, codec):
            words = line.decode(codec, "replace")
            readings.append(f"{shown(words)} in {codec}")
    return InputError(
        f"line {number} of {name} is not UTF-8; name its encoding with --encoding: it reads "
        f"{' or '.join(readings)}"
    )


class Lines:
    """Lines of decoded text, numbered from 1.

    A last line without its end is not handed out: a program may still be writing it. It is kept in
    `unfinished`.
    """

    def __init__(
        self,
        pieces: Iterable[bytes],
        encoding: Encoding,
        name: str,
        *,
        take_last: bool = False,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Read nothing yet.

        Args:
            pieces: the bytes from the start of the input.
            encoding: of the text.
            name: of the input, for messages.
            take_last: hand out a last line without its end: nothing more can come.
            on_wait: called before each further piece is asked for.
        """
        self.number = 0
        """Of the line handed out last."""
        self.unfinished = ""
        self.line_end = ""
        """The first line end that was seen."""
        self._pieces = pieces
        self._encoding = encoding
        self._name = name
        self._take_last = take_last
        self._on_wait = on_wait

    def __iter__(self) -> Iterator[str]:
        """The lines, without their ends."""
        decoder = codecs.getincrementaldecoder(self._encoding.name)()
        skip = self._encoding.mark
        rest = ""
        for piece in self._pieces:
            data = piece[skip:]
            skip -= len(piece) - len(data)
            text = rest + self._decoded(decoder, data)
            # A CR at the end may be the first half of a CR LF.
            body = text.rstrip("\r")
            tail = text[len(body) :]
            if "\r" in body:
                *lines, rest = _LINE_END.split(body)
            else:
                *lines, rest = body.split("\n")
            if lines and not self.line_end:
                match = _LINE_END.search(text)
                self.line_end = match.group() if match else ""
            rest += tail
            for line in lines:
                self.number += 1
                yield line
            if len(rest) > LINE_CHARACTERS_MAX:
                raise InputError(
                    f"line {self.number + 1} of {self._name} is longer than "
                    f"{LINE_CHARACTERS_MAX:,} characters, but must be a row of a table"
                )
            self._on_wait()
        body = rest.rstrip("\r")
        if body != rest or (body and self._take_last):
            self.line_end = self.line_end or "\r"
            self.number += 1
            yield body
        else:
            self.unfinished = body

    def _decoded(self, decoder: codecs.IncrementalDecoder, data: bytes) -> str:
        try:
            return decoder.decode(data)
        except UnicodeDecodeError as error:
            line = self.number + error.object[: error.start].count(b"\n") + 1
            raise InputError(
                f"line {line} of {self._name} holds the byte 0x{error.object[error.start]:02x}, "
                f"which is not {self._encoding.name.upper()} ({self._encoding.why}); name the "
                "encoding with --encoding, such as cp1252"
            ) from None
