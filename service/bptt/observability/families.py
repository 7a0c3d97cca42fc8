"""Every metric of a server: its name, type and meaning, and where its value comes from.

The help texts are what Prometheus and Grafana show beside a series, and the source of
docs/metrics.md. Each says what a reading means; where a reading calls for it, also what to do.

A gauge and a histogram cannot share a name. Gauges have the plain one and show the last update;
the histograms of all updates are called `bptt_update_…`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bptt.domain import Gauges
from bptt.observability.counts import MethodMetrics, ModelMetrics
from bptt.observability.exposition import Family


@dataclass(frozen=True, slots=True)
class ModelReading:
    """One model at a scrape."""

    counts: ModelMetrics
    gauges: Gauges | None
    """None: the model is not in memory."""


@dataclass(frozen=True, slots=True)
class ServerReading:
    """What a scrape shows of the server itself."""

    models: dict[str, int]
    """By state."""
    queue_chunks: int
    """`limits.queue_chunks`."""


ModelFamily = Family[ModelReading]


def _figure(name: str) -> Callable[[ModelReading], Any]:
    """Read a field of `Figures` of a model in memory."""

    def read(reading: ModelReading) -> float | None:
        return None if reading.gauges is None else getattr(reading.counts.figures, name)

    return read


def _known_figure(name: str) -> Callable[[ModelReading], Any]:
    """The same, without a series while it is NaN: other tasks do not have it."""

    def read(reading: ModelReading) -> float | None:
        value = None if reading.gauges is None else getattr(reading.counts.figures, name)
        return None if value is None or math.isnan(value) else value

    return read


def _gauge(name: str) -> Callable[[ModelReading], Any]:
    """Read a field of `Gauges`."""
    return lambda reading: None if reading.gauges is None else getattr(reading.gauges, name)


def _count(name: str) -> Callable[[ModelReading], Any]:
    """Read an attribute of `ModelMetrics`."""
    return lambda reading: getattr(reading.counts, name)


def _flow(name: str) -> Callable[[ModelReading], Any]:
    """Read an attribute of the gradient flow, once it is measured."""

    def read(reading: ModelReading) -> Any:
        flow = reading.counts.gradient_flow
        return None if flow is None else getattr(flow, name)

    return read


_LEARNING: tuple[ModelFamily, ...] = (
    ModelFamily(
        "bptt_loss",
        "gauge",
        "Loss of the last update, before the parameters changed. NaN before the first update. "
        "Compare it with bptt_baseline_loss; a loss that rises for long means that the series has "
        "changed or the learning rate is too high.",
        _figure("loss"),
    ),
    ModelFamily(
        "bptt_baseline_loss",
        "gauge",
        "Loss of the naive forecast on the same steps: the last value, or the running mean. A "
        "bptt_loss that stays above it means that the model has not learned anything useful yet.",
        _figure("baseline_loss"),
    ),
    ModelFamily(
        "bptt_skill_ratio",
        "gauge",
        "Prequential error relative to the naive forecast over about the last 1,000 steps. Below 1 "
        "the model is better than the naive forecast; above 1 it is worse, and its predictions "
        "should not be used.",
        _figure("skill_ratio"),
    ),
    ModelFamily(
        "bptt_network_skill_ratio",
        "gauge",
        "As bptt_skill_ratio, of the network without the experts beside it. Far above "
        "bptt_skill_ratio, the network does not earn its keep: a simple expert forecasts better, "
        "see bptt_expert_weight.",
        _figure("network_skill_ratio"),
    ),
    ModelFamily(
        "bptt_expert_weight",
        "gauge",
        "Share of each `expert` in the forecasts, mean over outputs: the network, the last value, "
        "the mean, two averages, and least squares on changes and on levels. They add up to 1.",
        _figure("expert_weights"),
        label="expert",
        full_only=True,
    ),
    ModelFamily(
        "bptt_accuracy",
        "gauge",
        "Classes and tokens: share of about the last 1,000 targets that were predicted as the "
        "likeliest. Compare it with the share of the most frequent class.",
        _known_figure("accuracy"),
    ),
    ModelFamily(
        "bptt_cross_entropy",
        "gauge",
        "Classes and tokens: mean cross-entropy of about the last 1,000 targets, in bits. The "
        "number of bits that the model needs for one target; lower is better.",
        _known_figure("cross_entropy_bits"),
    ),
    ModelFamily(
        "bptt_gradient_norm",
        "gauge",
        "L2 norm of the last update's gradient before clipping. Far above its usual value: the "
        "gradients explode, so lower the learning rate. Close to 0: nothing is learned any more.",
        _figure("gradient_norm"),
    ),
    ModelFamily(
        "bptt_clipped_gradient_norm",
        "gauge",
        "L2 norm of the last update's gradient after clipping. Equal to bptt_gradient_norm unless "
        "the update was clipped.",
        _figure("clipped_gradient_norm"),
    ),
    ModelFamily(
        "bptt_parameter_norm",
        "gauge",
        "L2 norm of all parameters. It grows slowly; a jump or steady growth precedes divergence.",
        _figure("parameter_norm"),
    ),
    ModelFamily(
        "bptt_learning_rate",
        "gauge",
        "Step size of the optimizer, as set now. `UpdateModel` changes it without a restart.",
        _figure("learning_rate"),
    ),
    ModelFamily(
        "bptt_limited_inputs",
        "gauge",
        "Inputs so far that were limited for the network because they were 8 deviations or more "
        "from their mean or from the value before: spikes, error codes, shifts of level. A steady "
        "rate means that the source is faulty, or that the series jumps as a rule.",
        _figure("limited_inputs"),
    ),
    ModelFamily(
        "bptt_diverged",
        "gauge",
        "1 while the model does not learn because divergence_patience consecutive updates were not "
        "finite; otherwise 0. Lower the learning rate or restore a checkpoint, then resume with "
        "`UpdateModel(paused=false)`.",
        lambda reading: None if reading.gauges is None else int(reading.counts.figures.diverged),
    ),
)

_FLOW: tuple[ModelFamily, ...] = (
    ModelFamily(
        "bptt_gradient_flow_ratio",
        "gauge",
        "Share of a gradient's norm that remains `lag` steps back, for lags 1, 2, 4, … and the "
        "window's length. Falls towards 0: gradients vanish; rises above 1: they explode. Measured "
        "no more often than every 1,000 updates, and for at most 0.5 % of the time.",
        _flow("by_lag"),
        label="lag",
        full_only=True,
    ),
    ModelFamily(
        "bptt_memory_horizon_steps",
        "gauge",
        "Largest lag at which more than 1 % of a gradient's norm remains; the window's length "
        "means that or more. Far below bptt_window_steps: the window costs time and teaches "
        "nothing, so use an LSTM or GRU, or a smaller k2.",
        _flow("memory_horizon"),
    ),
    ModelFamily(
        "bptt_window_steps",
        "gauge",
        "Length of the window at the last measurement of the gradient flow: k2, unless a sequence "
        "was shorter.",
        _flow("steps"),
    ),
    ModelFamily(
        "bptt_recurrent_spectral_radius",
        "gauge",
        "Largest absolute eigenvalue of the recurrent weights; LSTM and GRU: of the candidate's "
        "block. Well above 1, gradients may explode; well below 1, they vanish.",
        _flow("spectral_radius"),
    ),
)

_WORK: tuple[ModelFamily, ...] = (
    ModelFamily(
        "bptt_streams",
        "gauge",
        "Streams of the model. Each holds memory; delete those that do not come back.",
        _gauge("streams"),
    ),
    ModelFamily(
        "bptt_queue_chunks",
        "gauge",
        "Chunks that wait to be learned. At bptt_queue_limit_chunks the server stops reading, so "
        "clients wait: send larger chunks, or move models to another server.",
        _gauge("queue_chunks"),
    ),
    ModelFamily(
        "bptt_snapshot_age_steps",
        "gauge",
        "Steps that were accepted but are not visible to predictions yet.",
        _gauge("snapshot_age_steps"),
    ),
    ModelFamily(
        "bptt_steps_total",
        "counter",
        "Steps learned or held for the next window. A rate of 0 while bptt_queue_chunks is above 0 "
        "means that the model is stuck.",
        _count("steps"),
    ),
    ModelFamily(
        "bptt_updates_total",
        "counter",
        "Optimizer steps, including skipped ones.",
        _count("updates"),
    ),
    ModelFamily(
        "bptt_clipped_updates_total",
        "counter",
        "Updates whose gradient was clipped. A share above a half of bptt_updates_total means that "
        "clipping sets the step size: raise max_norm or lower the learning rate.",
        _count("clipped"),
    ),
    ModelFamily(
        "bptt_skipped_updates_total",
        "counter",
        "Updates that changed no parameter, by `reason`: loss or gradient not finite. Any increase "
        "is a warning: look for extreme inputs, or lower the learning rate.",
        _count("skipped"),
        label="reason",
    ),
    ModelFamily(
        "bptt_roll_backs_total",
        "counter",
        "Divergences after which the model returned to a checkpoint with a smaller learning rate.",
        _count("roll_backs"),
    ),
    ModelFamily(
        "bptt_duplicate_steps_total",
        "counter",
        "Steps that were already known and trimmed. Expected after a client reconnects; a steady "
        "rate means that two clients send the same stream.",
        _count("duplicates"),
    ),
    ModelFamily(
        "bptt_rejected_chunks_total",
        "counter",
        "Chunks that were refused, by `reason`: that of the error in lower case. They are not "
        "learned; the client was told why.",
        _count("rejected"),
        label="reason",
    ),
)

_DISTRIBUTIONS: tuple[ModelFamily, ...] = (
    ModelFamily(
        "bptt_update_loss",
        "histogram",
        "Loss of every update, before the parameters changed.",
        _count("loss"),
    ),
    ModelFamily(
        "bptt_update_gradient_norm",
        "histogram",
        "L2 norm of every update's gradient before clipping.",
        _count("gradient_norm"),
    ),
    ModelFamily(
        "bptt_update_clipped_gradient_norm",
        "histogram",
        "L2 norm of every update's gradient after clipping.",
        _count("clipped_gradient_norm"),
    ),
    ModelFamily(
        "bptt_tick_streams",
        "histogram",
        "Streams that were learned from in one tick. More streams in a tick cost less each.",
        _count("tick_streams"),
    ),
    ModelFamily(
        "bptt_update_seconds",
        "histogram",
        "Duration of an update: its tick's, shared evenly.",
        _count("update_seconds"),
    ),
    ModelFamily(
        "bptt_predict_seconds",
        "histogram",
        "Duration of a prediction, from request to answer.",
        _count("predict_seconds"),
    ),
    ModelFamily(
        "bptt_checkpoint_seconds",
        "histogram",
        "Time until a checkpoint is durable. No new checkpoint while steps are learned means that "
        "the journal grows and a recovery takes longer.",
        _count("checkpoint_seconds"),
    ),
    ModelFamily(
        "bptt_journal_commit_seconds",
        "histogram",
        "Duration of a commit to the journal. Acknowledgements wait for it; above 0.1 s the disk "
        "is overloaded or failing.",
        _count("journal_commit_seconds"),
    ),
    ModelFamily(
        "bptt_recovery_seconds",
        "gauge",
        "Duration of the model's last recovery from the store; 0 if it was created since the "
        "server started. A shorter checkpoint interval makes it shorter.",
        _count("recovery_seconds"),
    ),
)

MODEL_FAMILIES: tuple[ModelFamily, ...] = (*_LEARNING, *_FLOW, *_WORK, *_DISTRIBUTIONS)
"""Families with one subject for each model; label `model`."""

STATE_FAMILY: Family[dict[str, int]] = Family(
    "bptt_model_state",
    "gauge",
    "1, with the model's state as the label `state`. Anything but running and paused needs a look; "
    "`bptt models` says the reason.",
    lambda state: state,
    label="state",
)
"""One series for each model, not one for each state: a scrape may cover 1,000 models."""

FAILURE_FAMILY: Family[dict[str, int]] = Family(
    "bptt_model_failures_total",
    "counter",
    "Times the model failed or could not be loaded, by `reason`: the activity that failed. The "
    "server's log has the error; the model is loaded again by itself a few times.",
    lambda reasons: reasons,
    label="reason",
)

SERVER_FAMILIES: tuple[Family[ServerReading], ...] = (
    Family(
        "bptt_models",
        "gauge",
        "Models of the server, by `state`.",
        lambda server: server.models,
        label="state",
    ),
    Family(
        "bptt_queue_limit_chunks",
        "gauge",
        "Chunks that the queue of one model holds: the setting limits.queue_chunks.",
        lambda server: server.queue_chunks,
    ),
)

BUILD_FAMILY: Family[int] = Family(
    "bptt_build_info",
    "gauge",
    "1, with the versions of the server, Python, NumPy and Numba as labels. Replay is exact only "
    "with the versions that wrote the journal.",
    lambda one: one,
)

METHOD_FAMILIES: tuple[Family[MethodMetrics], ...] = (
    Family(
        "grpc_server_started_total",
        "counter",
        "Calls that started.",
        lambda method: method.counts["started"],
    ),
    Family(
        "grpc_server_handled_total",
        "counter",
        "Calls that ended, by `grpc_code`. INTERNAL and UNKNOWN are faults of the server: report "
        "them with its log.",
        lambda method: method.codes,
        label="grpc_code",
    ),
    Family(
        "grpc_server_handling_seconds",
        "histogram",
        "Time from a call's start to its end. A Learn call may be open for hours.",
        lambda method: method.seconds,
    ),
    Family(
        "grpc_server_msg_received_total",
        "counter",
        "Messages received.",
        lambda method: method.counts["received"],
    ),
    Family(
        "grpc_server_msg_sent_total",
        "counter",
        "Messages sent.",
        lambda method: method.counts["sent"],
    ),
)
"""Families with one subject for each RPC method that was called."""
