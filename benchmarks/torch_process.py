"""PyTorch's side: nn.RNN, nn.LSTM or nn.GRU with autograd, in a hand-written training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import answer, Case, CLIP, INPUT_SIZE, LEARNING_RATE, OUTPUT_SIZE


def build(case: Case) -> Callable[[int], None]:
    """Create a model, its optimizer and its training loop."""
    torch.manual_seed(0)
    cell = {"rnn_tanh": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell]
    inputs, outputs = case.vocabulary or INPUT_SIZE, case.vocabulary or OUTPUT_SIZE
    recurrent = cell(inputs, case.hidden_size)
    head = torch.nn.Linear(case.hidden_size, outputs)
    parameters = [*recurrent.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
    x = torch.randn(case.k, case.streams, INPUT_SIZE)
    y = torch.randn(case.k, case.streams, OUTPUT_SIZE)
    if case.vocabulary:
        tokens = torch.randint(case.vocabulary, (case.k + 1, case.streams))
        x = torch.nn.functional.one_hot(tokens[:-1], case.vocabulary).float()

    def loss_of(output: Any) -> Any:
        if case.vocabulary:
            wanted = tokens[1:].flatten()
            return torch.nn.functional.cross_entropy(output.flatten(0, 1), wanted)
        return 0.5 * (output - y).square().sum() / (case.k * case.streams)

    def learn(windows: int) -> None:
        state: Any = None
        for _ in range(windows):
            output, state = recurrent(x, state)
            loss = loss_of(head(output))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            if isinstance(state, tuple):
                state = tuple(part.detach() for part in state)
            else:
                state = state.detach()

    return learn


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(build)
