"""`bptt token`: says who may call a server, in its file of callers."""

from __future__ import annotations

import datetime
import re
import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from bptt.cli.console import json_option, output, plural, print_json
from bptt.security import callers, private_files
from bptt.security.roles import Role

EXAMPLE = """\b
Examples:
  bptt token create --callers callers.json --role writer --models 'plant-*' --expires 90d
  bptt token create --callers callers.json --role reader --certificate dashboard
  bptt token list --callers callers.json
  bptt token revoke --callers callers.json TOKEN-ID-OR-NAME

Roles: reader predicts and looks; writer also learns; admin also creates, changes and deletes. A
running server takes a changed file within a second, and ends the open calls of revoked callers.
"""
_UNITS = {"m": 60, "h": 3600, "d": 86_400}

_CALLERS = click.option(
    "--callers",
    "file",
    envvar="BPTT_CALLERS",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File of callers, the one of `bptt serve --callers`.",
)


@click.group(epilog=EXAMPLE)
def token() -> None:
    """Create, list and revoke the tokens that a server takes."""


@token.command(epilog=EXAMPLE)
@_CALLERS
@click.option(
    "--role",
    type=click.Choice([each.name.lower() for each in Role]),
    required=True,
    help="What the caller may do.",
)
@click.option(
    "--models",
    "patterns",
    multiple=True,
    default=("*",),
    show_default=True,
    metavar="PATTERN",
    help="Names of models, with * for any characters; may be given several times.",
)
@click.option("--expires", metavar="TIME", help="Time until the end, as 90d, 12h or 30m.")
@click.option("--name", metavar="NAME", help="Who the caller is, for you; the role if left out.")
@click.option(
    "--certificate",
    metavar="NAME",
    help="Make no token: the caller is who shows a client certificate with this name.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the token to this file, which only you can read, instead of printing it.",
)
@json_option("one document with the token, or the id of the entry")
def create(
    file: Path,
    role: str,
    patterns: tuple[str, ...],
    expires: str | None,
    name: str | None,
    certificate: str | None,
    target: Path | None,
    as_json: bool,
) -> None:
    """Add a caller, and print its token once: the file holds only its hash."""
    given: dict[str, Any] = {
        "name": name or certificate or role,
        "expires": None if expires is None else time.time() + _seconds(expires),
    }
    kind = Role.named(role)
    if certificate is not None:
        if target is not None:
            raise click.UsageError("--output is for a token; --certificate makes none")
        entry = callers.add_certificate(file, certificate, kind, patterns, **given)
        if as_json:
            print_json({"id": entry.id})
        else:
            click.echo(f"added {entry.id} for certificates named {certificate}")
        return
    made = callers.create_token(file, kind, patterns, **given)
    if target is not None:
        private_files.write(target, made.encode() + b"\n")
    if as_json:
        print_json({"file": str(target)} if target else {"token": made})
    else:
        click.echo(f"the token is in {target}" if target else made)


@token.command("list", epilog=EXAMPLE)
@_CALLERS
@json_option("one document, a list of callers")
def list_callers(file: Path, as_json: bool) -> None:
    """List the callers; tokens are not in the file."""
    found = callers.read(file)
    if as_json:
        print_json([{k: v for k, v in each.document().items() if k != "sha256"} for each in found])
        return
    if not found:
        click.echo(f"no callers in {file}")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("id", "name", "by", "role", "models", "expires"):
        table.add_column(title, overflow="fold")
    for each in found:
        by = f"certificate {each.certificate}" if each.certificate else "token"
        table.add_row(
            each.id,
            each.name,
            by,
            each.role.name.lower(),
            " ".join(each.models),
            _date(each.expires),
        )
    output().print(table, markup=False)


@token.command(epilog=EXAMPLE)
@_CALLERS
@click.argument("named", metavar="ID-OR-NAME")
@json_option("one document, the ids that were removed")
def revoke(file: Path, named: str, as_json: bool) -> None:
    """Remove the callers with this id or name; their open calls end within a second."""
    gone = callers.revoke(file, named)
    if as_json:
        print_json([each.id for each in gone])
    else:
        click.echo(f"revoked {plural(len(gone), 'caller')}: {', '.join(each.id for each in gone)}")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(
            f"{text!r} is not a time such as 90d, 12h or 30m", param_hint="--expires"
        )
    return int(found[1]) * _UNITS[found[2]]


def _date(when: float | None) -> str:
    if when is None:
        return "never"
    moment = datetime.datetime.fromtimestamp(when, datetime.UTC)
    past = " (expired)" if when <= time.time() else ""
    return f"{moment:%Y-%m-%d %H:%M} UTC{past}"
