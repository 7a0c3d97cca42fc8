"""`bptt models export` and `import`: networks as safetensors files, with PyTorch's names."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from bptt.cli.ask import request
from bptt.cli.connection import address_option
from bptt.cli.console import json_option, plural, print_json
from bptt.client import ModelSpec

EXPORT_EXAMPLE = """\b
Example:
  bptt models export sea sea.safetensors
"""
IMPORT_EXAMPLE = """\b
Examples:
  bptt models import copy sea.safetensors
  bptt models import pump pump.safetensors --task regression
"""

_HINTS = get_type_hints(ModelSpec)


def _choices(field: str) -> click.Choice[str]:
    return click.Choice(get_args(_HINTS[field]))


@click.command("export", epilog=EXPORT_EXAMPLE)
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@address_option
@json_option("one document with the file and its size")
def export_model(name: str, file: Path, overwrite: bool, address: str, as_json: bool) -> None:
    """Write a model's network to FILE, in the safetensors format.

    The arrays have PyTorch's names: a module with `rnn` (nn.RNN, nn.LSTM or nn.GRU) and `head`
    (nn.Linear) loads them with strict=True. Spec, names and scaling are in the file's metadata, so
    that `bptt models import` makes the same model of it. Streams and the optimizer's state stay.
    """
    if file.exists() and not overwrite:
        raise click.ClickException(f"{file} exists; --overwrite replaces it")
    if not file.absolute().parent.is_dir():
        raise click.ClickException(f"the folder {file.absolute().parent} does not exist")
    data = request(address, lambda client: client.export_model(name))
    from bptt.durability.files import replace  # not at the top: other commands do without it

    try:
        replace(file, data)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from error
    if as_json:
        print_json({"model_id": name, "file": str(file), "size_bytes": len(data)})
    else:
        click.echo(f"model {name}: wrote {file}, {len(data):,} bytes")


@click.command("import", epilog=IMPORT_EXAMPLE)
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--task", type=_choices("task"), help="What the network predicts; for files of PyTorch."
)
@click.option("--cell", type=_choices("cell"), help="The cell; needed for nn.RNN with ReLU.")
@click.option(
    "--scaling/--no-scaling",
    default=None,
    help="Standardise inputs and targets online. A network of PyTorch gets its values as they are.",
)
@click.option("--learning-rate", type=float, help="Step size of the optimizer.")
@click.option("--k1", type=int, help="New steps between two updates.")
@click.option("--k2", type=int, help="Steps over which the gradient reaches back.")
@address_option
@json_option("one document: the model, and notes on what was assumed")
def import_model(name: str, file: Path, address: str, as_json: bool, **spec: Any) -> None:
    """Create a model from a safetensors FILE; it goes on learning from there.

    FILE is one of `bptt models export`, or a PyTorch module with one nn.RNN, nn.LSTM or nn.GRU and
    one nn.Linear, saved by `safetensors.torch.save_file(module.state_dict(), FILE)`.
    """
    if zipfile.is_zipfile(file):
        raise click.ClickException(
            f"{file} is a file of torch.save, which holds a pickle and is not read; write it with "
            "safetensors.torch.save_file(module.state_dict(), FILE)"
        )
    data = file.read_bytes()
    given = {field: value for field, value in spec.items() if value is not None}
    imported = request(address, lambda client: client.import_model(name, data, given))
    if as_json:
        print_json(dataclasses.asdict(imported))
        return
    model = imported.model
    shape = f"{model.spec['cell']} {model.spec['layers']}×{model.spec['hidden_size']}"
    click.echo(
        f"model {name}: created from {file}: {model.spec['task']}, {shape}, "
        f"{plural(model.parameters, 'parameter')}"
    )
    for note in imported.notes:
        click.echo(f"note: {note}")
