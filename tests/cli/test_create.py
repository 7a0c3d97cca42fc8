"""What is said while a model is made."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from bptt.cli.create import create_model


class Slow:
    """A client whose server takes its time."""

    async def create_model(self, model_id: str, spec: dict[str, Any]) -> str:
        await asyncio.sleep(0.1)
        return model_id


@pytest.mark.parametrize(
    ("silent", "said"),
    [(0.01, "the server is compiling kernels for lstm; this happens once\n"), (60.0, "")],
)
async def test_only_a_long_wait_is_explained(
    monkeypatch: pytest.MonkeyPatch, silent: float, said: str
) -> None:
    monkeypatch.setattr("bptt.cli.create.NOTICE_SECONDS", silent)
    console = Console(file=io.StringIO(), width=200)
    client: Any = Slow()
    made: Any = await create_model(client, "m", {"cell": "lstm"}, console)
    assert made == "m"
    assert console.file.getvalue() == said  # type: ignore[attr-defined]
