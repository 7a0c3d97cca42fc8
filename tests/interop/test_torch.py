"""Networks of PyTorch go on learning here, and what was learned here loads into PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import pytest_asyncio
import safetensors.torch
import torch
from torch import nn

from bptt.cli.main import bptt
from bptt.client import Client
from tests.support.server import Served, serving

D, H, O, T = 3, 8, 2, 12
MODULES = {
    "rnn_tanh": lambda layers: nn.RNN(D, H, layers),
    "rnn_relu": lambda layers: nn.RNN(D, H, layers, nonlinearity="relu"),
    "gru": lambda layers: nn.GRU(D, H, layers),
    "lstm": lambda layers: nn.LSTM(D, H, layers),
}
EVERY = pytest.mark.parametrize(
    ("cell", "layers"), [(cell, layers) for cell in MODULES for layers in (1, 2)]
)


class Network(nn.Module):
    """A recurrent module and a linear layer, under the names of an export."""

    def __init__(self, cell: str, layers: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.rnn = MODULES[cell](layers)
        self.head = nn.Linear(H, O)

    def forward(self, x: torch.Tensor) -> Any:
        """Outputs (T, O) of inputs (T, D)."""
        return self.head(self.rnn(x)[0])


class OtherNames(nn.Module):
    """The same network as somebody else would write it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder, self.out = network.rnn, network.head


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with serving() as server:
        yield server


@pytest_asyncio.fixture
async def client(shared: Served) -> AsyncIterator[Client]:
    async with Client.connect(shared.address) as connected:
        yield connected


def steps() -> Any:
    return np.random.default_rng(5).normal(size=(T, D)).astype(np.float32)


async def fresh(client: Client, network: nn.Module, name: str, **spec: Any) -> Any:
    if name in [model.model_id for model in await client.list_models()]:
        await client.delete_model(name)
    data = safetensors.torch.save(network.state_dict())
    return await client.import_model(name, data, {"task": "regression"} | spec)


@EVERY
async def test_outputs_of_an_imported_network_are_pytorchs(
    client: Client, cell: str, layers: int
) -> None:
    network = Network(cell, layers)
    imported = await fresh(client, network, "outputs", cell=cell)
    assert imported.model.spec["cell"] == cell
    assert imported.model.spec["layers"] == layers
    x = steps()
    answer = await client.predict("outputs", inputs=x)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answer.values[:, 0], expected, rtol=0, atol=1e-5)


async def test_other_names_of_the_modules_are_understood_and_told(client: Client) -> None:
    network = Network("gru", 2)
    imported = await fresh(client, OtherNames(network), "names")
    assert imported.notes[0] == "encoder. read as the recurrent layers, out as the linear layer"
    x = steps()
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    answer = await client.predict("names", inputs=x)
    np.testing.assert_allclose(answer.values[:, 0], expected, rtol=0, atol=1e-5)


@EVERY
async def test_an_update_is_pytorchs_and_its_export_loads_strictly(
    client: Client, cell: str, layers: int
) -> None:
    """One window of T steps, plain gradient descent, and back into PyTorch."""
    network = Network(cell, layers)
    settings = {"k1": T, "k2": T, "optimizer": "sgd", "learning_rate": 0.1, "clip": "none"}
    await fresh(client, network, "update", cell=cell, **settings)
    x, y = steps(), steps()[:, :O]
    async with client.learn("update") as session:
        await session.send("s", x, targets=y)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss = 0.5 * ((network(torch.from_numpy(x)) - torch.from_numpy(y)) ** 2).sum() / T
    loss.backward()
    optimizer.step()
    loaded = Network(cell, layers)
    exported = safetensors.torch.load(await client.export_model("update"))
    loaded.load_state_dict(exported, strict=True)
    for name, expected in network.state_dict().items():
        np.testing.assert_allclose(
            exported[name].numpy(), expected.numpy(), rtol=0, atol=1e-5, err_msg=name
        )
    later = np.random.default_rng(6).normal(size=(T, D)).astype(np.float32)
    answer = await client.predict("update", inputs=later)
    with torch.no_grad():
        outputs = loaded(torch.from_numpy(later)).numpy()
    np.testing.assert_allclose(answer.values[:, 0], outputs, rtol=0, atol=1e-5)


async def test_classes_are_the_softmax_of_pytorchs_outputs(client: Client) -> None:
    network = Network("lstm", 1)
    await fresh(client, network, "classes", task="classification")
    x = steps()
    answer = await client.predict("classes", inputs=x)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).softmax(-1).numpy()
    np.testing.assert_allclose(answer.values[:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
async def test_other_precisions(client: Client, kind: torch.dtype) -> None:
    network = Network("gru", 1).to(kind)
    if kind is torch.bfloat16:
        with pytest.raises(Exception, match="BF16"):
            await fresh(client, network, "kinds")
        return
    await fresh(client, network, "kinds")
    x = steps()
    answer = await client.predict("kinds", inputs=x)
    with torch.no_grad():
        expected = network.float()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answer.values[:, 0], expected, rtol=0, atol=1e-5)


def test_the_commands(shared: Served, tmp_path: Path) -> None:
    network, file = Network("lstm", 1), tmp_path / "pump.safetensors"
    safetensors.torch.save_file(network.state_dict(), file)
    torch.save(network.state_dict(), tmp_path / "pump.pt")
    address = ["--address", shared.address]

    def run(*arguments: object, status: int = 0) -> str:
        runner = click.testing.CliRunner()
        result = runner.invoke(bptt, ["models", *map(str, arguments), *address])
        assert result.exit_code == status, result.output
        return result.output

    said = run("import", "valve", file, "--task", "regression")
    assert "regression, lstm 1×8" in said
    assert "scaling off" in said
    assert "holds a pickle" in run("import", "other", tmp_path / "pump.pt", status=1)
    back = tmp_path / "back.safetensors"
    assert "wrote" in run("export", "valve", back)
    assert "--overwrite" in run("export", "valve", back, status=1)
    run("export", "valve", back, "--overwrite")
    Network("lstm", 1).load_state_dict(safetensors.torch.load_file(back), strict=True)


def test_the_page_on_pytorch_does_what_it_says(shared: Served, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "pytorch.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "sh", "sh", "python"]
    begun = ""
    for language, block in blocks:
        if language == "python":
            begun += block
            command = [sys.executable, "-c", begun]
        else:
            words = block.split()[1:]
            command = [sys.executable, "-m", "bptt.cli", *words, "--address", shared.address]
            if words[1] == "export":
                (tmp_path / "pump.safetensors").unlink()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
