"""What of a CSV is learned: which columns, which of them may lack values, where sequences end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bptt.cli.csvfile import Batch, Choice, CsvTable, InputError, Sample, seconds_of, some
from bptt.client import Model

CHECK_ROWS = 64  # in a batch, while a file is only looked at
CLASSES_MAX = 4096  # the server's bound for output_size
JUMP = 10  # times the usual step in time: what is told to be a gap

Say = Callable[[str], None]


@dataclass(slots=True)
class Wish:
    """What was asked for on the command line."""

    file: str
    model_id: str
    columns: list[str]
    targets: list[str]
    classes: list[str]
    missing: str
    """`take` or `leave-out`."""
    time: str | None
    gap_seconds: float | None
    other_names: bool
    settings: dict[str, Any]


@dataclass(slots=True)
class Plan:
    """What of each row is learned, and as what."""

    task: str
    inputs: list[str]
    targets: list[str]
    """Columns behind the inputs; none for a forecast."""
    forecast: list[str]
    """The columns that are forecast; none: all."""
    time: int | None
    classes: list[str] = field(default_factory=list)
    found: Findings | None = None
    """What a look through the whole file has shown; None where it cannot be read twice."""


@dataclass(slots=True)
class Findings:
    """What there is in a file."""

    missing: dict[str, int] = field(default_factory=dict)
    """Values that are missing, by column."""
    classes: set[str] = field(default_factory=set)
    usual_seconds: float = math.nan
    gaps: int = 0
    """Rows that come JUMP times later than usual, or more."""


def choose(wish: Wish, sample: Sample, model: Model | None, say: Say) -> Plan:
    """The columns to learn.

    Raises:
        InputError: they are not there, or do not fit the model.
    """
    task = wish.settings.get("task") or (model.task if model else "forecast")
    if model is not None and model.task == "next_token" and not model.spec["input_names"]:
        raise InputError(f"model {wish.model_id} was made for text: say so with --text")
    for name in wish.columns:
        sample.index("--columns", name)
    for name in wish.targets:
        sample.index("--targets", name)
    columns = wish.columns or _of_model(wish, model, sample)
    if not columns:
        for name in (n for n in sample.header if n in sample.left_out and n not in wish.targets):
            say(f"column {name!r} is left out: {sample.left_out[name]}")
        columns = sample.numeric
    targets: list[str] = []
    if task in ("regression", "classification"):
        targets = wish.targets or _target_of_model(task, model, sample)
        columns = [name for name in columns if name not in targets]
    if not columns:
        raise InputError(f"{wish.file} has no column of numbers to learn from")
    time = sample.time if wish.time is None else sample.index("--time", wish.time)
    if wish.gap_seconds is not None and time is None:
        raise InputError("--gap needs a column of times; name it with --time")
    forecast = wish.targets if task == "forecast" else []
    return Plan(task, columns, targets, forecast, time)


def _of_model(wish: Wish, model: Model | None, sample: Sample) -> list[str]:
    """The columns that the model was made with."""
    names = list(model.spec["input_names"]) if model else []
    gone = [name for name in names if name not in sample.header]
    if gone and not wish.other_names:
        raise InputError(
            f"model {wish.model_id} was made for columns {some(names)}, but {wish.file} has no "
            f"{some(gone)}; say with --columns and --other-names which to take in their place"
        )
    return [] if gone else names


def _target_of_model(task: str, model: Model | None, sample: Sample) -> list[str]:
    names = list(model.spec.get("target_names", ())) if model and task == "regression" else []
    if names and all(name in sample.header for name in names):
        return names
    raise InputError(f"--targets is missing, but a {task} must be told its columns")


def _check_names(wish: Wish, plan: Plan, model: Model, say: Say) -> None:
    """Columns of other names than the model's are learned only if that was said."""
    names = list(model.spec["input_names"])
    if not names or names == plan.inputs:
        return
    text = f"model {wish.model_id} was made for columns {some(names)}, not {some(plan.inputs)}"
    if not wish.other_names:
        raise InputError(f"{text}; --other-names learns them all the same")
    say(f"note: {text}")


def look_through(file: str, plan: Plan) -> Findings:
    """Read a file to its end, so that a bad value is told before anything is learned from it.

    Raises:
        InputError: a value cannot be read; it is named by line and column.
    """
    found = Findings()
    with CsvTable(file) as table:
        sample = table.sample()
        names = plan.inputs + (plan.targets if plan.task == "regression" else [])
        columns = [sample.index("--columns", name) for name in names]
        counts = np.zeros(len(columns), np.int64)
        label = None
        if plan.task == "classification":
            label = sample.index("--targets", plan.targets[0])
        times: list[float] = []

        def look(record: list[str]) -> None:
            if label is not None and record[label].strip():
                found.classes.add(record[label].strip())
            when = None if plan.time is None else seconds_of(record[plan.time])
            if when is not None:
                times.append(when)

        def count(batch: Batch) -> None:
            counts[:] += np.isnan(batch.values).sum(axis=0)

        choice = Choice(columns=columns, keep_missing=[True] * len(columns))
        table.read(choice, CHECK_ROWS, count, look)
    found.missing = {n: int(c) for n, c in zip(names, counts, strict=True) if c}
    if len(times) > 2:
        steps = np.diff(times)
        found.usual_seconds = float(np.median(steps))
        if found.usual_seconds > 0:
            found.gaps = int((steps >= JUMP * found.usual_seconds).sum())
    return found


