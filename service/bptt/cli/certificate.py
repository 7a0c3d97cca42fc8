"""`bptt certificate`: makes the certificates of a server and of its clients."""

from __future__ import annotations

from pathlib import Path

import click

from bptt.cli.console import json_option, print_json
from bptt.security import certificates

DAYS = 825  # what clients of several systems accept at most

EXAMPLE = """\b
Examples:
  bptt certificate ./tls --host learner.example.org
  bptt certificate ./tls --client plant-7

The first one prints what to type next. A folder has one authority, which signs all its
certificates. Clients need its ca.pem, and nobody but you needs its ca-key.pem.
"""


@click.command(epilog=EXAMPLE)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name or IP address under which clients reach the server; may be given several times. "
    "localhost, 127.0.0.1 and ::1 are always included.",
)
@click.option("--client", metavar="NAME", help="Make a client's certificate with this name.")
@click.option(
    "--days", type=click.IntRange(1, 3650), default=DAYS, show_default=True, help="Validity."
)
@json_option("one document with the files")
def certificate(
    folder: Path, hosts: tuple[str, ...], client: str | None, days: int, as_json: bool
) -> None:
    """Make a certificate in FOLDER, signed by an authority that is made there once."""
    if client is not None and hosts:
        raise click.UsageError("--host is for a server's certificate; leave it or --client out")
    names = tuple(dict.fromkeys((*hosts, "localhost", "127.0.0.1", "::1")))
    made = certificates.make(folder, names, days, client=client)
    if as_json:
        print_json({"ca": str(made.ca), "cert": str(made.cert), "key": str(made.key)})
        return
    click.echo(f"made {made.cert} and {made.key}; the authority is {made.ca}")
    if client is None:
        click.echo(f"server:  bptt serve --tls-cert {made.cert} --tls-key {made.key} …")
        click.echo(f"clients: bptt models --tls-ca {made.ca} …")
    else:
        click.echo(f"server:  --tls-client-ca {made.ca}")
        click.echo(f"client:  --tls-client-cert {made.cert} --tls-client-key {made.key}")
