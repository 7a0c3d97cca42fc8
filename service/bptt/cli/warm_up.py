"""`bptt warm-up`: compiles the kernels ahead of time, so that the first model does not wait."""

from __future__ import annotations

import time

import click

from bptt.cli.console import json_option, print_json
from bptt_core import Learner, ModelSpec
from bptt_core.cells import CELLS

EXAMPLE = """\b
Example:
  bptt warm-up --cell gru
"""


@click.command("warm-up", epilog=EXAMPLE)
@click.option(
    "--cell",
    type=click.Choice(sorted(CELLS)),
    default=ModelSpec(input_size=1).cell,
    show_default=True,
    help="Cell whose kernels are compiled.",
)
@click.option("--all", "every", is_flag=True, help="Compile the kernels of all cells.")
@json_option("one document with the seconds that each cell took")
def warm_up(cell: str, every: bool, as_json: bool) -> None:
    """Compile the kernels of a cell with the default optimizer, or load them if they are there.

    Kernels stay in the folder NUMBA_CACHE_DIR, or else in the user's cache. Compiling takes half a
    minute a cell on an idle core.
    """
    cells = sorted(CELLS) if every else [cell]
    seconds = {}
    for place, name in enumerate(cells, start=1):
        if not as_json:
            click.echo(f"{name} ({place} of {len(cells)}) … ", nl=False)
        start = time.perf_counter()
        Learner(ModelSpec(input_size=1, cell=name)).warm_up()
        seconds[name] = time.perf_counter() - start
        if not as_json:
            click.echo(f"{seconds[name]:.1f} s")
    if as_json:
        print_json(seconds)
