"""Follow a sensor: send each reading as it arrives, and receive the forecast of the next one.

Start a server (`bptt serve`), then run `python examples/live_sensor.py [ADDRESS [READINGS]]`.
"""

import asyncio
import contextlib
import math
import random
import sys

from bptt import Client
from bptt.client import Learned, ServerUnreachable
from bptt.errors import NotFound, ServiceError


async def main(address: str = "127.0.0.1:50051", readings: int = 2000) -> None:
    """Simulate a sensor, learn each reading, and print the error of the forecasts."""
    noise = random.Random(0)
    error = naive_error = 0.0
    async with Client.connect(address) as client:
        with contextlib.suppress(NotFound):  # left over from an interrupted run
            await client.delete_model("live-sensor")
        await client.create_model("live-sensor", {"input_size": 1})
        forecast = last = None
        async with client.learn("live-sensor") as session:
            for step in range(readings):
                reading = 20 + 5 * math.sin(step / 12) + noise.gauss(0, 0.05)
                if forecast is not None and last is not None and step >= readings // 2:
                    error += abs(reading - forecast)
                    naive_error += abs(reading - last)
                await session.send("porch", [reading], first_step=step)
                answer = await anext(session)
                assert isinstance(answer, Learned)
                assert answer.predictions is not None
                # The forecast of the next reading, made after this one was read.
                forecast, last = float(answer.predictions[-1, 0, 0]), reading
        await client.delete_model("live-sensor")
    ratio = error / naive_error
    print(f"second half, error relative to the last-value forecast: {ratio:.2f}")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2], *map(int, sys.argv[2:3])))
    except ServiceError as problem:
        hint = "; `bptt serve` starts a server" if isinstance(problem, ServerUnreachable) else ""
        sys.exit(f"{problem}{hint}")
    except KeyboardInterrupt:
        sys.exit(130)
