"""PyTorch's side: a loop that keeps the fleet in one tensor, alone or behind a gRPC server.

    python -m benchmarks.fleet_torch                  times cases, as `benchmarks.fleet_cases` says
    python -m benchmarks.fleet_torch STREAMS STEPS H  serves one fleet until standard input ends

The server takes the messages of the learning server and answers a prediction for each step. It
keeps nothing on the disk.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch

from benchmarks.fleet_cases import answer, CLIP, FleetCase, INPUT_SIZE, LEARNING_RATE


class Loop:
    """Truncated BPTT(k1, k2) of B streams side by side, as a user writes it by hand."""

    def __init__(self, case: FleetCase) -> None:
        torch.manual_seed(0)
        self._case = case
        H = case.hidden_size
        self._rnn = torch.nn.RNN(INPUT_SIZE, H)
        self._head = torch.nn.Linear(H, INPUT_SIZE)
        self._parameters = [*self._rnn.parameters(), *self._head.parameters()]
        self._adam = torch.optim.Adam(self._parameters, lr=LEARNING_RATE)
        self._state = torch.zeros(1, case.streams, H)
        self._inputs: list[Any] = []  # of the window, and the step before it
        self._states = [self._state]  # before each k1 of them
        self._steps = 0

    def tick(self, x: Any) -> Any:
        """Learn x (T, B, D); return a prediction after each step, (T, B, D)."""
        return torch.cat([self._step(row) for row in x])

    def _step(self, x: Any) -> Any:
        case = self._case
        with torch.no_grad():
            output, self._state = self._rnn(x[None], self._state)
            prediction = self._head(output)
        self._inputs.append(x)
        self._steps += 1
        if self._steps % case.k1 == 0:
            self._states.append(self._state)
        elif self._steps % case.k1 == 1 and len(self._inputs) > case.k2:  # the last target came
            self._learn()
            del self._inputs[: case.k1], self._states[0]
        return prediction

    def _learn(self) -> None:
        """Update from the windows of all streams, `batch` streams at a time."""
        case = self._case
        steps = torch.stack(self._inputs[-case.k2 - 1 :])
        start = self._states[0]
        for first in range(0, case.streams, case.batch):
            mine = slice(first, first + case.batch)
            output, _ = self._rnn(steps[:-1, mine], start[:, mine].contiguous())
            newest = self._head(output[-case.k1 :])
            loss = 0.5 * (newest - steps[-case.k1 :, mine]).square().mean()
            self._adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
            self._adam.step()


def build(case: FleetCase) -> Callable[[int], None]:
    """Create a loop and a function that learns its ticks."""
    loop = Loop(case)
    ticks = torch.randn(16, case.steps, case.streams, INPUT_SIZE)

    def learn(count: int) -> None:
        for tick in range(count):
            loop.tick(ticks[tick % len(ticks)])

    return learn


async def serve(streams: int, steps: int, hidden_size: int) -> None:
    """Serve on a free loopback port until standard input ends."""
    import grpc
    import numpy as np

    from bptt import v1 as pb

    loop = Loop(FleetCase(streams, streams, hidden_size, steps))

    async def learn(requests: AsyncIterator[pb.LearnRequest], context: Any) -> Any:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "open":
                yield pb.LearnResponse(opened=pb.LearnOpened())
            elif kind == "close":
                yield pb.LearnResponse(closed=pb.LearnClosed())
            elif kind is None:  # lanes
                yield pb.LearnResponse(introduced=pb.LanesIntroduced())
            else:
                values = request.batch.inputs if kind == "batch" else request.chunk.inputs
                x = np.array(values, np.float32).reshape(streams, steps, INPUT_SIZE)
                made = loop.tick(torch.from_numpy(x).transpose(0, 1)).transpose(0, 1).reshape(-1)
                if kind == "batch":
                    told = pb.BatchLearned(predictions=made.numpy())
                    yield pb.LearnResponse(batch=told)
                else:
                    alone = pb.ChunkLearned(predictions=made.numpy())
                    yield pb.LearnResponse(learned=alone)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.stream_stream_rpc_method_handler(
        learn,
        request_deserializer=pb.LearnRequest.FromString,
        response_serializer=pb.LearnResponse.SerializeToString,
    )
    methods = {"Learn": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bptt.v1.LearnerService", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port} {os.getpid()}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(1.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        asyncio.run(serve(*map(int, sys.argv[1:])))
    else:
        answer(build)
