"""Names of what a model predicts."""

from __future__ import annotations

from bptt.client import Model


def target_names(model: Model) -> list[str]:
    """Return the names of a prediction's values: columns, targets or classes."""
    spec = model.spec
    if spec["task"] != "forecast":
        noun = "class" if spec["task"] == "classification" else "target"
        return list(spec["target_names"]) or [f"{noun} {place}" for place in range(model.targets)]
    columns = spec["target_columns"] or range(spec["input_size"])
    names = spec["input_names"]
    return [names[column] if names else f"input {column}" for column in columns]
