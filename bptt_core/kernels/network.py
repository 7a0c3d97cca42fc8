"""The whole network over a window, forward and backward: the twin of `bptt_core.network`."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bptt_core.kernels.addresses import cut
from bptt_core.kernels.dispatch import cell_backward, cell_forward, Tag
from bptt_core.kernels.gemm import fill_product
from bptt_core.kernels.jit import compiled, expanded
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


@expanded
def layer_states(sizes: Sizes, T: int, B: int, work: Work, layer: int) -> Array:
    """(parts, T + 1, B, H) states of a layer."""
    n = sizes.parts * (T + 1) * B * sizes.H
    return cut(work.states, layer * n, (sizes.parts, T + 1, B, sizes.H))


@compiled
def network_forward(
    tag: Tag, sizes: Sizes, parameters: Array, T: int, B: int, by_row: bool, work: Work
) -> None:
    """Unfold all layers over `work.inputs` (T, B, F), from row 0 of each layer's states.

    With `by_row`, how many steps are unfolded at once changes no bit.
    """
    H, GH = sizes.H, sizes.G * sizes.H
    rows = T * B
    x = cut(work.inputs, 0, (rows, sizes.F))
    tape_size, extra_size = rows * GH, (T + 3) * B * H
    bias = work.bias[:GH]
    turned_rows = H if B >= BLAS_ROWS and GH * H <= TURNED_MOST else H - H
    turned = cut(work.turned, 0, (turned_rows, GH))
    start = 0
    for layer in range(sizes.L):
        inputs = sizes.inputs if layer == 0 else H
        U = cut(parameters, start, (GH, inputs))
        W_at = start + GH * inputs
        W = cut(parameters, W_at, (GH, H))
        b_at = W_at + GH * H
        b = parameters[b_at : b_at + GH]
        b_hidden = parameters[b_at + GH : b_at + 2 * GH]
        for i in range(GH):
            bias[i] = b[i] if sizes.bias_apart else b[i] + b_hidden[i]
        states = layer_states(sizes, T, B, work, layer)
        tape = work.tape[layer * tape_size : (layer + 1) * tape_size]
        extra = work.extra[layer * extra_size : (layer + 1) * extra_size]
        if layer == 0 and sizes.tokens:
            look_up(x, cut(parameters, start, (inputs, GH)), bias, cut(tape, 0, (rows, GH)))
        else:
            project(x, U, bias, by_row, cut(tape, 0, (rows, GH)))
        if turned_rows > 0:
            turn(W, turned)
        cell_forward(
            tag,
            W,
            b_hidden,
            states,
            cut(tape, 0, (T, B, GH)),
            cut(extra, 0, (T + 3, B, H)),
            turned,
        )
        x = cut(states[0], B * H, (rows, H))
        start += layer_size(sizes, layer)


@compiled
def head_forward(
    sizes: Sizes, parameters: Array, T: int, B: int, first: int, by_row: bool, work: Work
) -> None:
    """Fill `work.output` with the outputs (T - first, B, O) of the steps from `first` on."""
    H, O = sizes.H, sizes.O
    n = (T - first) * B
    states = layer_states(sizes, T, B, work, sizes.L - 1)
    h = cut(states[0], (first + 1) * B * H, (n, H))
    V_at = sizes.P - O * (H + 1)
    V = cut(parameters, V_at, (O, H))
    project(h, V, parameters[sizes.P - O :], by_row, cut(work.output, 0, (n, O)))


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
    V = cut(parameters, V_at, (O, H))
    top = layer_states(sizes, T, B, work, sizes.L - 1)
    d_rows = cut(d_output, 0, (n, O))
    top_rows = cut(top[0], (first + 1) * B * H, (n, H))
    add_outer_product(d_rows, top_rows, cut(gradient, V_at, (O, H)))
    add_column_sums(d_rows, gradient[sizes.P - O :])
    dh_flat = work.dh[: rows * H]
    fill(dh_flat[: first * B * H], 0.0)
    fill_product(d_rows, V, cut(dh_flat, first * B * H, (n, H)))

    tape_size, extra_size = rows * GH, (T + 3) * B * H
    da = cut(work.da, 0, (T, B, GH))
    dw = cut(work.dw, 0, (T, B, GH)) if sizes.bias_apart else da
    stop = V_at
    for layer in range(sizes.L - 1, -1, -1):
        start = stop - layer_size(sizes, layer)
        inputs = sizes.inputs if layer == 0 else H
        W_at = start + GH * inputs
        b_at = W_at + GH * H
        U = cut(parameters, start, (GH, inputs))
        W = cut(parameters, W_at, (GH, H))
        states = layer_states(sizes, T, B, work, layer)
        tape = cut(work.tape, layer * tape_size, (T, B, GH))
        extra = cut(work.extra, layer * extra_size, (T + 3, B, H))
        cell_backward(tag, W, states, tape, extra, cut(dh_flat, 0, (T, B, H)), da, dw)
        da_rows, dw_rows = cut(da, 0, (rows, GH)), cut(dw, 0, (rows, GH))
        dU = gradient[start:W_at]
        if layer > 0:
            x = cut(layer_states(sizes, T, B, work, layer - 1)[0], B * H, (rows, H))
            add_outer_product(da_rows, x, cut(dU, 0, (GH, inputs)))
        elif sizes.tokens:
            scatter(work.inputs[:rows], da_rows, cut(dU, 0, (inputs, GH)))
        else:
            x = cut(work.inputs, 0, (rows, inputs))
            add_outer_product(da_rows, x, cut(dU, 0, (GH, inputs)))
        before = cut(states[0], 0, (rows, H))
        add_outer_product(dw_rows, before, cut(gradient, W_at, (GH, H)))
        add_column_sums(da_rows, gradient[b_at : b_at + GH])
        add_column_sums(dw_rows, gradient[b_at + GH : stop])
        if layer > 0:
            fill_product(da_rows, U, cut(dh_flat, 0, (rows, H)))
        stop = start
