"""`bptt gradients`: plots how gradients vanish and explode. Needs no server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from bptt.cli.console import json_option, number, output, print_json
from bptt.cli.data.problem import InputError
from bptt.cli.data.source import Batch
from bptt.cli.data.table import DataTable
from bptt.cli.data.understood import Choice
from bptt.cli.tables import ResultTable
from bptt_core import gradient_flow, GradientFlow, ModelSpec, params
from bptt_core.gradient_flow import HORIZON_SHARE
from bptt_core.specs import CellName

Array = NDArray[np.float64]

STEPS_MAX = 1024  # the exploding network's states reach 1e180; a double holds 1e308
HIDDEN_SIZE_MIN, HIDDEN_SIZE_MAX = (
    32,
    1024,
)  # fewer: too many ReLUs may be off; more: takes a minute
RELU_GAIN = 1.5  # relative to He's; the average factor on a gradient's norm at each step
CHART_WIDTH, CHART_HEIGHT = 78, 22
DRAWN_MAX = 16  # powers of ten drawn on either side of 1; values beyond are drawn at the edge
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
    """Changes new parameters, which are PyTorch's uniform(-1/√H, 1/√H).

    Arguments: spec, named parameters, random generator, number of steps.
    """
    mark: str
    style: str
    colour: str


def _as_pytorch(
    spec: ModelSpec, named: params.Views, random: np.random.Generator, steps: int
) -> None:
    """Keep them: their spectral radius of about 1/√3 makes gradients vanish even without tanh."""


def _above_he(
    spec: ModelSpec, named: params.Views, random: np.random.Generator, steps: int
) -> None:
    """Draw W from a normal distribution with variance RELU_GAIN² · 2/H.

    Source:
        He et al. (2015); their factor 2 compensates for the half of all ReLUs that are off.
    """
    deviation = RELU_GAIN * (2 / spec.hidden_size) ** 0.5
    W = named["rnn.weight_hh_l0"]
    W[:] = random.normal(0, deviation, W.shape)


def _chrono(spec: ModelSpec, named: params.Views, random: np.random.Generator, steps: int) -> None:
    """Set forget gates that stay open for 1 to `steps` steps.

    Source:
        Tallec and Ollivier (2018), "Can recurrent neural networks warp time?" (chrono
        initialisation).
    """
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
    help="Number of steps the gradient is propagated back.",
)
@click.option(
    "--hidden-size",
    type=click.IntRange(HIDDEN_SIZE_MIN, HIDDEN_SIZE_MAX),
    default=64,
    show_default=True,
    help="Hidden units of each network.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the weights, the noise and the direction of the propagated vector.",
)
@click.option(
    "--input",
    "path",
    metavar="FILE.csv",
    help="Use the first steps of this series, standardised, instead of noise; - is standard input.",
)
@click.option(
    "--output",
    "picture",
    metavar="FILE.png|FILE.svg",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the picture to a file. Needs matplotlib: pip install 'bptt[plots]'.",
)
@json_option("one document with the curves")
def gradients(
    steps: int, hidden_size: int, seed: int, path: str | None, picture: Path | None, as_json: bool
) -> None:
    """Show how gradients vanish in a tanh RNN, explode in a ReLU RNN, and last in an LSTM.

    Three untrained networks read the same steps. A unit vector is propagated back from the last
    step; the picture shows how much of its norm remains at every lag. Memory horizon: the largest
    lag at which more than 1 % remains.
    """
    if picture is not None and picture.suffix.lower() not in SUFFIXES:
        raise click.BadParameter(
            f"{str(picture)!r} must end in {' or '.join(SUFFIXES)}", param_hint="--output"
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
    note = "spectral radius: of W; for the LSTM, of the candidate's block of W"
    _table(flows).print(out, [note])
    if picture is not None:
        out.print(f"written to {picture}", markup=False, soft_wrap=True)


def _noise(steps: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(steps, 1))


class _EnoughRows(Exception):
    """Raised to stop reading once all needed rows were read."""


def _series(path: str, steps: int) -> Array:
    """Return the first steps of all numeric columns, (T, D), with mean 0 and deviation 1."""
    found: list[Batch] = []

    def take(batch: Batch) -> None:
        if len(batch.values):
            found.append(batch)
        if sum(len(each.values) for each in found) >= steps:
            raise _EnoughRows

    with DataTable(path) as table:
        understood = table.understand()
        names = understood.header
        if not understood.numeric:
            raise InputError(f"{table.name} has no numeric column")
        choice = Choice(columns=[names.index(name) for name in understood.numeric])
        try:
            table.read(choice, steps, take)
        except _EnoughRows:
            pass
        else:
            rows = sum(len(each.values) for each in found)
            raise InputError(
                f"{table.name} has only {rows} rows without missing values, but --steps is {steps}"
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
    """Format the memory horizon; `or more` if the curve ends before it falls."""
    more = " or more" if flow.memory_horizon == flow.steps else ""
    return f"{flow.memory_horizon}{more}"


def _table(flows: list[GradientFlow]) -> ResultTable:
    table = ResultTable().text().text("network").text("initialised")
    last = flows[0].steps
    table.numbers("spectral radius", "memory horizon", f"remaining at lag {last}", folds=True)
    for network, flow in zip(NETWORKS, flows, strict=True):
        table.row(
            Text(network.mark, style=network.style),
            network.name,
            network.initialisation,
            f"{flow.spectral_radius:.3f}",
            _horizon(flow),
            number(float(flow.ratios[-1])),
        )
    return table


def _drawn(flow: GradientFlow) -> list[float]:
    """Return the curve as powers of ten, limited to the picture's range."""
    with np.errstate(divide="ignore"):
        powers = np.log10(flow.ratios)
    return list(np.clip(powers, -DRAWN_MAX, DRAWN_MAX).tolist())


def _chart(flows: list[GradientFlow]) -> Text:
    """Draw the curves in characters."""
    import plotext  # imported only where it draws

    steps = flows[0].steps
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(CHART_WIDTH, CHART_HEIGHT)
    figure.title("norm of the back-propagated gradient, relative to lag 0")
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
    if row.endswith("│"):  # inside the frame only: titles contain the same letters
        for network in NETWORKS:
            text.highlight_regex(f"[{network.mark}]+", network.style)
    return text


def _write(picture: Path, flows: list[GradientFlow]) -> None:
    """Write the picture to a file.

    Raises:
        click.ClickException: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # an optional dependency
    except ImportError:
        raise click.ClickException(
            "--output needs matplotlib, which is not installed; type: pip install 'bptt[plots]'"
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
    axes.set_ylabel("norm of the gradient, relative to lag 0")
    axes.set_title("Gradients vanish, explode, and last")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    try:
        figure.savefig(picture, dpi=150)
    except OSError as error:
        raise click.ClickException(f"cannot write {picture}: {error.strerror}") from None
