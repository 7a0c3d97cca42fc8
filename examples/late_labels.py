"""A machine whose state is told ten readings late: classes whose labels come after their steps.

The machine idles, works or grinds; two noisy sensors are read, and an inspector says ten readings
later which it was. The model says it at once. Beside it: the best that one can do, a Bayes filter
that knows how the machine works, and the best that looks at each reading by itself.

Run a server (`bptt serve`), then `python examples/late_labels.py`. Options: address, readings.
"""

import asyncio
import contextlib
import sys
from typing import Any

import numpy as np

from bptt.client import Client, Learned, Refused, ServerUnreachable
from bptt.errors import NotFound, ServiceError

NAMES = ["idles", "works", "grinds"]
STAYS = np.array([[0.97, 0.03, 0.0], [0.02, 0.96, 0.02], [0.05, 0.0, 0.95]])
SENSORS = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])  # what they read on average
NOISE = 0.8
LATE = 10  # readings between a step and its label, and in a chunk
MODEL = "late-labels"


def machine(readings: int) -> tuple[np.ndarray, np.ndarray]:
    """What the sensors read, (T, 2), and which state it was, (T,)."""
    random = np.random.default_rng(0)
    states = np.zeros(readings, int)
    for step in range(1, readings):
        states[step] = random.choice(3, p=STAYS[states[step - 1]])
    return SENSORS[states] + random.normal(0, NOISE, (readings, 2)), states


def known_best(readings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest states, of a filter that knows the machine, and of each reading by itself."""
    distance = ((readings[:, np.newaxis] - SENSORS) ** 2).sum(axis=2)
    likelihood = np.exp(-distance / (2 * NOISE**2))
    belief, best = np.full(3, 1 / 3), []
    for each in likelihood:
        belief = (belief @ STAYS) * each
        belief /= belief.sum()
        best.append(belief.argmax())
    return np.array(best), likelihood.argmax(axis=1)


async def follow(client: Client, readings: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Send readings with the labels of those before them; the states that the model named."""
    named: list[Any] = []
    async with client.learn(MODEL) as session:
        for first in range(0, len(readings), LATE):
            labels = states[first - LATE : first] if first else None
            await session.send(
                "machine",
                readings[first : first + LATE],
                labels,
                first_step=first,
                first_target_step=first - LATE if first else None,
            )
            answer = await anext(session)
            assert isinstance(answer, Learned), answer
            assert answer.predictions is not None
            named += answer.predictions[:, 0].argmax(axis=1).tolist()
        # The last labels come by themselves; one that comes later still is refused by name.
        end = len(readings)
        for first in (end - LATE, end - 2 * LATE):
            labels = states[first : first + LATE]
            await session.send("machine", None, labels, first_target_step=first)
            answer = await anext(session)
            if isinstance(answer, Refused):
                print(f"refused: {answer.error}")
    return np.array(named)


async def main(address: str = "127.0.0.1:50051", count: int = 20_000) -> None:
    """Follow the machine, and print how often each way was right."""
    count -= count % LATE
    readings, states = machine(count)
    async with Client.connect(address) as client:
        with contextlib.suppress(NotFound):  # left by a run that was interrupted
            await client.delete_model(MODEL)
        await client.create_model(
            MODEL,
            {
                "task": "classification",
                "input_size": 2,
                "output_size": 3,
                "target_names": NAMES,
                "label_delay": LATE,
                "cell": "gru",
            },
        )
        named = await follow(client, readings, states)
        model = await client.get_model(MODEL)
        await client.delete_model(MODEL)
    filtered, alone = known_best(readings)
    half = slice(count // 2, None)
    print(f"second half of {count:,} readings, right about the machine:")
    for who, said in (
        ("the most frequent state", np.full(count, np.bincount(states).argmax())),
        ("each reading by itself, knowing the sensors", alone),
        ("the model, which knows nothing", named),
        ("a Bayes filter that knows the machine", filtered),
    ):
        print(f"  {who:<44}{np.mean(said[half] == states[half]):6.1%}")
    print(
        f"lately {model.accuracy:.1%} right at {model.cross_entropy_bits:.2f} bits each, "
        f"{model.skill_ratio:.2f} of those of the frequencies so far"
    )


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2], *map(int, sys.argv[2:3])))
    except ServiceError as problem:
        hint = "; `bptt serve` starts a server" if isinstance(problem, ServerUnreachable) else ""
        sys.exit(f"{problem}{hint}")
    except KeyboardInterrupt:
        sys.exit(130)