def spec_of(wish: Wish, plan: Plan) -> dict[str, Any]:
    """What a model of this plan is.

    Raises:
        InputError: there is something that the file does not tell.
    """
    spec: dict[str, Any] = {"input_size": len(plan.inputs), "input_names": plan.inputs}
    if plan.task == "classification":
        _name_classes(wish, plan)
        spec |= {"output_size": len(plan.classes), "target_names": plan.classes}
    elif plan.targets:
        spec |= {"output_size": len(plan.targets), "target_names": plan.targets}
    elif plan.task == "forecast":
        spec["target_columns"] = target_columns(plan)
    if plan.task == "classification":
        spec["missing_targets"] = True
    if wish.missing == "take":
        spec |= _missing(plan)
    return spec | wish.settings


def _name_classes(wish: Wish, plan: Plan) -> None:
    classes = wish.classes or sorted(plan.found.classes if plan.found else (), key=_class_order)
    if not classes:
        raise InputError("--classes is missing, but standard input does not tell them beforehand")
    if len(classes) > CLASSES_MAX:
        where = f"column {plan.targets[0]!r}"
        raise InputError(f"{where} has {len(classes):,} classes, but {CLASSES_MAX} are the most")
    plan.classes = classes


def _class_order(name: str) -> tuple[float, str]:
    """Numbers in their order, then words in theirs."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _missing(plan: Plan) -> dict[str, bool]:
    """What a model takes as missing: inputs where the file lacks some, or cannot be looked at."""
    lacking = plan.inputs + plan.targets if plan.found is None else list(plan.found.missing)
    spec = {}
    if any(name in lacking for name in plan.inputs):
        spec["missing_inputs"] = True
    if plan.task == "regression" and any(name in lacking for name in plan.targets):
        spec["missing_targets"] = True
    return spec


def target_columns(plan: Plan) -> list[int]:
    """Which inputs are forecast, by index; empty: all.

    Raises:
        InputError: one is not among them.
    """
    for name in plan.forecast:
        if name not in plan.inputs:
            raise InputError(
                f"--targets: {name!r} is not among the columns learned from, which are "
                + some(plan.inputs)
            )
    return [plan.inputs.index(name) for name in plan.forecast]


def check_model(wish: Wish, plan: Plan, model: Model, say: Say) -> None:
    """A model that exists must be the one that the options describe.

    Raises:
        InputError: it is not; names what differs.
    """
    spec: dict[str, Any] = dict(model.spec)
    wanted = {"input_size": len(plan.inputs), **wish.settings}
    if plan.task == "regression":
        wanted["output_size"] = len(plan.targets)
    elif plan.forecast:
        wanted["target_columns"] = target_columns(plan)
    if wish.classes:
        wanted["target_names"] = wish.classes
    check_settings(wish.model_id, spec, wanted, plan.inputs)
    _check_names(wish, plan, model, say)
    if plan.task == "classification":
        plan.classes = list(spec["target_names"]) or [str(i) for i in range(spec["output_size"])]


def check_settings(
    model_id: str, spec: dict[str, Any], wanted: dict[str, Any], inputs: list[str]
) -> None:
    """A model's settings must be those wanted.

    Raises:
        InputError: one is not.
    """
    for name, value in wanted.items():
        if spec.get(name) != value:
            raise InputError(
                f"model {model_id} exists with {name} {spec.get(name)}, but this asks for "
                f"{value}; give another --model or leave the option out"
                + (f" (columns: {some(inputs)})" if name == "input_size" else "")
            )


def choice_of(wish: Wish, plan: Plan, sample: Sample, model: Model) -> Choice:
    """What of each row is read for a model."""
    names = plan.inputs + plan.targets
    late = model.spec.get("label_delay", 0) > 0
    inputs_may = model.spec.get("missing_inputs", False)
    targets_may = model.spec.get("missing_targets", False) or late
    classes = None
    if plan.task == "classification":
        classes = {name: place for place, name in enumerate(plan.classes)}
    return Choice(
        columns=[sample.index("--columns", name) for name in names],
        keep_missing=[inputs_may] * len(plan.inputs) + [targets_may] * len(plan.targets),
        classes=classes,
        time=plan.time if wish.gap_seconds is not None else None,
        gap_seconds=math.inf if wish.gap_seconds is None else wish.gap_seconds,
    )
