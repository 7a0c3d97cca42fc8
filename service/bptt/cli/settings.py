"""The server's settings as options: by flag, by BPTT_* variable and by bptt.toml.

A flag is stronger than a variable, a variable than the file, the file than the default. All names
are derived from the fields of `ServerConfig`; click and tomllib do the reading.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, Literal, TypeVar

import click
from click.core import ParameterSource

from bptt.config import config_fields, config_from, ConfigField, ServerConfig
from bptt.errors import InvalidRequest

CONFIG_FILE = Path("bptt.toml")
"""Read from the working folder if no other file is named."""
CONFIG_VARIABLE = "BPTT_CONFIG"
CLIENT_VARIABLES = (
    "BPTT_PROFILE",
    "BPTT_TLS_CA",
    "BPTT_TLS_CLIENT_CERT",
    "BPTT_TLS_CLIENT_KEY",
    "BPTT_TOKEN",
    "BPTT_TOKEN_FILE",
)
"""Variables of the commands that connect to a server: see `cli/connection.py`."""
OTHER_VARIABLES = (
    CONFIG_VARIABLE,
    *CLIENT_VARIABLES,
    "BPTT_FAILPOINT",
    "BPTT_CRASH_ROUNDS",
    "BPTT_REQUIRE_TOOLS",
)
"""Variables that are no settings of the server. The last three are of the tests."""
PROFILES = "profile."
"""Keys of `bptt.toml` that begin so are those of the client commands."""
SERVICE_LINK = re.compile(r"\w+_SERVICE_(HOST|PORT)(_\w+)?|\w+_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?")
"""Variables that Kubernetes sets in every container for a service that is called bptt."""

NONE = "none"
"""The text that stands for None where a field may be None."""
SIMILARITY = 0.75  # of a name to one that exists, for "did you mean"

Command = TypeVar("Command", bound=Callable[..., Any])
Source = Literal["flag", "variable", "file", "default"]
_SOURCES: dict[ParameterSource | None, Source] = {
    ParameterSource.COMMANDLINE: "flag",
    ParameterSource.ENVIRONMENT: "variable",
    ParameterSource.DEFAULT_MAP: "file",
}


@dataclass(frozen=True, slots=True)
class Value:
    """The value of one field, and where it comes from."""

    field: ConfigField
    value: Any
    source: Source
    where: str
    """The flag, the variable, or the file with the line; `default`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A valid configuration, and the values it was built from."""

    config: ServerConfig
    values: list[Value]
    file: Path | None
    """The file that was read; None: there was none."""


# ---------------------------------------------------------------------- the file


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    values: dict[str, str]
    lines: dict[str, int]
    """By key, the line on which its value ends."""


def _flat(document: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{section}{name}.")
        else:
            found[section + name] = value
    return found


def _lines(text: str) -> dict[str, int]:
    """Find each key's line: the first one with which the text up to it has the key."""
    found: dict[str, int] = {}
    rows = text.splitlines(keepends=True)
    for number in range(1, len(rows) + 1):
        try:
            document = tomllib.loads("".join(rows[:number]))
        except tomllib.TOMLDecodeError:  # it ends within a value
            continue
        for key in _flat(document):
            found.setdefault(key, number)
    return found


def read_file(path: Path) -> _File:
    """Read a configuration file.

    Raises:
        UsageError: it cannot be read, is no TOML, has an unknown key or a value that is neither
            text nor a number; the error names the place.
    """
    try:
        text = path.read_text("utf-8")
        values = _flat(tomllib.loads(text))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} is no TOML: {error}") from error
    lines, types = _lines(text), {each.key: each.type for each in config_fields()}
    known = list(types)
    values = {key: value for key, value in values.items() if not key.startswith(PROFILES)}
    for key, value in values.items():
        place = f"{path}, line {lines[key]}"
        if key not in known:
            raise click.UsageError(f"{place}: unknown key {key!r}{_hint(key, known)}")
        right = isinstance(value, bool) if types[key] is bool else not isinstance(value, bool)
        if not right or not isinstance(value, (str, int, float)):
            bound = "true or false" if types[key] is bool else "text or a number"
            raise click.UsageError(f"{place}: {key} is {value!r}, but must be {bound}")
    return _File(path, {key: str(value) for key, value in values.items()}, lines)


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=SIMILARITY)
    return f"; did you mean {close[0]!r}?" if close else "; `bptt config` lists all"


