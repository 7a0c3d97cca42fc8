"""Kill a learning server five times with `kill -9`, and compare its model with an undisturbed one.

`python examples/survives_kill.py` starts its own servers on free loopback ports, with data in a
temporary folder. Options: --kills, --chunks.
"""

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bptt import Client
from bptt.client import Learned, LearnSession
from bptt.durability import SqliteStore

MODEL, STREAM = "walk", "s"
SPEC = {"input_size": 2, "hidden_size": 16}
STEPS = 8  # in a chunk


class Server:
    """`bptt serve` on a data folder; it keeps its address when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = "127.0.0.1:0"
        self.log = folder.with_suffix(".log")

    async def start(self) -> None:
        """Start the server and wait until it is ready."""
        ports = ["--address", self.address, "--metrics-address", "127.0.0.1:0"]
        # The server stops when its input ends, so it never outlives this process.
        options = ["--data", str(self.folder), "--json", "--until-input-ends"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - Popen returns at once
                [sys.executable, "-m", "bptt.cli", "serve", *ports, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        ready = await asyncio.to_thread(self.process.stdout.readline)
        if not ready:
            sys.exit(f"the server did not start: {self.log.read_text()}")
        self.address = json.loads(ready)["address"]

    async def kill(self) -> None:
        """Send SIGKILL, so that the server cannot save anything."""
        self.process.kill()
        await asyncio.to_thread(self.process.communicate)

    async def stop(self) -> None:
        """Stop the server cleanly; it saves its model."""
        await asyncio.to_thread(self.process.communicate)  # closes its input
        if self.process.returncode:
            sys.exit(f"the server did not stop cleanly: {self.log.read_text()}")


async def learn(folder: Path, chunks: list[np.ndarray], kills: int) -> str:
    """Learn the chunks on a server that is killed `kills` times; return the model's digest."""
    server = Server(folder)
    await server.start()
    at = {len(chunks) * (turn + 1) // (kills + 1) for turn in range(kills)}
    try:
        async with Client.connect(server.address) as client:
            await client.create_model(MODEL, SPEC)
            async with client.learn(MODEL) as session:
                reader = asyncio.create_task(read(session))
                for place, chunk in enumerate(chunks):
                    if place in at:
                        durable = session.durable_step(STREAM)
                        await server.kill()
                        waits = place * STEPS - durable
                        print(f"  kill -9: {durable:,} steps acknowledged, {waits:,} more sent")
                        await server.start()
                    await session.send(STREAM, chunk)
                await session.close()
                await reader
            model = await client.get_model(MODEL)
        await server.stop()
    except BaseException:
        await server.kill()
        raise
    print(f"  {model.steps:,} steps learned, {model.updates:,} updates, loss {model.loss:.9f}")
    return digest(folder)


async def read(session: LearnSession) -> None:
    """Read the answers: one for each chunk, regardless of kills."""
    async for answer in session:
        assert isinstance(answer, Learned), answer


def digest(folder: Path) -> str:
    """Compute the SHA-256 of a model: parameters, optimizer, scalers and streams."""
    store = SqliteStore(folder)
    store.open()
    try:
        newest = store.load(MODEL, store.checkpoints(MODEL)[-1].lsn)
    finally:
        store.close()
    sha = hashlib.sha256(json.dumps(newest.metadata["learner"], sort_keys=True).encode())
    for name, array in sorted(newest.arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


async def main(kills: int, chunks: int) -> int:
    """Learn the same chunks twice and compare the models."""
    walk = np.random.default_rng(0).normal(size=(chunks, STEPS, 2)).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        digests = []
        for name, times in (("undisturbed", 0), (f"killed {kills} times", kills)):
            print(f"{name}:")
            digests.append(await learn(Path(temporary) / name.split()[0], list(walk), times))
            print(f"  digest {digests[-1]}")
    same = digests[0] == digests[1]
    print("the models are identical, bit for bit" if same else "THE MODELS DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="number of kills")
    help_text = f"number of chunks, of {STEPS} steps each"
    parser.add_argument("--chunks", type=int, default=6000, help=help_text)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.kills, given.chunks)))
