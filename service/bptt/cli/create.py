"""Makes a model, and says why if that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from bptt.client import Client, Model

SILENT_SECONDS = 2.0  # making a model takes milliseconds, unless its kernels must be compiled


async def create_model(
    client: Client, model_id: str, spec: Mapping[str, Any], console: Console
) -> Model:
    """The model made, with a word on the console if its kernels must be compiled first."""

    def say() -> None:
        cell = spec.get("cell", "rnn_tanh")
        console.print(f"the server is compiling kernels for {cell}, once", markup=False)

    later = asyncio.get_running_loop().call_later(SILENT_SECONDS, say)
    try:
        with console.status("making the model"):
            return await client.create_model(model_id, spec)
    finally:
        later.cancel()
