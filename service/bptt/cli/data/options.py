"""What the options say of a file."""

from __future__ import annotations

from dataclasses import dataclass

from bptt.cli.data.problem import InputError
from bptt.cli.data.records import NONE, SPACES


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the options say of a file; None and empty: it is told from the file."""

    delimiter: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    encoding: str | None = None
    skip_rows: int = 0
    comment: str | None = None
    no_header: bool = False
    missing: tuple[str, ...] = ()
    """Markers of missing values, beside the usual words."""
    not_missing: tuple[str, ...] = ()
    """Values that look like such markers."""
    time: str | None = None
    """Names of columns, with commas between them."""
    time_format: str | None = None
    time_zone: str | None = None
    no_time: bool = False
    sort: bool = False
    bad_rows: int | None = None
    """How many rows that cannot be read may be left out; None: some of a live input, none of a
    file."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file.

        Raises:
            InputError: an option makes no sense; names it.
        """
        for flag, value in (("--decimal", self.decimal), ("--thousands", self.thousands)):
            if value is not None and (len(value) != 1 or value.isalnum() or value in "+-"):
                raise InputError(f"{flag} is {value!r}, but must be one sign, such as . or ,")
        if self.decimal is not None and self.decimal == self.thousands:
            raise InputError(
                f"--decimal and --thousands are both {self.decimal!r}, but must differ"
            )
        if self.no_time and (self.time or self.time_format or self.time_zone or self.sort):
            raise InputError(
                "--no-time cannot go with --time, --time-format, --time-zone or --sort"
            )

    @property
    def delimiter_sign(self) -> str | None:
        """The delimiter that a word or a sign means.

        Raises:
            InputError: it means none.
        """
        words = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
        words |= {"space": SPACES, "spaces": SPACES, "none": NONE}
        if self.delimiter is None:
            return None
        sign = words.get(self.delimiter, self.delimiter)
        if len(sign) > 1 or sign.isalnum() or sign in '"\n\r':
            raise InputError(
                f"--delimiter is {self.delimiter!r}, but must be one sign or one of "
                "tab, comma, semicolon, pipe, spaces, none"
            )
        return sign
