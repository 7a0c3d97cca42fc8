"""A cell defined in this file only: the library takes all it needs from the descriptor.

The minimal gated unit, with the gate after the recurrent product, as in PyTorch's GRU:
    (M1) f_t = σ(U_f x_t + b_f + W_f h_{t-1} + b_f')   forget gate
    (M2) q_t = W_n h_{t-1} + b_n'
    (M3) n_t = tanh(U_n x_t + b_n + f_t ⊙ q_t)         candidate
    (M4) h_t = (1 - f_t) ⊙ h_{t-1} + f_t ⊙ n_t

Source: Zhou, Wu, Zhang and Zhou (2016), "Minimal gated unit for recurrent neural networks".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from bptt_core import ModelSpec
from bptt_core.cells import Cell, CELLS, Layer
from bptt_core.errors import InvalidArgument
from bptt_core.kernels import dispatch
from bptt_core.kernels.dispatch import CellKernels
from bptt_core.kernels.jit import compiled
from bptt_core.kernels.linear import (
    add_rows_times,
    add_rows_times_transpose,
    copy,
    sigmoid_in_place,
    tanh_into,
)
from tests.core import naive
from tests.core.cell_contract import CellContract
from tests.core.naive.cells import from_next, recurrent

# ---------------------------------------------------------------------- the reference


class Tape(NamedTuple):
    x: Any
    h: Any
    gates: Any

    @property
    def states(self) -> tuple[Any]:
        return (self.h,)


def forward(layer: Layer, x: Any, state: tuple[Any, ...]) -> Tape:
    h = np.empty((len(x) + 1, *state[0].shape), x.dtype)
    gates = np.empty((len(x), 3, *state[0].shape), x.dtype)
    h[0] = state[0]
    for t in range(len(x)):
        u_f, u_n = np.split(x[t] @ layer.U.T + layer.b, 2, axis=1)
        w_f, q = np.split(h[t] @ layer.W.T + layer.b_hidden, 2, axis=1)
        f = 0.5 * (np.tanh(0.5 * (u_f + w_f)) + 1)
        n = np.tanh(u_n + f * q)
        h[t + 1] = (1 - f) * h[t] + f * n
        gates[t] = f, n, q
    return Tape(x, h, gates)


def step_back(
    layer: Layer, tape: Tape, t: int, dL_dstate: tuple[Any, ...]
) -> tuple[Any, Any, tuple[Any, ...]]:
    (f, n, q), (dh,) = tape.gates[t], dL_dstate
    dan = dh * f * (1 - n * n)
    daf = (dh * (n - tape.h[t]) + dan * q) * f * (1 - f)
    du, dw = np.concatenate([daf, dan], axis=1), np.concatenate([daf, dan * f], axis=1)
    return du, dw, (dw @ layer.W + dh * (1 - f),)


def backward(layer: Layer, gradient: Layer, tape: Tape, dh: Any) -> Any:
    dx, later = np.empty_like(tape.x), np.zeros_like(tape.h[0])
    for t in reversed(range(len(tape.x))):
        du, dw, (later,) = step_back(layer, tape, t, (dh[t] + later,))
        gradient.U[:] += du.T @ tape.x[t]
        gradient.W[:] += dw.T @ tape.h[t]
        gradient.b[:] += du.sum(axis=0)
        gradient.b_hidden[:] += dw.sum(axis=0)
        dx[t] = du @ layer.U
    return dx


# ---------------------------------------------------------------------- the kernels


@compiled
def mgu_forward(W: Any, b_hidden: Any, states: Any, tape: Any, q: Any, w: Any, turned: Any) -> None:
    T, B, H2 = tape.shape
    H = H2 // 2
    one = tape.dtype.type(1)
    for t in range(T):
        for b in range(B):
            copy(b_hidden, w[b])
        add_rows_times_transpose(states[0, t], W, t % 2 == 1, turned, w)
        for b in range(B):
            gates, w_b, q_b = tape[t, b], w[b], q[t, b]
            for i in range(H):
                gates[i] += w_b[i]
            sigmoid_in_place(gates[:H])
            n = gates[H:]
            for i in range(H):
                q_b[i] = w_b[H + i]
                n[i] += gates[i] * q_b[i]
            tanh_into(n, n)
            h, h_before = states[0, t + 1, b], states[0, t, b]
            for i in range(H):
                h[i] = (one - gates[i]) * h_before[i] + gates[i] * n[i]


@compiled
def mgu_backward(W: Any, states: Any, tape: Any, q: Any, dh: Any, da: Any, dw: Any) -> None:
    T, B, H2 = da.shape
    H = H2 // 2
    one = da.dtype.type(1)
    for t in range(T - 1, -1, -1):
        for b in range(B):
            gates, a, w, dh_b = tape[t, b], da[t, b], dw[t, b], dh[t, b]
            h_before, q_b = states[0, t, b], q[t, b]
            for k in range(H):
                f, n = gates[k], gates[H + k]
                dan = dh_b[k] * f * (one - n * n)
                daf = (dh_b[k] * (n - h_before[k]) + dan * q_b[k]) * f * (one - f)
                a[k] = w[k] = daf
                a[H + k], w[H + k] = dan, dan * f
        if t > 0:
            for b in range(B):
                for k in range(H):
                    dh[t - 1, b, k] += dh[t, b, k] * (one - tape[t, b, k])
            add_rows_times(dw[t], W, t % 2 == 1, dh[t - 1])


def kernel_forward(
    tag: Any, W: Any, b_hidden: Any, states: Any, tape: Any, extra: Any, turned: Any
) -> None:
    T, B, H2 = tape.shape
    w = extra[T : T + 2].reshape(B, H2)
    mgu_forward(W, b_hidden, states, tape, extra[:T], w, turned)


def kernel_backward(
    tag: Any, W: Any, states: Any, tape: Any, extra: Any, dh: Any, da: Any, dw: Any
) -> None:
    T = da.shape[0]
    mgu_backward(W, states, tape, extra[:T], dh, da, dw)


def initialise(layer: Layer, random: np.random.Generator) -> None:
    """PyTorch's values, but a forget gate that begins nearly shut, so that the state lasts."""
    bound = layer.W.shape[1] ** -0.5
    for view in layer:
        view[:] = random.uniform(-bound, bound, view.shape)
    layer.b[: len(layer.b) // 2] -= 1


MGU = Cell(
    name="mgu",
    gates=("f", "n"),
    candidate="n",
    equations="M",
    separate_hidden_bias=True,
    forward=forward,
    step_back=step_back,
    backward=backward,
    kernels=lambda: CellKernels(kernel_forward, kernel_backward),
    initialise=initialise,
)

# ---------------------------------------------------------------------- the scalar twin


def twin_forward(W: Any, u: Any, b_hidden: Any, state: Any) -> tuple[Any, Any]:
    H = len(state[0])
    h, gates = [state[0]], []
    for t in range(len(u)):
        w = [b_hidden[row] + recurrent(W, h[t], row) for row in range(2 * H)]
        f = [naive.sigmoid(u[t][k] + w[k]) for k in range(H)]
        n = [naive.tanh(u[t][H + k] + f[k] * w[H + k]) for k in range(H)]
        h.append([(1 - f[k]) * h[t][k] + f[k] * n[k] for k in range(H)])
        gates.append((f, n, w[H:]))
    return [h], gates


def twin_backward(W: Any, parts: Any, gates: Any, dh: Any) -> tuple[Any, Any, Any]:
    T, H, (h,) = len(dh), len(dh[0]), parts
    du, dw, total = [[[] for _ in range(T)] for _ in range(3)]  # type: ignore[var-annotated]
    later = [0.0] * H
    for t in reversed(range(T)):
        f, n, q = gates[t]
        total[t] = [dh[t][k] + later[k] for k in range(H)]
        dan = [total[t][k] * f[k] * (1 - n[k] ** 2) for k in range(H)]
        df = [total[t][k] * (n[k] - h[t][k]) + dan[k] * q[k] for k in range(H)]
        daf = [df[k] * f[k] * (1 - f[k]) for k in range(H)]
        du[t], dw[t] = daf + dan, daf + [dan[k] * f[k] for k in range(H)]
        later = [from_next(W, dw[t], j) + (1 - f[j]) * total[t][j] for j in range(H)]
    return du, dw, total


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    CELLS.register(MGU)
    naive.TWINS["mgu"] = naive.Twin(2, 1, True, twin_forward, twin_backward)
    yield
    CELLS.unregister("mgu")
    del naive.TWINS["mgu"]


class TestTheMinimalGatedUnit(CellContract):
    @pytest.fixture
    def cell(self) -> str:
        return "mgu"

    def test_its_own_initial_values_are_used(self, cell: str) -> None:
        from bptt_core import Learner

        named = Learner(ModelSpec(cell=cell, hidden_size=8), backend="reference").parameters()
        assert (named["rnn.bias_ih_l0"][:8] < -0.6).all()
        assert (np.abs(named["rnn.bias_ih_l0"][8:]) < 0.4).all()

    def test_its_tag_is_found_again_by_its_name(self, cell: str) -> None:
        """Numba's index on the disk names the classes of tags of cells that it does not know."""
        kind = type(dispatch.tag(ModelSpec(cell=cell)))
        assert getattr(dispatch, kind.__name__) is kind
        assert kind.__name__.startswith("Tag_test_new_cell_")
        assert kind is not type(dispatch.tag(ModelSpec(cell="gru")))
        assert dispatch.Tag_of_another_process._fields == kind._fields
        with pytest.raises(AttributeError, match="no attribute 'tags'"):
            dispatch.tags  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "MGU"}, "cell"),
        ({"name": "mgu"}, "cell"),
        ({"name": "m gu"}, "cell"),
        ({"gates": ()}, "gates"),
        ({"gates": ("n", "n")}, "gates"),
        ({"candidate": "h"}, "candidate"),
        ({"state_parts": ("c", "h")}, "state_parts"),
    ],
)
def test_a_descriptor_that_contradicts_itself_is_refused(changes: Any, field: str) -> None:
    before = list(CELLS)
    with pytest.raises(InvalidArgument) as caught:
        CELLS.register(replace(MGU, **changes))
    assert caught.value.field == field
    assert list(CELLS) == before


