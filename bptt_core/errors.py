"""The exceptions that `bptt_core` raises.

BpttError
├── InvalidArgument     an argument's value is out of its bounds; nothing was changed
│   ├── UnknownField    a spec has no field of that name
│   ├── ShapeError      an array's shape does not match
│   ├── DtypeError      an array's element type is not supported
│   ├── LayoutError     an array is strided or read-only
│   ├── NonFiniteError  an element is NaN or infinite
│   ├── LabelTooLate    a target's step is too old, or belongs to an earlier sequence
│   └── LabelTooEarly   a target's step has not been read yet
├── OrderError          a chunk does not begin with its stream's next step
└── UnknownStream       no stream of that name
"""

from __future__ import annotations


class BpttError(Exception):
    """Base class of this library's errors."""


class InvalidArgument(BpttError, ValueError):
    """A value is out of its bounds. Nothing was changed.

    Attributes:
        field: name of the argument.
        value: the value that was given, as text.
        bound: the values that are accepted, as text.
    """

    def __init__(self, field: str, value: object, bound: str) -> None:
        self.field = field
        self.value = value if isinstance(value, str) else repr(value)
        self.bound = bound
        super().__init__(f"{field} is {self.value}, but must be {bound}")


class UnknownField(InvalidArgument):
    """A spec has no field of that name."""

    def __init__(self, field: str, value: object, bound: str) -> None:
        super().__init__(field, value, bound)
        self.args = (f"unknown field {field!r}, which is {self.value}; known fields: {bound}",)


class ShapeError(InvalidArgument):
    """An array's shape does not match what it is used with."""


class DtypeError(InvalidArgument):
    """An array's element type is not supported."""


class LayoutError(InvalidArgument):
    """An array is strided or read-only where it must be contiguous and writeable."""


class NonFiniteError(InvalidArgument):
    """A number is NaN or infinite where only finite numbers are accepted."""


class LabelTooLate(InvalidArgument):
    """A target belongs to a step that has left the delay window, or to an earlier sequence."""


class LabelTooEarly(InvalidArgument):
    """A target belongs to a step that the stream has not read yet."""


class OrderError(BpttError):
    """A chunk does not begin with its stream's next step.

    Attributes:
        stream_id: the stream.
        first_step: where the chunk begins.
        next_step: the step that was expected.
    """

    def __init__(self, stream_id: str, first_step: int, next_step: int) -> None:
        self.stream_id = stream_id
        self.first_step = first_step
        self.next_step = next_step
        super().__init__(
            f"first_step of stream {stream_id!r} is {first_step}, but must be {next_step}"
        )


class UnknownStream(BpttError, KeyError):
    """No stream of that name."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        super().__init__(f"stream_id is {stream_id!r}, but no such stream is known")

    def __str__(self) -> str:
        """The message itself; KeyError would quote it."""
        return str(self.args[0])
