"""Follow a fleet: 10,000 simulated sensors with one reading a second each, in one message a second.

Start a server (`bptt serve`), then run `python examples/fleet.py [ADDRESS [SENSORS [SECONDS]]]`. It
prints how much of a processor core this program and, on the same machine, the server took, and how
late the forecasts came.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import numpy as np

from bptt import Client
from bptt.client import BatchResult, ServerUnreachable
from bptt.errors import NotFound, ServiceError

MODEL = "fleet"
SPEC = {"input_size": 1, "hidden_size": 32, "max_batch_streams": 1024}


async def main(address: str = "127.0.0.1:50051", sensors: int = 10_000, seconds: int = 60) -> None:
    """Simulate the sensors, learn each reading, and print what it took."""
    names = [f"sensor-{number}" for number in range(sensors)]
    noise = np.random.default_rng(0)
    phase, speed = noise.uniform(0, 6, sensors), noise.uniform(0.05, 0.2, sensors)
    async with Client.connect(address) as client:
        with contextlib.suppress(NotFound):  # left over from an interrupted run
            await client.delete_model(MODEL)
        await client.create_model(MODEL, SPEC)
        error = naive_error = 0.0
        forecasts = last = None
        late: list[float] = []
        async with client.learn(MODEL) as session:
            await session.send_many(names, 20 + 5 * np.sin(phase)[:, None])  # opens the streams
            await anext(session)
            server, own, begun = server_seconds(address), time.process_time(), time.monotonic()
            for second in range(seconds):
                await asyncio.sleep(begun + second - time.monotonic())
                readings = 20 + 5 * np.sin(phase + speed * (second + 1))
                readings += noise.normal(0, 0.05, sensors)
                if forecasts is not None and last is not None and second >= seconds // 2:
                    error += float(np.abs(readings - forecasts).sum())
                    naive_error += float(np.abs(readings - last).sum())
                sent = time.monotonic()
                await session.send_many(names, readings[:, None])
                answer = await anext(session)
                late.append(time.monotonic() - sent)
                assert isinstance(answer, BatchResult)
                assert answer.predictions is not None
                # The forecasts of the next readings, made after these were read.
                forecasts, last = answer.predictions[:, 0, 0], readings
            lasted = max(time.monotonic() - begun, seconds)
            own = time.process_time() - own
            server_took = server_seconds(address)
        await client.delete_model(MODEL)
    print(f"{sensors:,} sensors, {seconds} seconds, {sensors * seconds:,} readings")
    print(f"this program: {own / lasted:.1%} of a core")
    if server is not None and server_took is not None:
        took = server_took - server
        each = took / (sensors * seconds) * 1e6
        print(f"the server: {took / lasted:.1%} of a core, {each:.1f} µs a reading")
    print(f"forecasts after {np.median(late):.3f} s, at most {max(late):.3f} s")
    print(f"second half, error relative to the last-value forecast: {error / naive_error:.2f}")


def server_seconds(address: str) -> float | None:
    """Return the processor seconds of the process that listens at an address of this machine.

    None: it is on another machine, or this system has no /proc.
    """
    port = f":{int(address.rpartition(':')[2]):04X}"
    with contextlib.suppress(OSError):
        tables = [Path(f"/proc/net/{each}").read_text() for each in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table.splitlines()[1:]]
        listening = "0A"
        nodes = {row[9] for row in rows if row[1].endswith(port) and row[3] == listening}
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if str(link.readlink()) in {f"socket:[{node}]" for node in nodes}:
                    fields = (link.parents[1] / "stat").read_text().rpartition(")")[2].split()
                    ticks_a_second = 100  # of Linux, on all of its platforms
                    return (int(fields[11]) + int(fields[12])) / ticks_a_second
    return None


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2], *map(int, sys.argv[2:4])))
    except ServiceError as problem:
        hint = "; `bptt serve` starts a server" if isinstance(problem, ServerUnreachable) else ""
        sys.exit(f"{problem}{hint}")
    except KeyboardInterrupt:
        sys.exit(130)
