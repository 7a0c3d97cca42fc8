"""Resolves the options of `bptt learn` and a file's columns into what a model learns.

The plan names the input columns, the targets and the times; from it follow the spec of a new model
and the checks against an existing one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bptt.cli.data.csvfile import ColumnSelection, CsvTable, Sample
from bptt.cli.data.source import Batch, InputError, join_names
from bptt.cli.data.values import seconds_of
from bptt.client import Model

SCAN_ROWS = 64  # rows in a batch while a file is scanned before learning
CLASSES_MAX = 4096  # the server's bound for output_size
GAP_FACTOR = 10  # a pause this many times the median interval is reported as a gap

Notify = Callable[[str], None]
"""Prints one line for the user."""


@dataclass(slots=True)
class LearnOptions:
    """The options of `bptt learn` that concern the file and the model."""

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
    """Fields of the model's spec that were given as options."""


@dataclass(slots=True)
class Plan:
    """What is learned from each row."""

    task: str
    inputs: list[str]
    targets: list[str]
    """Target columns, which follow the inputs in a batch; empty for a forecast."""
    forecast: list[str]
    """The columns to forecast; empty: all inputs."""
    time: int | None
    """Index of the column of times."""
    classes: list[str] = field(default_factory=list)
    scan: FileScan | None = None
    """Result of the scan; None for a source that can be read only once."""


@dataclass(slots=True)
class FileScan:
    """Statistics of a whole file."""

    missing: dict[str, int] = field(default_factory=dict)
    """Number of missing values, by column."""
    classes: set[str] = field(default_factory=set)
    median_seconds: float = math.nan
    """Median interval between two rows."""
    gaps: int = 0
    """Intervals of at least GAP_FACTOR times the median."""


def check_read(model: Model) -> Model:
    """Return a model whose spec the server knows.

    Raises:
        InputError: the server has read nothing of it, because it is recovering or damaged.
    """
    if "task" not in model.spec:
        wait = f"model {model.model_id} is {model.state}; try again later"
        raise InputError(model.state_reason or wait)
    return model


def make_plan(options: LearnOptions, sample: Sample, model: Model | None, notify: Notify) -> Plan:
    """Decide which columns are inputs, targets and times.

    Args:
        options: what the user asked for.
        sample: the file's columns.
        model: the model, if it exists already; its column names are the default.
        notify: told which columns are left out.

    Raises:
        InputError: a column does not exist, is missing, or does not fit the model.
    """
    task = options.settings.get("task") or (model.task if model else "forecast")
    if model is not None and model.task == "next_token" and not model.spec["input_names"]:
        raise InputError(f"model {options.model_id} was made for text; add --text")
    for name in options.columns:
        sample.index("--columns", name)
    for name in options.targets:
        sample.index("--targets", name)
    columns = options.columns or _input_names(options, model, sample)
    if not columns:
        for name in sample.header:
            if name in sample.left_out and name not in options.targets:
                notify(f"column {name!r} is left out: {sample.left_out[name]}")
        columns = sample.numeric
    targets: list[str] = []
    if task in ("regression", "classification"):
        targets = options.targets or _target_names(task, model, sample)
        columns = [name for name in columns if name not in targets]
    if not columns:
        raise InputError(f"{options.file} has no numeric column to learn from")
    time = sample.time if options.time is None else sample.index("--time", options.time)
    if options.gap_seconds is not None and time is None:
        raise InputError(
            "--gap needs a column of times, but none was recognised; name it with --time"
        )
    forecast = options.targets if task == "forecast" else []
    return Plan(task, columns, targets, forecast, time)


def _input_names(options: LearnOptions, model: Model | None, sample: Sample) -> list[str]:
    """Return the input columns of an existing model; empty if they are not known."""
    names = list(model.spec["input_names"]) if model else []
    absent = [name for name in names if name not in sample.header]
    if absent and not options.other_names:
        raise InputError(
            f"model {options.model_id} was made for columns {join_names(names)}, but "
            f"{options.file} has no {join_names(absent)}; name the columns to use instead with "
            "--columns and --other-names"
        )
    return [] if absent else names


def _target_names(task: str, model: Model | None, sample: Sample) -> list[str]:
    names = list(model.spec.get("target_names", ())) if model and task == "regression" else []
    if names and all(name in sample.header for name in names):
        return names
    raise InputError(f"--targets is required for {task}; name the target column, as in --targets A")


def _check_names(options: LearnOptions, plan: Plan, model: Model, notify: Notify) -> None:
    """Refuse columns with names other than the model's, unless --other-names allows them."""
    names = list(model.spec["input_names"])
    if not names or names == plan.inputs:
        return
    text = (
        f"model {options.model_id} was made for columns {join_names(names)}, "
        f"not {join_names(plan.inputs)}"
    )
    if not options.other_names:
        raise InputError(f"{text}; add --other-names to learn them anyway")
    notify(f"note: {text}")


