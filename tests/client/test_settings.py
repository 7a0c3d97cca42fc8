"""Every option of a spec over the wire: the server learns the same as the core alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt.client import Client, Learned
from bptt_core import Learner, ModelSpec

SETTINGS: dict[str, dict[str, Any]] = {
    "relu": {"cell": "rnn_relu"},
    "lstm": {"cell": "lstm", "layers": 2},
    "gru": {"cell": "gru"},
    "momentum": {"optimizer": "momentum"},
    "rmsprop": {"optimizer": "rmsprop"},
    "adagrad": {"optimizer": "adagrad"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.02},
    "clip by layer": {"clip": "layer_norm", "clip_threshold": 0.2},
    "schedule": {"warmup_updates": 5, "decay_updates": 10, "final_learning_rate": 1e-4},
}


@pytest.mark.same_bits
@pytest.mark.parametrize("setting", SETTINGS)
async def test_a_setting_reaches_the_core(client: Client, name: str, setting: str) -> None:
    spec: Any = {"input_size": 2, "hidden_size": 6, "k1": 2, "k2": 6} | SETTINGS[setting]
    created = await client.create_model(name, spec)
    for field, value in spec.items():
        assert created.spec[field] == value  # type: ignore[literal-required]
    walk = np.random.default_rng(0).normal(size=(60, 2)).cumsum(axis=0).astype(np.float32)
    async with client.learn(name) as session:
        await session.send("a", walk)
        answer = await anext(session)
    learner = Learner(ModelSpec(**spec))
    result = learner.feed(walk[:, np.newaxis])
    assert isinstance(answer, Learned)
    losses = [report.loss for report in answer.updates]
    assert losses == [report.loss for report in result.updates]
    assert len(losses) > 20


async def test_bernoulli_predictions_are_probabilities(client: Client, name: str) -> None:
    spec: Any = {"task": "regression", "input_size": 1, "output_size": 1, "loss": "bernoulli"}
    await client.create_model(name, spec)
    x = np.random.default_rng(0).normal(size=(1000, 1)).astype(np.float32)
    async with client.learn(name) as session:
        await session.send("a", x, (x > 0).astype(np.float32))
        answer = await anext(session)
    assert isinstance(answer, Learned)
    assert answer.predictions is not None
    predicted = answer.predictions.ravel()
    assert ((predicted > 0) & (predicted < 1)).all()
    alone = Learner(ModelSpec(**spec)).feed(x[:, np.newaxis], (x > 0)[:, np.newaxis] * 1.0)
    assert alone.predictions is not None
    np.testing.assert_array_equal(predicted, alone.predictions.ravel().astype(np.float32))
