"""`bptt warm-up`: compiles the kernels ahead of time, so that the first model does not wait."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import as_completed, ProcessPoolExecutor

import click

from bptt.cli.compiling import shown
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

    Kernels stay in the folder NUMBA_CACHE_DIR, or else in the user's cache. Compiling takes 15 s a
    cell on an idle core; with --all, each core compiles a cell at a time.
    """
    cells = sorted(CELLS) if every else [cell]
    seconds = {}
    for place, (name, took) in enumerate(_warmed(cells), start=1):
        seconds[name] = took
        if not as_json:
            click.echo(f"{name} ({place} of {len(cells)}): {took:.1f} s")
    if as_json:
        print_json(seconds)


def _warmed(cells: list[str]) -> Iterator[tuple[str, float]]:
    """Each cell with the seconds that it took, as they get ready."""
    groups: dict[object, list[str]] = {}
    for name in cells:  # cells that share their kernels are compiled once
        groups.setdefault(CELLS[name].kernels()[:2], []).append(name)
    workers = min(len(groups), os.cpu_count() or 1)
    if workers == 1:
        for name in cells:
            yield name, _warm(name)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for done in as_completed([pool.submit(_warm_group, each) for each in groups.values()]):
            yield from done.result()


def _warm_group(cells: list[str]) -> list[tuple[str, float]]:
    """In a process of its own, which says itself what it compiles."""
    with shown():
        return [(name, _warm(name)) for name in cells]


def _warm(cell: str) -> float:
    start = time.perf_counter()
    Learner(ModelSpec(input_size=1, cell=cell)).warm_up()
    return time.perf_counter() - start
