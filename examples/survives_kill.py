"""Kill a learning server five times with `kill -9`, and see that its model is as if nobody had.

`python examples/survives_kill.py` starts its own servers, on free ports of this machine and with
data in a temporary folder. Options: --kills, --chunks.
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

from bptt.client import Client, Learned, LearnSession
from bptt.durability import SqliteStore

MODEL, STREAM = "walk", "s"
SPEC = {"input_size": 2, "hidden_size": 16}
STEPS = 8  # of a chunk


class Server:
    """`bptt serve` on a folder, on the same address whenever it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = "127.0.0.1:0"
        self.log = folder.with_suffix(".log")

    async def start(self) -> None:
        """Start it and wait until it serves."""
        ports = ["--address", self.address, "--metrics-address", "127.0.0.1:0"]
        # When its input ends, with this process at the latest, the server stops.
        options = ["--data", str(self.folder), "--json", "--until-input-ends"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
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
        """With SIGKILL: it gets no chance to save anything."""
        self.process.kill()
        await asyncio.to_thread(self.process.communicate)

    async def stop(self) -> None:
        """In order: it saves its model."""
        await asyncio.to_thread(self.process.communicate)  # which ends its input
        if self.process.returncode:
            sys.exit(f"the server did not stop cleanly: {self.log.read_text()}")


async def learned(folder: Path, chunks: list[np.ndarray], kills: int) -> str:
    """The digest of a model that was taught these chunks by a server that is killed meanwhile."""
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
    """Take the answers: one for each chunk, however often the server was killed."""
    async for answer in session:
        assert isinstance(answer, Learned), answer


def digest(folder: Path) -> str:
    """SHA-256 of all that a model is: parameters, optimizer, scalers and streams."""
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
    """Learn the same twice, and compare."""
    walk = np.random.default_rng(0).normal(size=(chunks, STEPS, 2)).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        digests = []
        for name, times in (("undisturbed", 0), (f"killed {kills} times", kills)):
            print(f"{name}:")
            digests.append(await learned(Path(temporary) / name.split()[0], list(walk), times))
            print(f"  digest {digests[-1]}")
    same = digests[0] == digests[1]
    print("the models are the same, bit for bit" if same else "THE MODELS DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="how often the server is killed")
    parser.add_argument("--chunks", type=int, default=6000, help=f"sent, of {STEPS} steps each")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.kills, given.chunks)))
