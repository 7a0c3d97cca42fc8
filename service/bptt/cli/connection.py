"""How a command reaches a server: the address, certificates, token, and profiles in `bptt.toml`.

A flag is stronger than a variable, a variable than a profile. A profile is a table
`[profile.NAME]` with `address`, `tls_ca`, `token_file`, `tls_client_cert` and `tls_client_key`;
`--profile NAME` or BPTT_PROFILE chooses it, and the one called `default` is used without being
chosen. A token is given in a file or in BPTT_TOKEN, never as an option, which `ps` would show.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from bptt.client import Client
from bptt.client.access import Access

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_PROFILE = "default"
CONFIG_FILE = Path("bptt.toml")
FILES = ("tls_ca", "token_file", "tls_client_cert", "tls_client_key")
"""Keys of a profile that name files; a relative path is relative to the file of settings."""
KEYS = ("address", *FILES)
_META = "bptt.connection"

Command = TypeVar("Command", bound=Callable[..., Any])


def address_option(command: Command) -> Command:
    """Add `--address`, the server's address, and the options of a secured connection."""
    for add in reversed(
        (
            click.option(
                "--address",
                callback=_address,
                default=DEFAULT_ADDRESS,
                show_default=True,
                metavar="HOST:PORT",
                help="Where the server listens.",
            ),
            _file(
                "--tls-ca",
                "Certificates that have signed the server's; turns TLS on. `system`: "
                "the well-known ones.",
            ),
            _file(
                "--token-file",
                "File with the token that the server asks for; also BPTT_TOKEN, the token itself.",
            ),
            _file("--tls-client-cert", "Certificate to show to the server, if it asks for one."),
            _file("--tls-client-key", "Private key of that certificate."),
            click.option(
                "--profile",
                envvar="BPTT_PROFILE",
                is_eager=True,
                expose_value=False,
                callback=_profile,
                metavar="NAME",
                help="Use the table [profile.NAME] of bptt.toml, with address, tls_ca, token_file "
                "and so on; `default` if not given.",
            ),
        )
    ):
        command = add(command)
    return command


def _file(flag: str, text: str) -> Callable[[Command], Command]:
    return click.option(
        flag,
        envvar="BPTT_" + flag.strip("-").replace("-", "_").upper(),
        expose_value=False,
        callback=_keep,
        metavar="FILE",
        help=text,
    )


def _keep(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Remember an option's value for `connect`, also for the subcommands of a group."""
    if value:
        name = str(option.name)
        context.meta.setdefault(_META, {})[name] = value
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            context.meta[_META][name, "flag"] = True


def _profile(context: click.Context, option: click.Parameter, name: str | None) -> None:
    """Read the profile, whose values stand where no flag and no variable gives one."""
    path = Path(os.environ.get("BPTT_CONFIG") or CONFIG_FILE)
    chosen = name or DEFAULT_PROFILE
    found: Any = {}
    try:
        document = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
        found = document.get("profile", {}).get(chosen)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}") from error
    if found is None:
        if name:
            raise click.UsageError(f"{path} has no table [profile.{name}]", context)
        return
    for key, value in found.items():
        if key not in KEYS or not isinstance(value, str):
            known = ", ".join(KEYS)
            raise click.UsageError(
                f"{path}: profile.{chosen}.{key} must be one of {known}, and text", context
            )
    values = {
        key: str(path.parent / value) if key in FILES and value != "system" else value
        for key, value in found.items()
    }
    context.meta.setdefault(_META, {})["profile"] = values


def _address(context: click.Context, option: click.Parameter, text: str) -> str:
    profile = context.meta.get(_META, {}).get("profile", {})
    if context.get_parameter_source("address") is ParameterSource.DEFAULT:
        text = profile.get("address", text)
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise click.BadParameter(
            f"{text!r} must be host:port with a port from 1 to 65535, as in {DEFAULT_ADDRESS}"
        )
    return text


def connect(address: str, *, wait_seconds: float = 0.0) -> Client:
    """A client of the server at `address`, with what the options of the command say."""
    context = click.get_current_context(silent=True)
    given: dict[Any, Any] = {} if context is None else context.meta.get(_META, {})
    values = given.get("profile", {}) | {key: given[key] for key in FILES if key in given}
    token = os.environ.get("BPTT_TOKEN") or None
    if given.get(("token_file", "flag")):
        token = None
    access = Access(
        values.get("tls_ca"),
        token,
        values.get("token_file"),
        values.get("tls_client_cert"),
        values.get("tls_client_key"),
    )
    return Client.connect(address, wait_seconds=wait_seconds, access=access)
