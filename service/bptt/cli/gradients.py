"""`bptt gradients`: how gradients vanish and explode, on one picture. Needs no server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from bptt.cli.console import json_option, number, output, print_json
from bptt.cli.csvfile import Batch, Choice, CsvTable, InputError
from bptt_core import gradient_flow, GradientFlow, ModelSpec, params
from bptt_core.gradient_flow import HORIZON_SHARE
from bptt_core.specs import CellName

Array = NDArray[np.float64]

STEPS_MAX = 1024  # the exploding network's states grow to 1e180 by then; a double holds 1e308
HIDDEN_SIZE_MIN, HIDDEN_SIZE_MAX = 32, 1024  # of fewer, too many may be shut; more take a minute
RELU_GAIN = 1.5  # over He's: what a gradient's norm is multiplied by at each step, on average
CHART_WIDTH, CHART_HEIGHT = 78, 22
DRAWN_MAX = 16  # powers of ten to either side of 1; what is beyond is drawn at the edge
SUFFIXES = (".png", ".svg")

EXAMPLE = """\b
Examples:
  bptt gradients
  bptt gradients --steps 128 --output gradients.svg
  bptt gradients --input sensor.csv
"""


@dataclass(frozen=True)
class Network:
    """One curve of the picture."""

    name: str
    cell: CellName
    initialisation: str
    initialise: Callable[[ModelSpec, params.Views, np.random.Generator, int], None]
    """Changes fresh parameters, which are PyTorch's uniform(-1/√H, 1/√H); knows the steps."""
    mark: str
    style: str
    colour: str


def _as_pytorch(
    spec: ModelSpec, named: params.Views, random: np.random.Generator, steps: int
) -> None:
    """Leave them: a spectral radius of about 1/√3, so that tanh's slope is not even needed."""


def _above_he(
    spec: ModelSpec, named: params.Views, random: np.random.Generator, steps: int
) -> None:
    """Normal with a variance of 2/H times RELU_GAIN².

    Half of all ReLUs are shut, which He et al. (2015) make up for with the 2.
    """
    deviation = RELU_GAIN * (2 / spec.hidden_size) ** 0.5
    W = named["rnn.weight_hh_l0"]
    W[:] = random.normal(0, deviation, W.shape)


def _chrono(spec: ModelSpec, named: params.Views, random: np.random.Generator, steps: int) -> None:
    """Tallec and Ollivier (2018): forget gates that stay open for 1 to `steps` steps."""
    H = spec.hidden_size
    forget = np.log(random.uniform(1, max(2, steps - 1), H))
    named["rnn.bias_hh_l0"][:] = 0
    named["rnn.bias_ih_l0"][:] = np.concatenate([-forget, forget, np.zeros(2 * H)])


NETWORKS = (
    Network("tanh RNN", "rnn_tanh", "PyTorch's default", _as_pytorch, "·", "cyan", "#0072B2"),
    Network(
        "ReLU RNN", "rnn_relu", f"He's, times {RELU_GAIN}", _above_he, "+", "bold red", "#D55E00"
    ),
    Network("LSTM", "lstm", "chrono", _chrono, "o", "bold green", "#009E73"),
)


@click.command(epilog=EXAMPLE)
@click.option(
    "--steps",
    type=click.IntRange(2, STEPS_MAX),
    default=64,
    show_default=True,
    help="Steps that the gradient goes back.",
)
@click.option(
    "--hidden-size",
    type=click.IntRange(HIDDEN_SIZE_MIN, HIDDEN_SIZE_MAX),
    default=64,
    show_default=True,
    help="Units of each network.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of weights, noise and the direction that is pushed back.",
)
@click.option(
    "--input",
    "path",
    metavar="FILE.csv",
    help="Read the first steps of this series, standardised, in place of noise; - is standard "
    "input.",
)
@click.option(
    "--output",
    "picture",
    metavar="FILE.png|FILE.svg",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the picture to a file too. Needs matplotlib: pip install matplotlib.",
)
@json_option("one document with the curves")
def gradients(
    steps: int, hidden_size: int, seed: int, path: str | None, picture: Path | None, as_json: bool
) -> None:
    """Show how gradients vanish in a tanh RNN, explode in a ReLU RNN, and last in an LSTM.

    Three networks, not yet trained, read the same steps. A unit vector is pushed back from the last
    of them; the picture shows what is left of its norm at every lag. Memory horizon: the largest
    lag at which more than 1 % is left.
    """
    if picture is not None and picture.suffix.lower() not in SUFFIXES:
        raise click.BadParameter(
            f"{str(picture)!r} ends in neither of {', '.join(SUFFIXES)}", param_hint="--output"
        )
    inputs = _noise(steps, seed) if path is None else _series(path, steps)
    flows = [_flow(network, inputs, hidden_size, seed) for network in NETWORKS]
    if picture is not None:
        _write(picture, flows)
    if as_json:
        print_json(_document(flows, steps, hidden_size, seed))
        return
    out = output()
    out.print(_chart(flows))
    out.print(_table(flows))
    if picture is not None:
        out.print(f"written to {picture}", markup=False, soft_wrap=True)


def _noise(steps: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(steps, 1))


class _Enough(Exception):
    """All the rows that are needed were read."""


