"""Models and streams that are too large are refused before they are allocated."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bptt.config import Limits, ServerConfig
from bptt.domain import LaneRefused, ModelDefinition
from bptt.engine.responses import ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import InvalidRequest, LimitReached, ServerStopping
from bptt.observability.metrics import Metrics
from bptt_core import bytes_of_stream, ChunkResult, Learner, ModelSpec
from tests.engine.support import Answer, message, of_one_lane


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"hidden_size": 2048, "layers": 5, "k2": 4096}, "k2", "4096"),
        ({"hidden_size": 2048, "k1": 4096, "k2": 4096}, "hidden_size", "2048"),
        ({"hidden_size": 3000, "layers": 5, "cell": "lstm"}, "hidden_size", "3000"),
    ],
)
def test_a_model_that_is_too_large_is_refused_with_what_would_help(
    fields: dict[str, Any], field: str, value: str
) -> None:
    definition = ModelDefinition("m", ModelSpec(input_size=8, **fields))
    with pytest.raises(InvalidRequest) as caught:
        definition.check_size(Limits())
    [violation] = caught.value.violations
    assert violation.field == f"spec.{field}"
    assert f"is {value} with" in violation.description
    assert "the server's limit" in violation.description


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hidden_size": 2048, "layers": 5},
        {"hidden_size": 512, "layers": 2, "k2": 512},
        {"cell": "gru", "hidden_size": 1024, "layers": 2},
    ],
)
def test_a_model_that_fits_is_not_refused(fields: dict[str, Any]) -> None:
    ModelDefinition("m", ModelSpec(input_size=8, **fields)).check_size(Limits())


async def test_streams_end_where_their_memory_would() -> None:
    spec = ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4)
    limits = Limits(streams_bytes=2 * bytes_of_stream(spec) + 1)
    with ThreadPoolExecutor(1) as executor:
        trainer = Trainer(
            ModelDefinition("m", spec),
            Learner(spec, backend="reference"),
            executor=executor,
            store=None,
            sink=Metrics(),
            config=ServerConfig(limits=limits),
        )
        trainer.start()
        responses = ResponseQueue(10, 10_000)

        async def give(stream_id: str) -> Answer:
            x = np.ones((3, 2), np.float32)
            chunk = message(stream_id, None, x, None, end_of_sequence=False)
            trainer.accept(chunk, responses.pending(1))
            return of_one_lane(await responses.next())

        assert isinstance(await give("a"), ChunkResult)
        assert isinstance(await give("b"), ChunkResult)
        refused = await give("c")
        assert isinstance(refused, LaneRefused)
        assert isinstance(refused.error, LimitReached)
        assert "at most 2, the server" in refused.error.message
        assert isinstance(await give("a"), ChunkResult)
        await trainer.stop(refusal=ServerStopping(), save=False)
        assert sorted(trainer.views) == ["a", "b"]
