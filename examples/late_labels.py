"""Classify the state of a machine whose labels arrive ten readings late.

The machine idles, works or grinds. Two noisy sensors are read at each step, and an inspector
reports the true state ten readings later. The model classifies at once. It is compared with a Bayes
filter that knows the machine, which is the best possible classifier, and with the best classifier
that uses each reading alone.

Start a server (`bptt serve`), then run `python examples/late_labels.py [ADDRESS [READINGS]]`.
"""

import asyncio
import contextlib
import sys
from typing import Any

import numpy as np

from bptt import Client
from bptt.client import Learned, Refused, ServerUnreachable
from bptt.errors import NotFound, ServiceError

NAMES = ["idles", "works", "grinds"]
STAYS = np.array([[0.97, 0.03, 0.0], [0.02, 0.96, 0.02], [0.05, 0.0, 0.95]])
SENSORS = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])  # mean readings in each state
NOISE = 0.8
LATE = 10  # readings between a step and its label; also the chunk size
MODEL = "late-labels"


def machine(readings: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate the sensor readings, (T, 2), and the states, (T,)."""
    random = np.random.default_rng(0)
    states = np.zeros(readings, int)
    for step in range(1, readings):
        states[step] = random.choice(3, p=STAYS[states[step - 1]])
    return SENSORS[states] + random.normal(0, NOISE, (readings, 2)), states


def known_best(readings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the likeliest states by a filter that knows the machine, and by each reading alone."""
    distance = ((readings[:, np.newaxis] - SENSORS) ** 2).sum(axis=2)
    likelihood = np.exp(-distance / (2 * NOISE**2))
    belief, best = np.full(3, 1 / 3), []
    for each in likelihood:
        belief = (belief @ STAYS) * each
        belief /= belief.sum()
        best.append(belief.argmax())
    return np.array(best), likelihood.argmax(axis=1)


async def follow(client: Client, readings: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Send readings together with the labels of earlier ones; return the predicted states."""
    predicted: list[Any] = []
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
            predicted += answer.predictions[:, 0].argmax(axis=1).tolist()
        # The last labels are sent without steps; older labels are refused with the reason.
        end = len(readings)
        for first in (end - LATE, end - 2 * LATE):
            labels = states[first : first + LATE]
            await session.send("machine", None, labels, first_target_step=first)
            answer = await anext(session)
            if isinstance(answer, Refused):
                print(f"refused: {answer.error}")
    return np.array(predicted)


async def main(address: str = "127.0.0.1:50051", count: int = 20_000) -> None:
    """Follow the machine and print the accuracy of each classifier."""
    count -= count % LATE
    readings, states = machine(count)
    async with Client.connect(address) as client:
        with contextlib.suppress(NotFound):  # left over from an interrupted run
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
        predicted = await follow(client, readings, states)
        model = await client.get_model(MODEL)
        await client.delete_model(MODEL)
    filtered, alone = known_best(readings)
    half = slice(count // 2, None)
    print(f"second half of {count:,} readings, accuracy of:")
    for name, states_named in (
        ("the most frequent state", np.full(count, np.bincount(states).argmax())),
        ("each reading alone, with known sensors", alone),
        ("the model, without prior knowledge", predicted),
        ("a Bayes filter with a known machine", filtered),
    ):
        print(f"  {name:<44}{np.mean(states_named[half] == states[half]):6.1%}")
    print(
        f"recent readings: accuracy {model.accuracy:.1%}, cross-entropy "
        f"{model.cross_entropy_bits:.2f} bits, {model.skill_ratio:.2f} relative to the running "
        "class frequencies"
    )


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2], *map(int, sys.argv[2:3])))
    except ServiceError as problem:
        hint = "; `bptt serve` starts a server" if isinstance(problem, ServerUnreachable) else ""
        sys.exit(f"{problem}{hint}")
    except KeyboardInterrupt:
        sys.exit(130)