def scan_file(file: str, plan: Plan) -> FileScan:
    """Read a whole file, so that an invalid value is reported before anything is learned.

    Args:
        file: path of a regular file.
        plan: what will be learned from it.

    Raises:
        InputError: a value is invalid; the message names its line and column.
    """
    scan = FileScan()
    with CsvTable(file) as table:
        sample = table.sample()
        names = plan.inputs + (plan.targets if plan.task == "regression" else [])
        columns = [sample.index("--columns", name) for name in names]
        counts = np.zeros(len(columns), np.int64)
        label = None
        if plan.task == "classification":
            label = sample.index("--targets", plan.targets[0])
        times: list[float] = []

        def collect(record: list[str]) -> None:
            if label is not None and record[label].strip():
                scan.classes.add(record[label].strip())
            when = None if plan.time is None else seconds_of(record[plan.time])
            if when is not None:
                times.append(when)

        def count(batch: Batch) -> None:
            counts[:] += np.isnan(batch.values).sum(axis=0)

        selection = ColumnSelection(columns=columns, keep_missing=[True] * len(columns))
        table.read(selection, SCAN_ROWS, count, collect)
    scan.missing = {n: int(c) for n, c in zip(names, counts, strict=True) if c}
    if len(times) > 2:
        steps = np.diff(times)
        scan.median_seconds = float(np.median(steps))
        if scan.median_seconds > 0:
            scan.gaps = int((steps >= GAP_FACTOR * scan.median_seconds).sum())
    return scan


def build_spec(options: LearnOptions, plan: Plan) -> dict[str, Any]:
    """Return the spec of a new model.

    Raises:
        InputError: the classes or the targets cannot be determined.
    """
    spec: dict[str, Any] = {"input_size": len(plan.inputs), "input_names": plan.inputs}
    if plan.task == "classification":
        _set_classes(options, plan)
        spec |= {"output_size": len(plan.classes), "target_names": plan.classes}
    elif plan.targets:
        spec |= {"output_size": len(plan.targets), "target_names": plan.targets}
    elif plan.task == "forecast":
        spec["target_columns"] = target_columns(plan)
    if plan.task == "classification":
        spec["missing_targets"] = True
    if options.missing == "take":
        spec |= _missing_fields(plan)
    return spec | options.settings


def _set_classes(options: LearnOptions, plan: Plan) -> None:
    classes = options.classes or sorted(plan.scan.classes if plan.scan else (), key=_class_order)
    if not classes:
        raise InputError(
            "--classes is required for standard input, which is read only once; "
            "list the classes, as in --classes A,B"
        )
    if len(classes) > CLASSES_MAX:
        raise InputError(
            f"column {plan.targets[0]!r} has {len(classes):,} classes; at most {CLASSES_MAX:,} "
            "are supported"
        )
    plan.classes = classes


def _class_order(name: str) -> tuple[float, str]:
    """Sort key: numbers by value, then words alphabetically."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _missing_fields(plan: Plan) -> dict[str, bool]:
    """Allow missing values where the file has some, or where it could not be scanned."""
    lacking = plan.inputs + plan.targets if plan.scan is None else list(plan.scan.missing)
    spec = {}
    if any(name in lacking for name in plan.inputs):
        spec["missing_inputs"] = True
    if plan.task == "regression" and any(name in lacking for name in plan.targets):
        spec["missing_targets"] = True
    return spec


def target_columns(plan: Plan) -> list[int]:
    """Return the indices of the inputs to forecast; empty: all.

    Raises:
        InputError: a target is not among the inputs.
    """
    for name in plan.forecast:
        if name not in plan.inputs:
            raise InputError(
                f"--targets: {name!r} is not among the columns learned from, which are "
                + join_names(plan.inputs)
            )
    return [plan.inputs.index(name) for name in plan.forecast]


def check_model(options: LearnOptions, plan: Plan, model: Model, notify: Notify) -> None:
    """Check that an existing model matches the options.

    Raises:
        InputError: it does not; the message names the setting.
    """
    spec: dict[str, Any] = dict(model.spec)
    wanted = {"input_size": len(plan.inputs), **options.settings}
    if plan.task == "regression":
        wanted["output_size"] = len(plan.targets)
    elif plan.forecast:
        wanted["target_columns"] = target_columns(plan)
    if options.classes:
        wanted["target_names"] = options.classes
    check_settings(options.model_id, spec, wanted, plan.inputs)
    _check_names(options, plan, model, notify)
    if plan.task == "classification":
        plan.classes = list(spec["target_names"]) or [str(i) for i in range(spec["output_size"])]


def check_settings(
    model_id: str, spec: dict[str, Any], wanted: dict[str, Any], inputs: list[str]
) -> None:
    """Check that an existing model has the wanted settings.

    Raises:
        InputError: a setting differs; the message names it and both values.
    """
    for name, value in wanted.items():
        if spec.get(name) != value:
            columns = f" (columns: {join_names(inputs)})" if name == "input_size" else ""
            raise InputError(
                f"model {model_id} exists with {name} {spec.get(name)}, but {value} was "
                f"requested{columns}; name another --model, or leave the option out"
            )


def select_columns(
    options: LearnOptions, plan: Plan, sample: Sample, model: Model
) -> ColumnSelection:
    """Return what to read from each row for a model."""
    names = plan.inputs + plan.targets
    late = model.spec.get("label_delay", 0) > 0
    keep_input = model.spec.get("missing_inputs", False)
    keep_target = model.spec.get("missing_targets", False) or late
    classes = None
    if plan.task == "classification":
        classes = {name: place for place, name in enumerate(plan.classes)}
    return ColumnSelection(
        columns=[sample.index("--columns", name) for name in names],
        keep_missing=[keep_input] * len(plan.inputs) + [keep_target] * len(plan.targets),
        classes=classes,
        time=plan.time if options.gap_seconds is not None else None,
        gap_seconds=math.inf if options.gap_seconds is None else options.gap_seconds,
    )
