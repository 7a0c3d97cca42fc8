"""A run of `learn` in a few lines for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bptt.cli.console import number
from bptt.cli.csvfile import some
from bptt.cli.predict import target_names
from bptt.cli.report import Band, Summary
from bptt.cli.score import Anomalies, ANOMALY
from bptt.client import Model


def figures(summary: Summary, naive: str, model: Model, bits: float) -> Iterator[str]:
    """Lines about a run.

    Args:
        summary: of the run.
        naive: what its errors are held against.
        model: that learned.
        bits: a token, lately; NaN: nobody knows.
    """
    yield (
        f"error over that of {naive}: {number(summary.whole.ratio)}, "
        f"second half {number(summary.second_half.ratio)}"
    )
    if summary.farthest is not None:
        whole, half = summary.farthest
        yield (
            f"{model.horizon} steps ahead: {number(whole.ratio)}, second half {number(half.ratio)}"
        )
    if summary.band is not None:
        yield _band(summary.band, target_names(model))
    if summary.anomalies is not None and summary.anomalies.steps:
        yield _anomalies(summary.anomalies)
    if summary.accuracy is not None:
        yield (
            f"accuracy {percent(summary.accuracy)}; cross-entropy "
            f"{number(float(summary.whole.error[0]))} bits, second half "
            f"{number(float(summary.second_half.error[0]))}"
        )
    if model.task == "next_token":
        wrong = float(summary.second_half.error[0])
        lately = f"; lately {number(bits)} bits each" if math.isfinite(bits) else ""
        yield (
            f"the likeliest token was right {percent(1 - wrong)} of the time in the second "
            f"half{lately}"
        )
    yield (
        f"loss {number(summary.loss)}, "
        f"median gradient norm {number(summary.median_gradient_norm)}, "
        f"updates clipped {percent(summary.clipped_share)}"
    )
    if summary.skipped_updates:
        yield (
            f"{summary.skipped_updates:,} of {count(summary.updates, 'update')} skipped: "
            "not finite; try a lower --learning-rate"
        )


def _band(band: Band, names: Sequence[str]) -> str:
    """Of one step ahead, and of as many targets as a line has room for."""
    ends = zip(names, band[0][0].tolist(), band[1][0].tolist(), strict=True)
    told = [f"{name} {number(low)} to {number(high)}" for name, low, high in ends]
    return f"nine of ten recent errors: {some(told)}"


def _anomalies(found: Anomalies) -> str:
    lowest = ", ".join(
        f"{step:,} ({score:.0e})" if score else f"{step:,} (0)" for score, step in found.lowest
    )
    return (
        f"anomalies: {count(found.steps, 'step')} with a score below {ANOMALY:.0e}; "
        f"the lowest at {lowest}"
    )


def count(many: int, what: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{many:,} {what}" if many == 1 else f"{many:,} {what}s"


def percent(share: float) -> str:
    """With one decimal; a dash where there is none."""
    return "–" if math.isnan(share) else f"{share:.1%}"
