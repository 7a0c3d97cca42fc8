"""Creates a model, and says so while the server compiles kernels for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from bptt.client import Client, Model


async def create_model(
    client: Client, model_id: str, spec: Mapping[str, Any], console: Console
) -> Model:
    """Create a model; print lines if the server says that it compiles kernels.

    Args:
        client: connected to the server.
        model_id: the model's name.
        spec: fields of the model's spec.
        console: where the lines are printed.

    Returns:
        The model.
    """
    told: list[float] = []
    cell = spec.get("cell", "rnn_tanh")
    with console.status("creating the model") as status:

        def begun() -> None:
            told.append(time.monotonic())
            console.print(
                f"the server is compiling kernels for {cell}; this happens once", markup=False
            )

        async def count() -> None:
            while True:
                await asyncio.sleep(1)
                if told:
                    seconds = time.monotonic() - told[0]
                    status.update(f"compiling kernels for {cell}: {seconds:.0f} s")

        counting = asyncio.create_task(count())
        try:
            model = await client.create_model(model_id, spec, on_compiling=begun)
        finally:
            counting.cancel()
    if told:
        seconds = time.monotonic() - told[0]
        console.print(f"kernels for {cell} compiled in {seconds:.1f} s", markup=False)
    return model
