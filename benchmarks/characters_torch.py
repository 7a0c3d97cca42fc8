"""PyTorch's side of the character model: nn.RNN or nn.LSTM in a hand-written loop."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch


def main(given: str, made: str) -> None:
    """Learn what `given` holds, and write each window's loss before its update to `made`."""
    with np.load(given) as file:
        data: dict[str, Any] = dict(file)
    tokens = torch.from_numpy(data["tokens"])
    window = int(data["window"])
    hidden_size = data["rnn.weight_hh_l0"].shape[1]
    cell = {"rnn_tanh": torch.nn.RNN, "lstm": torch.nn.LSTM}[str(data["cell"])]
    model = torch.nn.ModuleDict(
        {"rnn": cell(256, hidden_size), "head": torch.nn.Linear(hidden_size, 256)}
    )
    weights = {name: torch.from_numpy(data[name]) for name in model.state_dict()}
    model.load_state_dict(weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=float(data["learning_rate"]))
    state: Any = None
    losses = []
    for start in range(0, len(tokens) - window, window):
        x = torch.nn.functional.one_hot(tokens[start : start + window], 256).float()
        output, state = model["rnn"](x[:, None], state)
        wanted = tokens[start + 1 : start + window + 1]
        loss = torch.nn.functional.cross_entropy(model["head"](output[:, 0]), wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), float(data["clip"]))
        optimizer.step()
        losses.append(loss.item())
        if isinstance(state, tuple):
            state = tuple(part.detach() for part in state)
        else:
            state = state.detach()
    np.save(made, np.array(losses))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
