"""Formats the summary of a run of `learn` as a few lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bptt.cli.console import number, percent, plural
from bptt.cli.data.problem import join_names
from bptt.cli.names import target_names
from bptt.cli.prequential import Anomalies, ANOMALY_SCORE
from bptt.cli.run_statistics import Band, Summary
from bptt.client import Model


def summary_lines(summary: Summary, naive: str, model: Model, bits: float) -> Iterator[str]:
    """Yield the lines of a summary.

    Args:
        summary: of the run.
        naive: name of the naive forecast.
        model: the model that learned.
        bits: recent cross-entropy in bits a token; NaN if unknown.
    """
    yield (
        f"error relative to {naive}: {number(summary.whole.ratio)}, "
        f"second half {number(summary.second_half.ratio)}"
    )
    if summary.farthest is not None:
        whole, half = summary.farthest
        yield (
            f"{model.horizon} steps ahead: {number(whole.ratio)}, second half {number(half.ratio)}"
        )
    if summary.band is not None:
        yield _band_line(summary.band, target_names(model))
    if summary.anomalies is not None and summary.anomalies.steps:
        yield _anomalies_line(summary.anomalies)
    if summary.accuracy is not None:
        yield (
            f"accuracy {percent(summary.accuracy)}; cross-entropy "
            f"{number(float(summary.whole.error[0]))} bits, second half "
            f"{number(float(summary.second_half.error[0]))}"
        )
    if model.task == "next_token":
        wrong = float(summary.second_half.error[0])
        recent = f"; recently {number(bits)} bits a token" if math.isfinite(bits) else ""
        yield (f"top-1 accuracy in the second half {percent(1 - wrong)}{recent}")
    yield (
        f"loss {number(summary.loss)}, "
        f"median gradient norm {number(summary.median_gradient_norm)}, "
        f"updates clipped {percent(summary.clipped_share)}"
    )
    if summary.skipped_updates:
        yield (
            f"{summary.skipped_updates:,} of {plural(summary.updates, 'update')} skipped: loss or "
            "gradient not finite; try a lower --learning-rate"
        )


def _band_line(band: Band, names: Sequence[str]) -> str:
    """Show the band one step ahead, for as many targets as fit a line."""
    ends = zip(names, band[0][0].tolist(), band[1][0].tolist(), strict=True)
    shown = [f"{name} {number(low)} to {number(high)}" for name, low, high in ends]
    return f"90 % of recent errors: {join_names(shown)}"


def _anomalies_line(found: Anomalies) -> str:
    lowest = ", ".join(
        f"{step:,} ({score:.0e})" if score else f"{step:,} (0)" for score, step in found.lowest
    )
    return (
        f"anomalies: {plural(found.steps, 'step')} with a score below {ANOMALY_SCORE:.0e}; "
        f"lowest at {lowest}"
    )
