"""PyTorch's side of the character model: a typical hand-written loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.characters_process import answer, Array, Settings, VOCABULARY, weights


def build(settings: Settings, folder: Path) -> Callable[[Array], float]:
    """Create nn.RNN or nn.LSTM with a linear head and Adam; the state is carried over, detached."""
    cell = {"rnn_tanh": torch.nn.RNN, "lstm": torch.nn.LSTM}[settings.cell]
    recurrent: Any = cell(VOCABULARY, settings.hidden_size)
    head = torch.nn.Linear(settings.hidden_size, VOCABULARY)
    given = {name: torch.from_numpy(array) for name, array in weights(folder).items()}
    network = torch.nn.ModuleDict({"rnn": recurrent, "head": head})
    network.load_state_dict(given)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    state: Any = None

    def learn(stretch: Array) -> float:
        nonlocal state
        nats = 0.0
        for first in range(0, len(stretch) - 1, settings.k):
            ids = torch.from_numpy(stretch[first : first + settings.k + 1])
            x = torch.nn.functional.one_hot(ids[:-1], VOCABULARY).float()
            output, state = recurrent(x, state)
            loss = torch.nn.functional.cross_entropy(head(output), ids[1:])
            nats += float(loss.detach()) * (len(ids) - 1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_threshold)
            optimizer.step()
            if isinstance(state, tuple):
                state = tuple(part.detach() for part in state)
            else:
                state = state.detach()
        return nats / float(np.log(2))

    return learn


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(build)