def _use_file(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the other options."""
    if path is None and CONFIG_FILE.exists():
        path = CONFIG_FILE
    if path is not None:
        file = read_file(path)
        context.default_map = {key.replace(".", "_"): text for key, text in file.values.items()}
        context.meta[__name__] = file
    return path


# ---------------------------------------------------------------------- options


_UNITS = {"": 0, "KiB": 10, "MiB": 20, "GiB": 30}  # powers of two


class Bytes(click.ParamType[int]):
    """A number of bytes, also as 64KiB, 64MiB or 4GiB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(-?\d+) ?([KMG]iB|)", value)
        if found is None:
            self.fail(f"{value!r} is not a number of bytes, as in 65536, 64KiB, 64MiB or 4GiB")
        return int(found[1]) << _UNITS[found[2]]


class _OrNone(click.ParamType[Any]):
    """A type that also takes `none`."""

    def __init__(self, of: click.ParamType[Any]) -> None:
        self.name = of.name
        self._of = of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the value."""
        return None if value == NONE else self._of.convert(value, param, ctx)


def _type_of(field: ConfigField) -> click.ParamType[Any]:
    """Return the type of a field's option."""
    if get_origin(field.type) is Literal:
        return click.Choice(get_args(field.type))
    if NoneType in get_args(field.type):
        (kind,) = set(get_args(field.type)) - {NoneType}
        if kind is Path and field.key not in _FOLDERS:
            return _OrNone(click.Path(path_type=Path, dir_okay=False))
        return _OrNone(_SIMPLE[kind])
    if field.type is int and field.name.endswith("_bytes"):
        return Bytes()
    return _SIMPLE[field.type]


_SIMPLE: dict[Any, click.ParamType[Any]] = {
    int: click.INT,
    float: click.FLOAT,
    bool: click.BOOL,
    str: click.STRING,
    Path: click.Path(path_type=Path, file_okay=False),
}
_FOLDERS = ("data",)
_METAVARS = {
    "address": "HOST:PORT",
    "audience": "TEXT",
    "bytes": "BYTES",
    "ca": "FILE",
    "callers": "FILE",
    "cert": "FILE",
    "data": "FOLDER",
    "insecure": "",
    "issuer": "TEXT",
    "key": "FILE",
    "keys": "FILE|URL",
    "seconds": "SECONDS",
}


class SettingOption(click.Option):
    """The option of one field; its errors say where the value came from."""

    def __init__(self, field: ConfigField) -> None:
        self.field = field
        kind = _type_of(field)
        metavar = None if isinstance(kind, click.Choice) else "NUMBER"
        switch: dict[str, Any] = {}
        if field.type is bool:  # `--insecure` stands for `--insecure true`
            switch = {"is_flag": False, "flag_value": "true"}
        super().__init__(
            [field.flag],
            type=kind,
            default=field.default,
            show_default=field.default is not None and field.type is not bool,
            envvar=field.variable,
            metavar=_METAVARS.get(field.name.rpartition("_")[2], metavar),
            help=field.setting.help,
            **switch,
        )

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert a value."""
        try:
            return super().type_cast_value(ctx, value)
        except click.BadParameter as error:
            place = f"{self.field.key} ({where(ctx, self.field)})"
            raise click.UsageError(f"{place}: {error.message}", ctx) from error


def where(context: click.Context, field: ConfigField) -> str:
    """Say where a field's value comes from."""
    source = _SOURCES.get(context.get_parameter_source(field.name), "default")
    if source == "file":
        file: _File = context.meta[__name__]
        return f"{file.path}, line {file.lines[field.key]}"
    return {"flag": field.flag, "variable": field.variable}.get(source, source)


def server_options(command: Command) -> Command:
    """Add `--config` and one option for each field; the command gets them as `settings`."""

    @functools.wraps(command)
    def with_settings(config: Path | None, **options: Any) -> Any:
        context = click.get_current_context()
        values = {each.key: options.pop(each.name) for each in config_fields()}
        return command(settings=_settings(context, config, values), **options)

    params: list[click.Parameter] = [SettingOption(each) for each in config_fields()]
    file = click.Option(
        ["--config"],
        type=click.Path(path_type=Path, dir_okay=False),
        envvar=CONFIG_VARIABLE,
        is_eager=True,
        callback=_use_file,
        metavar="FILE",
        help=f"File of settings. If not given: {CONFIG_FILE} in the working folder, if there is "
        "one.",
    )
    kept: list[click.Parameter] = getattr(command, "__click_params__", [])
    # Click lists the options of a command in the reverse of this order.
    with_settings.__click_params__ = [*kept, *reversed([file, *params])]  # type: ignore[attr-defined]
    return with_settings  # type: ignore[return-value]


def _settings(context: click.Context, file: Path | None, values: dict[str, Any]) -> Settings:
    """Build the configuration.

    Raises:
        UsageError: a variable is unknown, or a value is out of its bounds.
    """
    _check_variables(context)
    fields = {each.key: each for each in config_fields()}
    try:
        config = config_from(values)
    except InvalidRequest as error:
        (wrong,) = error.violations
        place = f"{wrong.field} ({where(context, fields[wrong.field])})"
        raise click.UsageError(f"{place} {wrong.description}", context) from error
    found = [
        Value(
            each,
            values[each.key],
            _SOURCES.get(context.get_parameter_source(each.name), "default"),
            where(context, each),
        )
        for each in fields.values()
    ]
    return Settings(config, found, file)


def _check_variables(context: click.Context) -> None:
    known = [each.variable for each in config_fields()]
    for name in sorted(os.environ):
        if not name.startswith("BPTT_") or name in known or name in OTHER_VARIABLES:
            continue
        if not SERVICE_LINK.fullmatch(name):
            text = f"unknown variable {name}{_hint(name, known)}"
            raise click.UsageError(text, context)