def _series(path: str, steps: int) -> Array:
    """The first steps of all columns of numbers, (T, D), each with mean 0 and deviation 1."""
    found: list[Batch] = []

    def take(batch: Batch) -> None:
        if len(batch.values):
            found.append(batch)
        if sum(len(each.values) for each in found) >= steps:
            raise _Enough

    with CsvTable(path) as table:
        sample = table.sample()
        if not sample.numeric:
            raise InputError(f"{table.name} has no column of numbers")
        choice = Choice(columns=[sample.header.index(name) for name in sample.numeric])
        try:
            table.read(choice, steps, take)
        except _Enough:
            pass
        else:
            rows = sum(len(each.values) for each in found)
            raise InputError(
                f"{table.name} has {rows} rows without missing values, but --steps is {steps}"
            )
    values = np.concatenate([each.values for each in found])[:steps].astype(np.float64)
    spread = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1))


def _flow(network: Network, inputs: Array, hidden_size: int, seed: int) -> GradientFlow:
    spec = ModelSpec(
        task="regression",
        input_size=inputs.shape[1],
        output_size=1,
        cell=network.cell,
        hidden_size=hidden_size,
        dtype="float64",
        seed=seed,
    )
    named = params.views(spec, params.initialise(spec))
    network.initialise(spec, named, np.random.default_rng(seed), len(inputs))
    return gradient_flow(spec, named, inputs, seed=seed)


def _document(
    flows: list[GradientFlow], steps: int, hidden_size: int, seed: int
) -> dict[str, object]:
    return {
        "steps": steps,
        "hidden_size": hidden_size,
        "seed": seed,
        "horizon_share": HORIZON_SHARE,
        "networks": [
            {
                "name": network.name,
                "cell": network.cell,
                "initialisation": network.initialisation,
                "spectral_radius": flow.spectral_radius,
                "memory_horizon": flow.memory_horizon,
                "ratios": flow.ratios,
            }
            for network, flow in zip(NETWORKS, flows, strict=True)
        ],
    }


def _horizon(flow: GradientFlow) -> str:
    """In steps; a curve that is cut off before it falls says so."""
    more = " or more" if flow.memory_horizon == flow.steps else ""
    return f"{flow.memory_horizon}{more}"


def _table(flows: list[GradientFlow]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("network", no_wrap=True)
    table.add_column("initialised", no_wrap=True)
    for title in ("spectral radius", "memory horizon", f"left at lag {flows[0].steps}"):
        table.add_column(title, justify="right")
    for network, flow in zip(NETWORKS, flows, strict=True):
        table.add_row(
            Text(network.mark, style=network.style),
            network.name,
            network.initialisation,
            f"{flow.spectral_radius:.3f}",
            _horizon(flow),
            number(float(flow.ratios[-1])),
        )
    table.caption = "spectral radius: of W; for the LSTM, of its candidate's block of W"
    table.caption_justify = "left"
    return table


def _drawn(flow: GradientFlow) -> list[float]:
    """Powers of ten of the curve, kept within the picture."""
    with np.errstate(divide="ignore"):
        powers = np.log10(flow.ratios)
    return list(np.clip(powers, -DRAWN_MAX, DRAWN_MAX).tolist())


def _chart(flows: list[GradientFlow]) -> Text:
    """The curves, drawn in characters."""
    import plotext  # only pictures need it

    steps = flows[0].steps
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(CHART_WIDTH, CHART_HEIGHT)
    figure.title("norm of a gradient that is pushed back, over what it was at lag 0")
    lags = list(range(steps + 1))
    floor = [np.log10(HORIZON_SHARE)] * len(lags)
    figure.draw(_line(figure, lags, floor, "-"))
    for network, flow in zip(NETWORKS, flows, strict=True):
        figure.draw(_line(figure, lags, _drawn(flow), network.mark))
    figure.label(f"lag, in steps (- - the memory horizon: {HORIZON_SHARE:.0%})")
    drawn = [power for flow in flows for power in _drawn(flow)]
    low, high = int(np.floor(min(*drawn, -2))), int(np.ceil(max(*drawn, 0)))
    every = max(1, round((high - low) / 8))
    powers = [power for power in range(low, high + 1) if power % every == 0]
    figure.ruler("y").ticks(powers, [f"1e{power}" for power in powers])
    marked = sorted({*range(0, steps + 1, max(1, steps // 8))})
    figure.ruler("x").ticks(marked, [str(lag) for lag in marked])
    plain = Text.from_ansi(str(figure.build())).plain
    return Text("\n").join(_coloured(row.rstrip()) for row in plain.splitlines())


def _line(figure: Any, lags: list[int], powers: list[float], mark: str) -> Any:
    signal = figure.signal(lags, powers, marker=mark)
    signal.lines(True)
    return signal


def _coloured(row: str) -> Text:
    text = Text(row)
    if row.endswith("│"):  # inside the frame; a title has letters that are no marks
        for network in NETWORKS:
            text.highlight_regex(f"[{network.mark}]+", network.style)
    return text


def _write(picture: Path, flows: list[GradientFlow]) -> None:
    """The picture as a file.

    Raises:
        click.ClickException: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # an extra; heavy
    except ImportError:
        raise click.ClickException(
            "--output needs matplotlib, which is not installed: pip install matplotlib"
        ) from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for network, flow in zip(NETWORKS, flows, strict=True):
        label = (
            f"{network.name} ({network.initialisation}): "
            f"spectral radius {flow.spectral_radius:.2f}, memory horizon {_horizon(flow)}"
        )
        axes.plot(10.0 ** np.array(_drawn(flow)), color=network.colour, label=label)
    axes.axhline(HORIZON_SHARE, color="grey", linestyle="--", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlim(0, flows[0].steps)
    axes.set_xlabel("lag, in steps")
    axes.set_ylabel("norm of the gradient over that at lag 0")
    axes.set_title("Gradients vanish, explode, and last")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    try:
        figure.savefig(picture, dpi=150)
    except OSError as error:
        raise click.ClickException(f"{picture} cannot be written: {error.strerror}") from None
