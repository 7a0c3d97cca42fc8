"""The notice that is printed while a model is created."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from bptt.cli.create import create_model


class Slow:
    """A client whose server answers slowly."""

    async def create_model(self, model_id: str, spec: dict[str, Any]) -> str:
        await asyncio.sleep(0.1)
        return model_id


@pytest.mark.parametrize(
    ("notice_seconds", "printed"),
    [(0.01, "the server is compiling kernels for lstm; this happens once\n"), (60.0, "")],
)
async def test_only_a_long_wait_is_explained(
    monkeypatch: pytest.MonkeyPatch, notice_seconds: float, printed: str
) -> None:
    monkeypatch.setattr("bptt.cli.create.NOTICE_SECONDS", notice_seconds)
    console = Console(file=io.StringIO(), width=200)
    client: Any = Slow()
    made: Any = await create_model(client, "m", {"cell": "lstm"}, console)
    assert made == "m"
    assert console.file.getvalue() == printed  # type: ignore[attr-defined]
