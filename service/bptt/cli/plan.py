"""Resolves the options of `bptt learn` and a file's columns into what a model learns.

The plan names the input columns, the targets and the times; from it follow the spec of a new model
and the checks against an existing one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bptt.cli.data.columns import OTHER_CLASS
from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError, join_names
from bptt.cli.data.survey import Survey, survey, survey_sample, Wanted
from bptt.cli.data.understood import Choice, Understood
from bptt.client import Model

CLASSES_MAX = 4096  # the server's bound for output_size

Notify = Callable[[str], None]
"""Prints one line for the user."""


@dataclass(slots=True)
class LearnOptions:
    """The options of `bptt learn` that concern the file and the model."""

    file: str
    model_id: str
    columns: list[str]
    """Parts of `--columns` between its commas; a title may hold commas itself."""
    targets: list[str]
    """The same of `--targets`."""
    classes: list[str]
    missing: str
    """`take` or `leave-out`."""
    reading: ReadOptions
    """How the file is read."""
    stream_column: str | None
    """The column whose cells name the stream of each row."""
    gap_seconds: float | None
    other_names: bool
    new_classes: bool
    """Classes that the model does not have are learned as its class OTHER_CLASS."""
    settings: dict[str, Any]
    """Fields of the model's spec that were given as options."""


@dataclass(slots=True)
class Plan:
    """The columns and values that are learned from each row."""

    task: str
    inputs: list[str]
    targets: list[str]
    """Target columns, which follow the inputs in a batch; empty for a forecast."""
    forecast: list[str]
    """The columns to forecast; empty: all inputs."""
    stream_column: str | None = None
    """The column whose cells name the stream of each row."""
    classes: list[str] = field(default_factory=list)
    scan: Survey | None = None
    """Result of the look through the whole file; None for a source that can be read only once."""

    @property
    def label(self) -> str | None:
        """The column of classes."""
        return self.targets[0] if self.task == "classification" else None


def check_read(model: Model) -> Model:
    """Return a model whose spec the server knows.

    Raises:
        InputError: the server has read nothing of it, because it is recovering or damaged.
    """
    if "task" not in model.spec:
        wait = f"model {model.model_id} is {model.state}; try again later"
        raise InputError(model.state_reason or wait)
    return model


def make_plan(options: LearnOptions, understood: Understood, model: Model | None) -> Plan:
    """Decide which columns are inputs and targets.

    Args:
        options: what the user asked for.
        understood: the file's columns.
        model: the model, if it exists already; its column names are the default.

    Raises:
        InputError: a column does not exist, is missing, or does not fit the model.
    """
    task = options.settings.get("task") or (model.task if model else "forecast")
    if options.new_classes and task != "classification":
        raise InputError(f"--new-classes applies to classification, but the task is {task}")
    if model is not None and model.task == "next_token" and not model.spec["input_names"]:
        raise InputError(f"model {options.model_id} was made for text; add --text")
    asked = understood.resolve("--columns", options.columns)
    asked_targets = understood.resolve("--targets", options.targets)
    stream_column = None
    if options.stream_column is not None:
        (stream_column,) = understood.resolve("--stream-column", [options.stream_column])
    columns = asked or _input_names(options, model, understood)
    if not columns:
        columns = [name for name in understood.numeric if name != stream_column]
    targets: list[str] = []
    if task in ("regression", "classification"):
        targets = asked_targets or _target_names(task, model, understood)
        columns = [name for name in columns if name not in targets]
    if task == "classification" and len(targets) != 1:
        raise InputError(f"--targets names {len(targets)} columns, but classes are in one")
    if not columns:
        reasons = [f"{name!r} is {reason}" for name, reason in understood.left_out.items()]
        raise InputError(
            f"{options.file} has no numeric column to learn from ({join_names(reasons)}); "
            "name columns with --columns, or say with --delimiter and --decimal how the file is "
            "written"
        )
    if options.gap_seconds is not None and understood.time is None:
        raise InputError(
            "--gap needs a column of times, but none was recognised; name it with --time, and how "
            "times are written with --time-format"
        )
    if options.reading.sort and understood.time is None:
        raise InputError(
            "--sort needs a column of times, but none was recognised; name it with --time"
        )
    forecast = asked_targets if task == "forecast" else []
    return Plan(task, columns, targets, forecast, stream_column)


