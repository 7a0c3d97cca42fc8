"""Parts shared by the commands that read a data folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bptt.cli.console import progress_output
from bptt.durability import SqliteStore, Store, StoreReader
from bptt.errors import UnknownModel

Command = TypeVar("Command", bound=Callable[..., Any])


def data_argument(command: Command) -> Command:
    """Adds the argument DIR, the data folder of a server."""
    return click.argument(
        "folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False)
    )(command)


def store_in(folder: Path) -> Store:
    """The store in a data folder, which need not exist yet and is not opened for writing."""
    return SqliteStore(folder)


def chosen(store: StoreReader, model_id: str | None) -> list[str]:
    """The names of all models, or the one that is given.

    Raises:
        UnknownModel: there is none of that name.
        StorageFailed: it is no data folder.
    """
    found = store.models()
    if model_id is None:
        return found
    if model_id not in found:
        raise UnknownModel.of(model_id)
    return [model_id]


@contextmanager
def bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar of records on standard error, and remove it when the block ends."""
    console = progress_output(quiet=quiet)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(what, total=None)

        def update(done: int, all_of: int) -> None:
            shown.update(task, completed=done, total=all_of)

        yield update
