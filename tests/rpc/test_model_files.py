"""ExportModel and ImportModel, with a real server; tests/interop has PyTorch on the other side."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import safetensors.numpy

from bptt import v1 as pb
from bptt.config import Limits
from bptt.durability import SqliteStore
from bptt.rpc import servicers
from tests.rpc.harness import failure, Harness, harness, small, until, violations, wave

Arrays = dict[str, Any]


def network(
    gates: int = 1, *, H: int = 4, D: int = 2, O: int = 3, prefix: str = "rnn.", head: str = "head."
) -> Arrays:
    """A network as PyTorch names and lays it out, one layer."""
    random = np.random.default_rng(1)
    shapes = {
        f"{prefix}weight_ih_l0": (gates * H, D),
        f"{prefix}weight_hh_l0": (gates * H, H),
        f"{prefix}bias_ih_l0": (gates * H,),
        f"{prefix}bias_hh_l0": (gates * H,),
        f"{head}weight": (O, H),
        f"{head}bias": (O,),
    }
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


async def export(server: Harness, model_id: str = "m") -> bytes:
    pieces = server.models.ExportModel(pb.ExportModelRequest(model_id=model_id))
    return b"".join([piece.data async for piece in pieces])


async def import_(
    server: Harness, data: bytes, model_id: str = "n", piece: int = 1000, **spec: Any
) -> pb.ImportModelResponse:
    def messages() -> Iterator[pb.ImportModelRequest]:
        named = pb.ImportedModel(model_id=model_id, spec=pb.ModelSpec(**spec))
        yield pb.ImportModelRequest(model=named)
        for start in range(0, len(data), piece):
            yield pb.ImportModelRequest(data=data[start : start + piece])

    response: pb.ImportModelResponse = await server.models.ImportModel(messages())
    return response


async def predictions(server: Harness, model_id: str, inputs: Any) -> Any:
    values = np.asarray(inputs, np.float32).ravel().tolist()
    request = pb.PredictRequest(model_id=model_id, inputs=values)
    return np.array((await server.streams.Predict(request)).predictions)


@pytest.mark.parametrize("task", ["forecast", "regression", "next_token"])
async def test_an_import_of_an_export_predicts_the_same(server: Harness, task: str) -> None:
    spec: dict[str, Any] = {"input_size": 2, "horizon": 2, "input_names": ["a", "b"]}
    if task == "regression":
        spec = {"task": pb.TASK_REGRESSION, "input_size": 2, "output_size": 1, "cell": pb.CELL_LSTM}
    elif task == "next_token":
        spec = {"task": pb.TASK_NEXT_TOKEN, "vocabulary_size": 5, "layers": 2}
    message = pb.ModelSpec(**{"hidden_size": 4, "k1": 2, "k2": 4} | spec)
    await server.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=message))
    call = await server.learn()
    if task == "next_token":
        chunk = pb.Chunk(stream_id="s", input_tokens=[0, 1, 2, 3, 4] * 4)
        await call.raw.write(pb.LearnRequest(chunk=chunk))
    else:
        targets = {"targets": [5.0] * 20} if task == "regression" else {}
        await call.send("s", wave(20) * 7 + 3, **targets)
    await call.learned()
    await call.close()
    imported = await import_(server, await export(server))
    assert not imported.notes
    assert imported.model.spec == (await server.model("m")).spec
    assert (imported.model.steps, imported.model.streams) == (0, 0)
    if task == "next_token":
        request = [pb.PredictRequest(model_id=name, input_tokens=[3, 1]) for name in "mn"]
        first, second = [await server.streams.Predict(each) for each in request]
        assert list(first.top_probabilities) == list(second.top_probabilities)
        return
    inputs = wave(6, 20) * 7 + 3
    given = await predictions(server, "m", inputs)
    assert np.isfinite(given).all()
    np.testing.assert_array_equal(await predictions(server, "n", inputs), given)


async def test_what_is_imported_is_there_after_a_restart(tmp_path: Any) -> None:
    data, inputs = safetensors.numpy.save(network()), wave(3)
    for restarted in (False, True):
        store = SqliteStore(tmp_path)
        store.open()
        try:
            async with harness(store=store) as server:
                if not restarted:
                    await import_(server, data, task=pb.TASK_REGRESSION)
                    given = await predictions(server, "n", inputs)
                else:
                    await server.registry.recover()
                    np.testing.assert_array_equal(await predictions(server, "n", inputs), given)
        finally:
            store.close()


@pytest.mark.parametrize(("gates", "cell"), [(1, "RNN_TANH"), (3, "GRU"), (4, "LSTM")])
async def test_the_shapes_of_a_foreign_file_tell_the_network(
    server: Harness, gates: int, cell: str
) -> None:
    data = safetensors.numpy.save(network(gates, prefix="encoder.lstm.", head="fc."))
    imported = await import_(server, data, task=pb.TASK_REGRESSION)
    spec = imported.model.spec
    assert pb.Cell.Name(spec.cell) == f"CELL_{cell}"
    assert (spec.hidden_size, spec.layers, spec.input_size, spec.output_size) == (4, 1, 2, 3)
    assert not spec.scaling
    notes = list(imported.notes)
    assert "encoder.lstm. read as the recurrent layers, fc as the linear layer" in notes
    assert "scaling off: inputs and targets are fed as they are" in notes
    assert any("tanh or relu" in note for note in notes) == (gates == 1)


async def test_an_imported_network_learns(server: Harness) -> None:
    data = safetensors.numpy.save(network(O=1))
    await import_(server, data, task=pb.TASK_REGRESSION, learning_rate=0.01)
    call = await server.learn("n")
    for first in range(0, 400, 40):
        await call.send("s", wave(40, first), targets=wave(40, first)[:, 0].tolist())
        await call.learned()
    await call.close()
    model = await server.model("n")
    assert model.updates == 100
    assert model.skill_ratio < 0.8


def _without(name: str) -> Arrays:
    return {each: array for each, array in network().items() if each != name}


WRONG: dict[str, tuple[bytes, dict[str, Any], str, str]] = {
    "no file": (b"hello", {}, "data", "header too small"),
    "cut": (safetensors.numpy.save(network())[:-9], {}, "data", "not fully covered"),
    "no arrays": (safetensors.numpy.save({}), {}, "data", "no recurrent module"),
    "two modules": (
        safetensors.numpy.save(network() | network(prefix="other.")),
        {},
        "data",
        "2 recurrent modules",
    ),
    "no head": (
        safetensors.numpy.save(
            {name: each for name, each in network().items() if "head" not in name}
        ),
        {},
        "data",
        "no linear layer",
    ),
    "no bias": (
        safetensors.numpy.save(_without("rnn.bias_hh_l0")),
        {},
        "data.rnn.bias_hh_l0",
        "missing",
    ),
    "not finite": (
        safetensors.numpy.save(network() | {"head.bias": np.full(3, np.nan, np.float32)}),
        {},
        "data.head.bias",
        "not finite",
    ),
    "bidirectional": (
        safetensors.numpy.save(network() | {"rnn.weight_ih_l0_reverse": np.zeros((4, 2))}),
        {},
        "data",
        "beside the recurrent module",
    ),
    "other gates": (safetensors.numpy.save(network(2)), {}, "data", "(8, 4)"),
    "no task": (safetensors.numpy.save(network()), {"task": 0}, "spec.task", "left out"),
    "wrong size": (
        safetensors.numpy.save(network()),
        {"hidden_size": 5},
        "data.rnn.weight_ih_l0",
        "(4, 2)",
    ),
    "integers": (
        safetensors.numpy.save(network() | {"head.bias": np.zeros(3, np.int64)}),
        {},
        "data.head.bias",
        "int64",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_file_is_refused_and_makes_no_model(server: Harness, case: str) -> None:
    data, spec, field, told = WRONG[case]
    error = await failure(import_(server, data, **({"task": pb.TASK_REGRESSION} | spec)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    [(named, description)] = violations(error)
    assert named == field
    assert told in description
    assert not (await server.models.ListModels(pb.ListModelsRequest())).models


async def test_metadata_of_another_form_is_refused(server: Harness) -> None:
    for own in ("{", json.dumps({"format": "x"}), json.dumps({"format": "bptt model 1"})):
        data = safetensors.numpy.save(network(), {"bptt": own})
        error = await failure(import_(server, data, task=pb.TASK_REGRESSION))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, own
    spec = {"task": "regression", "output_size": 3, "hidden_size": "4"}
    own = json.dumps(
        {
            "format": "bptt model 1",
            "spec": spec,
            "statistics": {},
            "input_names": [],
            "target_names": [],
        }
    )
    error = await failure(import_(server, safetensors.numpy.save(network(), {"bptt": own})))
    assert violations(error)[0][0] == "spec.hidden_size"


async def test_a_file_that_is_too_large_is_refused() -> None:
    async with harness(Limits(parameters=1000)) as server:
        error = await failure(import_(server, bytes(20_000_000), piece=1 << 20))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "at most that: the server's limit is 1000 parameters" in str(error.details())


async def test_a_client_that_sends_for_ever_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicers, "DRAIN_SECONDS", 0.2)

    async def messages() -> AsyncIterator[pb.ImportModelRequest]:
        yield pb.ImportModelRequest(model=pb.ImportedModel(model_id="n"))
        while True:
            yield pb.ImportModelRequest(data=bytes(100_000))

    async with harness(Limits(parameters=1000)) as server:
        error = await failure(server.models.ImportModel(messages()))
        assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
        await until(lambda: not server.registry.making)
        assert not (await server.models.ListModels(pb.ListModelsRequest())).models


async def test_messages_in_another_order_are_refused(server: Harness) -> None:
    named = pb.ImportModelRequest(model=pb.ImportedModel(model_id="n"))
    data = pb.ImportModelRequest(data=b"x")
    for sent, told in (
        ([], "message is none"),
        ([data], "message is data"),
        ([named, named], "message is model"),
        ([pb.ImportModelRequest()], "message is empty"),
    ):
        error = await failure(server.models.ImportModel(iter(sent)))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert told in str(error.details())


async def test_names_that_exist_and_that_do_not(server: Harness) -> None:
    await server.create("m")
    error = await failure(import_(server, await export(server), "m"))
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    pieces = server.models.ExportModel(pb.ExportModelRequest(model_id="x"))
    assert (await failure(pieces.read())).code() == grpc.StatusCode.NOT_FOUND
    error = await failure(import_(server, await export(server), "No Name"))
    assert violations(error)[0][0] == "model_id"
    assert small().input_size == 2
