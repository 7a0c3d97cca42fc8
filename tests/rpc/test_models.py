"""ModelService: creating, showing, listing and deleting models, and refusals."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Any

import grpc
import pytest

from bptt import v1 as pb
from bptt.config import Limits
from bptt_core import ModelSpec
from tests.rpc.harness import failure, Harness, harness, small, until, violations, wave


async def test_a_model_is_created_with_its_defaults_filled_in(server: Harness) -> None:
    spec = pb.ModelSpec(input_size=3, input_names=["a", "b", "c"])
    response = await server.models.CreateModel(pb.CreateModelRequest(model_id="m-1.x_y", spec=spec))
    model = response.model
    assert model.model_id == "m-1.x_y"
    assert model.spec.task == pb.TASK_FORECAST
    assert model.spec.cell == pb.CELL_RNN_TANH
    assert model.spec.loss == pb.LOSS_HUBER
    assert model.spec.optimizer == pb.OPTIMIZER_ADAM
    assert model.spec.clip == pb.CLIP_NORM
    assert model.spec.reduction == pb.REDUCTION_MEAN
    assert (model.spec.hidden_size, model.spec.layers, model.spec.horizon) == (64, 1, 1)
    assert (model.spec.k1, model.spec.k2, model.spec.learning_rate) == (4, 32, 0.001)
    assert model.spec.scaling
    assert list(model.spec.input_names) == ["a", "b", "c"]
    assert model.parameters > 0
    assert model.steps == 0
    assert math.isnan(model.loss)
    assert math.isnan(model.skill_ratio)
    assert await server.model("m-1.x_y") == model or math.isnan(model.loss)


async def test_every_field_of_a_spec_arrives(server: Harness) -> None:
    spec = pb.ModelSpec(
        task=pb.TASK_REGRESSION,
        input_size=3,
        output_size=2,
        cell=pb.CELL_RNN_RELU,
        hidden_size=5,
        layers=2,
        loss=pb.LOSS_SQUARED_ERROR,
        reduction=pb.REDUCTION_SUM,
        k1=3,
        k2=6,
        optimizer=pb.OPTIMIZER_SGD,
        learning_rate=0.5,
        clip=pb.CLIP_VALUE,
        clip_threshold=0.25,
        scaling=False,
        max_batch_streams=7,
        seed=9,
        weight_decay=0.125,
        warmup_updates=3,
        decay_updates=4,
        final_learning_rate=0.25,
        missing_targets=True,
        input_names=["a", "b", "c"],
        target_names=["y", "z"],
    )
    response = await server.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=spec))
    answered = response.model.spec
    for field, value in spec.ListFields():
        assert getattr(answered, field.name) == value, field.name


BAD_SPECS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"input_size": 0}, "spec.input_size", "0", "1 to 4096"),
    ({"input_size": 4097}, "spec.input_size", "4097", "1 to 4096"),
    ({"hidden_size": 0}, "spec.hidden_size", "0", "1 to 4096"),
    ({"hidden_size": 5000}, "spec.hidden_size", "5000", "1 to 4096"),
    ({"hidden_size": 4096, "layers": 8}, "spec.hidden_size", "4096", "at most 50000000 parameters"),
    ({"layers": 0}, "spec.layers", "0", "1 to 8"),
    ({"layers": 9}, "spec.layers", "9", "1 to 8"),
    ({"horizon": 0}, "spec.horizon", "0", "1 to 64"),
    ({"horizon": 65}, "spec.horizon", "65", "1 to 64"),
    ({"k1": 0}, "spec.k1", "0", "1 to 4096"),
    ({"k2": 0}, "spec.k2", "0", "1 to 4096"),
    ({"k2": 4097}, "spec.k2", "4097", "1 to 4096"),
    ({"k1": 8, "k2": 4}, "spec.k2", "4", "at least k1, which is 8"),
    ({"learning_rate": 0.0}, "spec.learning_rate", "0.0", "> 0"),
    ({"learning_rate": -1.0}, "spec.learning_rate", "-1.0", "> 0"),
    ({"learning_rate": math.nan}, "spec.learning_rate", "nan", "finite"),
    ({"learning_rate": math.inf}, "spec.learning_rate", "inf", "finite"),
    ({"clip_threshold": 0.0}, "spec.clip_threshold", "0.0", "> 0"),
    ({"max_batch_streams": 0}, "spec.max_batch_streams", "0", "1 to 16384"),
    ({"seed": 2**63}, "spec.seed", str(2**63), "0 to"),
    ({"target_columns": [2]}, "spec.target_columns", "2", "0 to 1"),
    ({"target_columns": [1, 1]}, "spec.target_columns", "(1, 1)", "repetition"),
    ({"output_size": 5}, "spec.output_size", "5", "left out"),
    ({"task": pb.TASK_REGRESSION}, "spec.output_size", "left out", "required"),
    ({"task": pb.TASK_REGRESSION, "output_size": 0}, "spec.output_size", "0", "1 to 4096"),
    (
        {"task": pb.TASK_REGRESSION, "output_size": 1, "horizon": 2},
        "spec.horizon",
        "2",
        "left out for task regression",
    ),
    ({"task": 99}, "spec.task", "99", "one of forecast, regression"),
    ({"optimizer": 99}, "spec.optimizer", "99", "one of sgd, adam"),
    ({"input_names": ["a"]}, "spec.input_names", "1 names", "as many as input_size, which is 2"),
    ({"input_names": ["a", "b" * 257]}, "spec.input_names", "bbb", "1 to 256 bytes"),
    ({"target_names": ["a"]}, "spec.target_names", "1 names", "left out for task forecast"),
    (
        {"task": pb.TASK_CLASSIFICATION, "output_size": 3, "target_names": ["a"]},
        "spec.target_names",
        "1 names",
        "as many as output_size, which is 3",
    ),
    ({"task": pb.TASK_NEXT_TOKEN, "input_size": 1}, "spec.vocabulary_size", "0", "2 to 65536"),
    (
        {"task": pb.TASK_NEXT_TOKEN, "input_size": 2, "vocabulary_size": 9},
        "spec.input_size",
        "2",
        "1 for task next_token",
    ),
    ({"vocabulary_size": 9}, "spec.vocabulary_size", "9", "left out for task forecast"),
]


@pytest.mark.parametrize(("fields", "field", "value", "bound"), BAD_SPECS)
async def test_a_bad_spec_is_refused_by_field_value_and_bound(
    server: Harness, fields: dict[str, Any], field: str, value: str, bound: str
) -> None:
    request = pb.CreateModelRequest(model_id="m", spec=small(**fields))
    error = await failure(server.models.CreateModel(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    [(named, description)] = violations(error)
    assert named == field
    told, _, must = description.partition(", but must be ")
    assert value in told
    assert bound in must
    assert error.details() == f"{field} {description}"
    assert not (await server.models.ListModels(pb.ListModelsRequest())).models


async def test_input_size_is_required(server: Harness) -> None:
    error = await failure(server.models.CreateModel(pb.CreateModelRequest(model_id="m")))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error)[0][0] == "spec.input_size"
    assert "left out" in violations(error)[0][1]


@pytest.mark.parametrize(
    "model_id", ["", "A", "a b", "../x", ".a", "-a", "a/b", "a" * 64, "é", "a\n"]
)
async def test_a_bad_name_is_refused_by_every_method(server: Harness, model_id: str) -> None:
    calls = [
        server.models.CreateModel(pb.CreateModelRequest(model_id=model_id, spec=small())),
        server.models.GetModel(pb.GetModelRequest(model_id=model_id)),
        server.models.DeleteModel(pb.DeleteModelRequest(model_id=model_id)),
        server.streams.Predict(pb.PredictRequest(model_id=model_id)),
        server.streams.GetStream(pb.GetStreamRequest(model_id=model_id, stream_id="s")),
        server.streams.ListStreams(pb.ListStreamsRequest(model_id=model_id)),
        server.streams.ResetStream(pb.ResetStreamRequest(model_id=model_id, stream_id="s")),
        server.streams.DeleteStream(pb.DeleteStreamRequest(model_id=model_id, stream_id="s")),
    ]
    for call in calls:
        error = await failure(call)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert violations(error)[0][0] == "model_id"
        assert "1 to 63" in violations(error)[0][1]
    assert not (await server.models.ListModels(pb.ListModelsRequest())).models


async def test_an_unknown_model_is_not_found_by_every_method(server: Harness) -> None:
    calls = [
        server.models.GetModel(pb.GetModelRequest(model_id="x")),
        server.models.DeleteModel(pb.DeleteModelRequest(model_id="x")),
        server.streams.Predict(pb.PredictRequest(model_id="x")),
        server.streams.GetStream(pb.GetStreamRequest(model_id="x", stream_id="s")),
        server.streams.ListStreams(pb.ListStreamsRequest(model_id="x")),
        server.streams.ResetStream(pb.ResetStreamRequest(model_id="x", stream_id="s")),
        server.streams.DeleteStream(pb.DeleteStreamRequest(model_id="x", stream_id="s")),
    ]
    for call in calls:
        error = await failure(call)
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert "'x'" in str(error.details())
        assert violations(error)[0][0] == "model_id"


async def test_a_name_of_megabytes_is_cut_in_the_answer(server: Harness) -> None:
    request = pb.GetModelRequest(model_id="x" * 1_000_000)
    error = await failure(server.models.GetModel(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(str(error.details())) < 1000


async def test_creating_an_existing_model_is_refused(server: Harness) -> None:
    await server.create("m", hidden_size=4)
    request = pb.CreateModelRequest(model_id="m", spec=small(hidden_size=8))
    error = await failure(server.models.CreateModel(request))
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    assert violations(error)[0][0] == "model_id"
    assert (await server.model("m")).spec.hidden_size == 4


async def test_one_of_several_concurrent_creations_creates_the_model(server: Harness) -> None:
    request = pb.CreateModelRequest(model_id="m", spec=small())
    calls = [server.models.CreateModel(request) for _ in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    failed = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
    assert [each.code() for each in failed] == [grpc.StatusCode.ALREADY_EXISTS] * 4


async def test_models_are_listed_page_by_page(server: Harness) -> None:
    names = [f"m{number}" for number in range(5)]
    for name in reversed(names):
        await server.create(name)
    pages, token = [], ""
    while True:
        request = pb.ListModelsRequest(page_size=2, page_token=token)
        response = await server.models.ListModels(request)
        pages.append([each.model_id for each in response.models])
        token = response.next_page_token
        if not token:
            break
    assert pages == [["m0", "m1"], ["m2", "m3"], ["m4"]]
    error = await failure(server.models.ListModels(pb.ListModelsRequest(page_size=-1)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error)[0][0] == "page_size"


async def test_a_page_of_large_models_is_cut_to_what_fits_a_message(server: Harness) -> None:
    names = ["x" * 256] * 4096
    for number in range(4):
        await server.create(f"m{number}", input_size=4096, hidden_size=1, input_names=names)
    pages, token = [], ""
    while True:
        response = await server.models.ListModels(pb.ListModelsRequest(page_token=token))
        pages.append([each.model_id for each in response.models])
        token = response.next_page_token
        if not token:
            break
    assert len(pages) > 1
    assert [name for page in pages for name in page] == ["m0", "m1", "m2", "m3"]


async def test_one_model_more_than_the_limit_is_refused() -> None:
    async with harness(Limits(models=1)) as server:
        await server.create("a")
        request = pb.CreateModelRequest(model_id="b", spec=small())
        error = await failure(server.models.CreateModel(request))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "at most 1" in str(error.details())


async def test_a_deleted_model_is_gone_and_its_name_is_free(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4))
    await call.learned()
    await server.models.DeleteModel(pb.DeleteModelRequest(model_id="m"))
    assert (await failure(call.read())).code() == grpc.StatusCode.NOT_FOUND
    error = await failure(server.models.GetModel(pb.GetModelRequest(model_id="m")))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    await server.create()
    assert (await server.model()).steps == 0


async def test_a_deletion_answers_what_was_accepted_before_it(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    server.gate.close()
    for _ in range(3):
        await call.send("s", wave(4))
    trainer = server.registry.get("m")
    await until(lambda: trainer.expected_step("s") == 12)
    deletion = asyncio.ensure_future(server.models.DeleteModel(pb.DeleteModelRequest(model_id="m")))
    server.gate.open()
    assert [(await call.learned()).next_step for _ in range(3)] == [4, 8, 12]
    assert (await failure(call.read())).code() == grpc.StatusCode.NOT_FOUND
    await deletion


async def test_a_creation_finishes_after_its_client_disconnects(server: Harness) -> None:
    server.gate.close()
    request = pb.CreateModelRequest(model_id="m", spec=small())
    creation = server.models.CreateModel(request)
    await until(lambda: server.registry.making == {"m"})
    second = server.models.CreateModel(request)
    assert (await failure(second)).code() == grpc.StatusCode.ALREADY_EXISTS
    creation.cancel()
    server.gate.open()
    await until(lambda: not server.registry.making)
    assert (await server.model()).steps == 0


def test_the_api_and_the_core_have_the_same_settings() -> None:
    core = {field.name for field in dataclasses.fields(ModelSpec)}
    names = {"input_names", "target_names"}  # for people
    assert set(pb.ModelSpec.DESCRIPTOR.fields_by_name) - names == core - {"dtype"}


async def test_every_setting_comes_back_as_it_was_given(server: Harness) -> None:
    given: dict[str, Any] = {
        "task": pb.TASK_REGRESSION,
        "output_size": 2,
        "missing_inputs": True,
        "missing_targets": True,
        "label_delay": 10,
        "divergence_patience": 3,
        "on_divergence": pb.DIVERGENCE_ROLL_BACK,
    }
    model = await server.create(**given)
    assert {name: getattr(model.spec, name) for name in given} == given
    plain = await server.create("plain")
    assert (plain.spec.label_delay, plain.spec.divergence_patience) == (0, 10)
    assert plain.spec.on_divergence == pb.DIVERGENCE_STOP
    assert not plain.spec.missing_inputs


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"label_delay": 3}, "spec.label_delay", "3"),
        ({"label_delay": 1025, "task": pb.TASK_REGRESSION, "output_size": 1}, "", "1025"),
        ({"divergence_patience": 0}, "spec.divergence_patience", "0"),
        ({"on_divergence": 9}, "spec.on_divergence", "9"),
        ({"missing_targets": True}, "spec.missing_targets", "True"),
    ],
)
async def test_settings_out_of_their_bounds_are_refused_by_name(
    server: Harness, fields: dict[str, Any], field: str, value: str
) -> None:
    request = pb.CreateModelRequest(model_id="m", spec=small(**fields))
    error = await failure(server.models.CreateModel(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    [(named, description)] = violations(error)
    assert named == (field or "spec.label_delay")
    assert value in description
