"""An echo server for comparison: it does everything that gRPC requires, and learns nothing.

It parses every chunk and answers with as many values and update reports as the service would. No
gRPC server in Python can be much faster, so the service's share of its speed shows the cost of
learning.

    python -m benchmarks.echo K1 INPUT_SIZE [bands]

It prints its address and serves until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from bptt import v1 as pb


class Echo:
    """Answers a Learn call at once."""

    def __init__(self, k1: int, input_size: int, *, bands: bool) -> None:
        """Store the settings of the benchmarked model.

        Args:
            k1: steps between two updates.
            input_size: values in a step.
            bands: answer with error bands and anomaly scores.
        """
        self._k1 = k1
        self._input_size = input_size
        self._bands = bands

    async def learn(
        self, requests: AsyncIterator[pb.LearnRequest], context: Any
    ) -> AsyncIterator[pb.LearnResponse]:
        """Answer a Learn call: opened, one answer for each chunk, closed."""
        step = update = 0
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "open":
                yield pb.LearnResponse(opened=pb.LearnOpened())
            elif kind == "close":
                yield pb.LearnResponse(closed=pb.LearnClosed())
            else:
                chunk = request.chunk
                answer = pb.ChunkLearned(
                    stream_id=chunk.stream_id, first_step=step, predictions=chunk.inputs
                )
                step += len(chunk.inputs) // self._input_size
                answer.next_step = answer.durable_step = step
                answer.model_state = pb.MODEL_STATE_RUNNING
                if self._bands:
                    answer.error_low.extend(chunk.inputs[: self._input_size])
                    answer.error_high.extend(chunk.inputs[: self._input_size])
                    answer.anomaly_scores.extend(chunk.inputs[:: self._input_size])
                while update < step // self._k1:
                    update += 1
                    answer.updates.add(
                        update=update,
                        steps=self._k1,
                        streams=1,
                        loss=0.5,
                        gradient_norm=2.0,
                        clipped_gradient_norm=1.0,
                        clipped=True,
                    )
                yield pb.LearnResponse(learned=answer)

    async def predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        """Answer one prediction of zeros."""
        return pb.PredictResponse(predictions=[0.0] * self._input_size, horizon=1)


async def main(k1: int, input_size: int, *, bands: bool) -> None:
    """Serve on a free loopback port until standard input ends."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    echo = Echo(k1, input_size, bands=bands)
    learn = grpc.stream_stream_rpc_method_handler(
        echo.learn,
        request_deserializer=pb.LearnRequest.FromString,
        response_serializer=pb.LearnResponse.SerializeToString,
    )
    predict = grpc.unary_unary_rpc_method_handler(
        echo.predict,
        request_deserializer=pb.PredictRequest.FromString,
        response_serializer=pb.PredictResponse.SerializeToString,
    )
    methods: dict[str, Any] = {"Learn": learn, "Predict": predict}
    handler = grpc.method_handlers_generic_handler("bptt.v1.LearnerService", methods)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(1.0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), bands="bands" in sys.argv[3:]))