def test_an_unregistered_cell_cannot_be_removed_or_chosen() -> None:
    with pytest.raises(InvalidArgument, match="cell is tgu, but must be one of"):
        CELLS.unregister("tgu")
    with pytest.raises(InvalidArgument, match="cell is tgu, but must be one of"):
        ModelSpec(cell="tgu")
    assert len(CELLS) == 5


@contextlib.contextmanager
def a_variant_of_gru(kernels: CellKernels) -> Iterator[ModelSpec]:
    """The spec of a cell that differs from the GRU in its kernels."""
    CELLS.register(replace(CELLS["gru"], name="variant", kernels=lambda: kernels))
    try:
        yield ModelSpec(input_size=1, cell="variant")
    finally:
        CELLS.unregister("variant")


def test_a_cell_that_shares_a_forward_pass_keeps_its_own_backward_pass() -> None:
    """Compiled code is found by the tag's class, so each pair of kernels has a class of its own."""
    gru, lstm = (CELLS[name].kernels() for name in ("gru", "lstm"))
    ours = dispatch.tag(ModelSpec(input_size=1, cell="gru"))
    with a_variant_of_gru(CellKernels(gru.forward, lstm.backward)) as spec:
        assert type(dispatch.tag(spec)) is not type(ours)


def _forward_of(factor: float) -> Any:
    def made(*arguments: Any) -> float:
        return factor

    return made


def test_kernels_of_one_name_and_source_are_refused() -> None:
    backward = CELLS["gru"].kernels().backward
    with a_variant_of_gru(CellKernels(_forward_of(1.0), backward)) as spec:
        dispatch.tag(spec)
    refused = pytest.raises(ValueError, match=r"cell 'variant'.*function of its own")
    with a_variant_of_gru(CellKernels(_forward_of(2.0), backward)) as spec, refused:
        dispatch.tag(spec)
