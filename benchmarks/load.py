"""A client process that trains a model at full speed.

    python -m benchmarks.load ADDRESS

It prints a line once the server learns, and continues until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys

from benchmarks.service import encoded_chunks, stream

CHUNK_STEPS = 64
CHUNKS = 500  # in one Learn call: a quarter of a second


async def main(address: str) -> None:
    """Stream until standard input ends."""
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    chunks = encoded_chunks(CHUNK_STEPS, "load")
    await stream(address, chunks, CHUNKS)
    print("training", flush=True)
    while not ended.done():
        await stream(address, chunks, CHUNKS)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
