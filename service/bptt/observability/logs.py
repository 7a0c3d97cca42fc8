"""The server's log: one line an event, as text for people or as JSON for programs.

An event's text is the template of its log call, and the template tells the fields: a value after
the word `model` or `stream`, as in `log.info("model %s deleted", model_id)`, is the field of that
name. So the code that logs needs no second list of fields, and text and JSON cannot disagree.

Nothing logs a payload. A traceback is one line in text, and a field in JSON.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from datetime import datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from bptt.config import LogFormat, LogLevel

FIELDS = ("model", "stream")
"""Words that make the value after them a field."""

_PLACEHOLDER = re.compile(r"%[-#0 +]*(?:\d+|\*)?(?:\.\d+)?[a-zA-Z]")
_FIELD = re.compile(rf"\b({'|'.join(FIELDS)}) $")
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
"""Control characters, which could end a line or command a terminal."""


def configure_logging(level: LogLevel = "info", form: LogFormat = "text") -> None:
    """Log to standard error.

    Args:
        level: the lowest level of this package's events that is logged. Other packages log
            warnings and errors only.
        form: `text` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("bptt").setLevel(level.upper())


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """The fields that an event's template names, with their values."""
    found: dict[str, str] = {}
    if isinstance(record.msg, str) and isinstance(record.args, tuple):
        template = record.msg.replace("%%", "  ")
        for place, value in zip(_PLACEHOLDER.finditer(template), record.args, strict=False):
            word = _FIELD.search(template[: place.start()])
            if word is not None:
                found.setdefault(word[1], str(value))
    return found


def time_of(record: logging.LogRecord) -> str:
    """When an event happened, in the machine's time zone and with its offset."""
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


class TextLines(logging.Formatter):
    """Formats an event as one line: time, level, text, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without control characters."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text} | {_in_one_line(record.exc_info[1])}"
        return f"{time_of(record)} {record.levelname:<7} {text}".translate(_CONTROL)


class JsonLines(JsonFormatter):
    """Formats an event as one JSON object: time, level, event, logger, and its fields."""

    def add_fields(
        self,
        log_data: dict[str, Any],
        record: logging.LogRecord,
        message_dict: dict[str, Any],
    ) -> None:
        """Fill the object."""
        log_data |= {
            "time": time_of(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **fields_of(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            log_data["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))


def _in_one_line(error: BaseException) -> str:
    """An error and where it came from, the innermost place first."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    places = " < ".join(f"{each.filename}:{each.lineno} {each.name}" for each in frames)
    return f"{type(error).__name__}: {error} at {places}"
