"""What the commands that look into a data folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bptt.cli.console import progress_output
from bptt.durability import inspection
from bptt.durability.files import storage
from bptt.errors import UnknownModel

Command = TypeVar("Command", bound=Callable[..., Any])


def data_argument(command: Command) -> Command:
    """DIR, the data folder of a server."""
    return click.argument(
        "folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False)
    )(command)


def chosen(folder: Path, model_id: str | None) -> list[Path]:
    """The folders of all models, or of the one that is named.

    Raises:
        UnknownModel: there is none of that name.
        StorageFailed: it is no data folder.
    """
    with storage("read", folder):
        found = inspection.model_folders(folder)
    if model_id is None:
        return found
    named = [each for each in found if each.name == model_id]
    if not named:
        raise UnknownModel.of(model_id)
    return named


@contextmanager
def bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of records on standard error, which is gone when its block ends."""
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