def _input_names(options: LearnOptions, model: Model | None, understood: Understood) -> list[str]:
    """Return the input columns of an existing model; empty if they are not known."""
    names = list(model.spec["input_names"]) if model else []
    absent = [name for name in names if name not in understood.header]
    if absent and not options.other_names:
        raise InputError(
            f"model {options.model_id} was made for columns {join_names(names)}, but "
            f"{options.file} has no {join_names(absent)}; name the columns to use instead with "
            "--columns and --other-names"
        )
    return [] if absent else names


def _target_names(task: str, model: Model | None, understood: Understood) -> list[str]:
    names = list(model.spec.get("target_names", ())) if model and task == "regression" else []
    if names and all(name in understood.header for name in names):
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


def wanted_of(options: LearnOptions, plan: Plan, model: Model | None) -> Wanted:
    """What a look through the file must check."""
    classes = options.classes
    if plan.task == "classification" and model is not None:
        classes = class_names(model)
    return Wanted(
        columns=plan.inputs + (plan.targets if plan.task == "regression" else []),
        label=plan.label,
        classes=frozenset(classes) if classes and not options.new_classes else None,
        gap_seconds=options.gap_seconds,
        stream_column=plan.stream_column,
    )


def scan(options: LearnOptions, understood: Understood, wanted: Wanted, *, is_live: bool) -> Survey:
    """Read a whole file, or of a live input the first rows, before anything is learned.

    Args:
        options: how the file is read.
        understood: of its first rows.
        wanted: what will be learned from it.
        is_live: the input can be read only once.

    Raises:
        InputError: it would be learned wrong; the message names the place and the option.
    """
    if not is_live:
        return survey(options.file, options.reading, wanted)
    if options.reading.sort or wanted.stream_column is not None:
        flag = "--sort" if options.reading.sort else "--stream-column"
        raise InputError(f"{flag} needs a file, but standard input can be read only once")
    return survey_sample(understood, wanted, options.reading)


def class_names(model: Model) -> list[str]:
    """Names of a model's classes; their ids if it was made without names."""
    spec = model.spec
    return list(spec["target_names"]) or [str(i) for i in range(spec["output_size"])]


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
    if options.new_classes and OTHER_CLASS not in classes:
        classes = [*classes, OTHER_CLASS]
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
    lacking = plan.inputs + plan.targets if plan.scan is None else plan.scan.lacking
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
        if options.new_classes and OTHER_CLASS not in options.classes:
            wanted["target_names"] = [*options.classes, OTHER_CLASS]
    check_settings(options.model_id, spec, wanted, plan.inputs)
    _check_names(options, plan, model, notify)
    if plan.task == "classification":
        plan.classes = class_names(model)
        if options.new_classes and OTHER_CLASS not in plan.classes:
            raise InputError(
                f"--new-classes needs the class {OTHER_CLASS!r}, which model {options.model_id} "
                f"does not have (it has {join_names(plan.classes)}); a new --model that is made "
                "with --new-classes has it"
            )


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
    options: LearnOptions, plan: Plan, understood: Understood, model: Model
) -> Choice:
    """Return what to read from each row for a model."""
    names = plan.inputs + plan.targets
    late = model.spec.get("label_delay", 0) > 0
    keep_input = model.spec.get("missing_inputs", False)
    keep_target = model.spec.get("missing_targets", False) or late
    classes = None
    if plan.task == "classification":
        classes = {name: place for place, name in enumerate(plan.classes)}
    return Choice(
        columns=[understood.header.index(name) for name in names],
        keep_missing=[keep_input] * len(plan.inputs) + [keep_target] * len(plan.targets),
        classes=classes,
        other_class=classes[OTHER_CLASS] if classes is not None and options.new_classes else None,
        gap_seconds=math.inf if options.gap_seconds is None else options.gap_seconds,
        sort=options.reading.sort,
    )
