"""The whole network over a window, forward and backward: the twin of `bptt_core.network`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.dispatch import cell_backward, cell_forward, Tag
from bptt_core.kernels.jit import compiled
from bptt_core.kernels.linear import (
    add_column_sums,
    add_flat,
    add_matrix_vector,
    add_outer_product,
    add_rows_product,
    BLAS_ROWS,
    copy,
    fill,
    turn,
)
from bptt_core.kernels.sizes import Sizes, Work
from bptt_core.memory import TURNED_MOST

Array = NDArray[Any]


@compiled
def project(rows: Array, matrix: Array, bias: Array, by_row: bool, out: Array) -> None:
    """Fill out (n, m) with bias + rows (n, k) · matrix (m, k)ᵀ.

    Row by row, a row's bits do not depend on how many others there are; a BLAS product is faster.
    """
    n = out.shape[0]
    for r in range(n):
        copy(bias, out[r])
    if by_row or n < BLAS_ROWS:
        for r in range(n):
            add_matrix_vector(matrix, rows[r], False, out[r])
    else:
        add_rows_product(rows, matrix.T, out)


@compiled
def look_up(tokens: Array, U: Array, bias: Array, out: Array) -> None:
    """Fill out (n, m) with bias + the rows of U (vocabulary, m) that tokens (n, 1) name."""
    for r in range(out.shape[0]):
        copy(U[int(tokens[r, 0])], out[r])
        add_flat(bias, out[r])


@compiled
def scatter(tokens: Array, rows: Array, dU: Array) -> None:
    """Add rows (n, m) to the rows of dU (vocabulary, m) that tokens (n,) name."""
    for r in range(rows.shape[0]):
        add_flat(rows[r], dU[int(tokens[r])])


@compiled
def layer_size(sizes: Sizes, layer: int) -> int:
    """Parameters of one layer."""
    GH = sizes.G * sizes.H
    inputs = sizes.inputs if layer == 0 else sizes.H
    return GH * (inputs + sizes.H + 2)


@compiled
def layer_states(sizes: Sizes, T: int, B: int, work: Work, layer: int) -> Array:
    """(parts, T + 1, B, H) states of a layer."""
    n = sizes.parts * (T + 1) * B * sizes.H
    return work.states[layer * n : (layer + 1) * n].reshape(sizes.parts, T + 1, B, sizes.H)


@compiled
def network_forward(
    tag: Tag, sizes: Sizes, parameters: Array, T: int, B: int, by_row: bool, work: Work
) -> None:
    """Unfold all layers over `work.inputs` (T, B, F), from row 0 of each layer's states.

    With `by_row`, how many steps are unfolded at once changes no bit.
    """
    H, GH = sizes.H, sizes.G * sizes.H
    rows = T * B
    x = work.inputs[: rows * sizes.F].reshape(rows, sizes.F)
    tape_size, extra_size = rows * GH, (T + 3) * B * H
    bias = work.bias[:GH]
    turned_rows = H if B >= BLAS_ROWS and GH * H <= TURNED_MOST else H - H
    turned = work.turned[: turned_rows * GH].reshape(turned_rows, GH)
    start = 0
    for layer in range(sizes.L):
        inputs = sizes.inputs if layer == 0 else H
        U = parameters[start : start + GH * inputs].reshape(GH, inputs)
        W_at = start + GH * inputs
        W = parameters[W_at : W_at + GH * H].reshape(GH, H)
        b_at = W_at + GH * H
        b = parameters[b_at : b_at + GH]
        b_hidden = parameters[b_at + GH : b_at + 2 * GH]
        for i in range(GH):
            bias[i] = b[i] if sizes.bias_apart else b[i] + b_hidden[i]
        states = layer_states(sizes, T, B, work, layer)
        tape = work.tape[layer * tape_size : (layer + 1) * tape_size]
        extra = work.extra[layer * extra_size : (layer + 1) * extra_size]
        if layer == 0 and sizes.tokens:
            look_up(x, parameters[start:W_at].reshape(inputs, GH), bias, tape.reshape(rows, GH))
        else:
            project(x, U, bias, by_row, tape.reshape(rows, GH))
        if turned_rows > 0:
            turn(W, turned)
        cell_forward(
            tag,
            W,
            b_hidden,
            states,
            tape.reshape(T, B, GH),
            extra.reshape(T + 3, B, H),
            turned,
        )
        x = states[0, 1:].reshape(rows, H)
        start += layer_size(sizes, layer)


@compiled
def head_forward(
    sizes: Sizes, parameters: Array, T: int, B: int, first: int, by_row: bool, work: Work
) -> Array:
    """Outputs (T - first, B, O) of the steps from `first` on."""
    H, O = sizes.H, sizes.O
    n = (T - first) * B
    states = layer_states(sizes, T, B, work, sizes.L - 1)
    h = states[0, first + 1 :].reshape(n, H)
    V_at = sizes.P - O * (H + 1)
    V = parameters[V_at : V_at + O * H].reshape(O, H)
    output = work.output[: n * O].reshape(n, O)
    project(h, V, parameters[sizes.P - O :], by_row, output)
    return output.reshape(T - first, B, O)


@compiled
def network_backward(
    tag: Tag,
    sizes: Sizes,
    parameters: Array,
    T: int,
    B: int,
    first: int,
    d_output: Array,
    work: Work,
) -> None:
    """Add to `work.gradient` from ∂L/∂output (T - first, B, O) of the steps from `first` on."""
    H, GH, O = sizes.H, sizes.G * sizes.H, sizes.O
    rows, n = T * B, (T - first) * B
    gradient = work.gradient
    V_at = sizes.P - O * (H + 1)
    V = parameters[V_at : V_at + O * H].reshape(O, H)
    top = layer_states(sizes, T, B, work, sizes.L - 1)
    d_rows = d_output.reshape(n, O)
    top_rows = top[0, first + 1 :].reshape(n, H)
    add_outer_product(d_rows, top_rows, gradient[V_at : V_at + O * H].reshape(O, H))
    add_column_sums(d_rows, gradient[sizes.P - O :])
    dh_flat = work.dh[: rows * H]
    fill(dh_flat[: first * B * H], 0.0)
    np.dot(d_rows, V, dh_flat[first * B * H :].reshape(n, H))

    tape_size, extra_size = rows * GH, (T + 3) * B * H
    da = work.da[: rows * GH].reshape(T, B, GH)
    dw = work.dw[: rows * GH].reshape(T, B, GH) if sizes.bias_apart else da
    stop = V_at
    for layer in range(sizes.L - 1, -1, -1):
        start = stop - layer_size(sizes, layer)
        inputs = sizes.inputs if layer == 0 else H
        W_at = start + GH * inputs
        b_at = W_at + GH * H
        U = parameters[start:W_at].reshape(GH, inputs)
        W = parameters[W_at:b_at].reshape(GH, H)
        states = layer_states(sizes, T, B, work, layer)
        tape = work.tape[layer * tape_size : (layer + 1) * tape_size].reshape(T, B, GH)
        extra = work.extra[layer * extra_size : (layer + 1) * extra_size].reshape(T + 3, B, H)
        cell_backward(tag, W, states, tape, extra, dh_flat.reshape(T, B, H), da, dw)
        da_rows, dw_rows = da.reshape(rows, GH), dw.reshape(rows, GH)
        dU = gradient[start:W_at]
        if layer > 0:
            x = layer_states(sizes, T, B, work, layer - 1)[0, 1:].reshape(rows, H)
            add_outer_product(da_rows, x, dU.reshape(GH, inputs))
        elif sizes.tokens:
            scatter(work.inputs[:rows], da_rows, dU.reshape(inputs, GH))
        else:
            x = work.inputs[: rows * inputs].reshape(rows, inputs)
            add_outer_product(da_rows, x, dU.reshape(GH, inputs))
        before = states[0, :T].reshape(rows, H)
        add_outer_product(dw_rows, before, gradient[W_at:b_at].reshape(GH, H))
        add_column_sums(da_rows, gradient[b_at : b_at + GH])
        add_column_sums(dw_rows, gradient[b_at + GH : stop])
        if layer > 0:
            np.dot(da_rows, U, dh_flat.reshape(rows, H))
        stop = start
