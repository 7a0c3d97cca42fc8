"""JAX's side: a scan over the window, differentiated and jitted together with clip and SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, nn

from benchmarks.cases import answer, Case, CLIP, INPUT_SIZE, LEARNING_RATE, OUTPUT_SIZE

Values = dict[str, Any]


def rnn(p: Values, state: Any, u: Any) -> Any:
    """Compute one step of the vanilla cell; u is U x_t + b."""
    return (jnp.tanh(u + state[0] @ p["W"] + p["c"]),)


def lstm(p: Values, state: Any, u: Any) -> Any:
    """Compute one step of the LSTM."""
    h, c = state
    i, f, g, o = jnp.split(u + h @ p["W"] + p["c"], 4, axis=-1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(c), c


def gru(p: Values, state: Any, u: Any) -> Any:
    """Compute one step of the GRU in PyTorch's form."""
    (h,) = state
    u_r, u_z, u_n = jnp.split(u, 3, axis=-1)
    w_r, w_z, w_n = jnp.split(h @ p["W"] + p["c"], 3, axis=-1)
    z = nn.sigmoid(u_z + w_z)
    return ((1 - z) * jnp.tanh(u_n + nn.sigmoid(u_r + w_r) * w_n) + z * h,)


CELLS: dict[str, tuple[Callable[[Values, Any, Any], Any], int, int]] = {
    "rnn_tanh": (rnn, 1, 1),
    "lstm": (lstm, 4, 2),
    "gru": (gru, 3, 1),
}


def build(case: Case) -> Callable[[int], None]:
    """Create a model, its jitted update and its training loop."""
    step, gates, parts = CELLS[case.cell]
    H, key = case.hidden_size, jax.random.key(0)
    keys = jax.random.split(key, 5)
    inputs, outputs = case.vocabulary or INPUT_SIZE, case.vocabulary or OUTPUT_SIZE
    p = {
        "U": jax.random.normal(keys[0], (inputs, gates * H)) * H**-0.5,
        "W": jax.random.normal(keys[1], (H, gates * H)) * H**-0.5,
        "V": jax.random.normal(keys[2], (H, outputs)) * H**-0.5,
        "b": jnp.zeros(gates * H),
        "c": jnp.zeros(gates * H),
        "d": jnp.zeros(outputs),
    }
    x = jax.random.normal(keys[3], (case.k, case.streams, INPUT_SIZE))
    y = jax.random.normal(keys[4], (case.k, case.streams, OUTPUT_SIZE))
    tokens = jax.random.randint(keys[3], (case.k + 1, case.streams), 0, case.vocabulary or 1)

    def loss(p: Values, state: Any) -> Any:
        def one(state: Any, u: Any) -> Any:
            state = step(p, state, u)
            return state, state[0]

        u = p["U"][tokens[:-1]] if case.vocabulary else x @ p["U"]
        state, h = lax.scan(one, state, u + p["b"])
        output = h @ p["V"] + p["d"]
        if case.vocabulary:
            log_p = nn.log_softmax(output)
            return -jnp.take_along_axis(log_p, tokens[1:, :, None], axis=-1).mean(), state
        error = output - y
        return 0.5 * jnp.square(error).sum() / (case.k * case.streams), state

    @jax.jit
    def update(p: Values, state: Any) -> Any:
        gradient, state = jax.grad(loss, has_aux=True)(p, state)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
        scale = LEARNING_RATE * jnp.minimum(1.0, CLIP / (norm + 1e-6))
        return jax.tree.map(lambda a, g: a - scale * g, p, gradient), state

    now: list[Any] = [p, (jnp.zeros((case.streams, H)),) * parts]

    def learn(windows: int) -> None:
        for _ in range(windows):
            now[0], now[1] = update(now[0], now[1])
        jax.block_until_ready(now)

    return learn


if __name__ == "__main__":
    answer(build)
