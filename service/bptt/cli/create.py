"""Creates a model and explains a long wait."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from bptt.client import Client, Model

NOTICE_SECONDS = 2.0  # creating a model takes milliseconds unless kernels must be compiled


async def create_model(
    client: Client, model_id: str, spec: Mapping[str, Any], console: Console
) -> Model:
    """Create a model; print a line if the server takes long because it compiles kernels.

    Args:
        client: connected to the server.
        model_id: the model's name.
        spec: fields of the model's spec.
        console: where the line is printed.

    Returns:
        The model.
    """

    def explain() -> None:
        cell = spec.get("cell", "rnn_tanh")
        console.print(
            f"the server is compiling kernels for {cell}; this happens once", markup=False
        )

    later = asyncio.get_running_loop().call_later(NOTICE_SECONDS, explain)
    try:
        with console.status("creating the model"):
            return await client.create_model(model_id, spec)
    finally:
        later.cancel()
