"""Products, elementwise functions and column sums against loops over single indices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bptt_core.cells.lstm import sigmoid
from bptt_core.kernels import jit, linear
from tests.core import naive
from tests.core.support import assert_twin, numbers

RANDOM = np.random.default_rng(11)
SIZES = [(1, 1), (8, 3), (3, 8), (13, 17), (16, 16)]
"""Sizes around eight, the number of rows that a product takes at once."""
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])


@pytest.mark.twin_of("linear.is_finite")
@pytest.mark.parametrize("x", [0.0, -1e308, 1e-320, math.inf, -math.inf, math.nan])
def test_is_finite(x: float) -> None:
    assert linear.is_finite(x) == math.isfinite(x)


@pytest.mark.twin_of("jit.whole")
def test_whole() -> None:
    assert jit.whole(7) == 7


@pytest.mark.twin_of("jit.truth")
def test_truth() -> None:
    assert jit.truth(1)
    assert not jit.truth(0)


@pytest.mark.twin_of("linear.copy", "linear.fill", "linear.add_flat")
@dtypes
def test_flat(dtype: str) -> None:
    source, out = numbers(RANDOM, (9,), dtype), numbers(RANDOM, (9,), dtype)
    ref = naive.add(source.tolist(), out.tolist())
    linear.add_flat(source, out)
    assert_twin(out, ref, dtype)
    linear.copy(source, out)
    assert out.tolist() == source.tolist()
    linear.fill(out, 0.25)
    assert out.tolist() == [0.25] * 9


@pytest.mark.twin_of("linear.tanh_into", "linear.sigmoid_in_place")
@dtypes
def test_squashing(dtype: str) -> None:
    a = np.concatenate([np.linspace(-30, 30, 301), [1e-9, -1e-4, 88.0, -700.0]]).astype(dtype)
    ref = [naive.tanh(x) for x in a.tolist()]
    comp = np.empty_like(a)
    linear.tanh_into(a, comp)
    assert_twin(comp, ref, dtype)
    small = np.abs(a) < 0.1  # where tanh(a) is nearly a, every digit counts
    np.testing.assert_allclose(
        comp[small], np.array(ref)[small], 1e-14 if a.itemsize == 8 else 1e-6
    )
    ref = [naive.sigmoid(x) for x in a.tolist()]
    assert_twin(sigmoid(a), ref, dtype)
    linear.sigmoid_in_place(a)
    assert_twin(a, ref, dtype)


@pytest.mark.twin_of("linear.tanh_into")
@dtypes
def test_tanh_of_what_is_not_finite(dtype: str) -> None:
    a = np.array([np.inf, -np.inf, np.nan], dtype)
    out = np.empty_like(a)
    linear.tanh_into(a, out)
    assert_twin(out[:2], [1.0, -1.0], dtype)
    assert np.isnan(out[2])


@pytest.mark.twin_of("linear.add_matrix_vector", "linear.add_vector_matrix")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("back", [False, True])
@dtypes
def test_products_with_a_vector(size: tuple[int, int], back: bool, dtype: str) -> None:
    matrix = numbers(RANDOM, size, dtype)
    v, out = numbers(RANDOM, size[1:], dtype), numbers(RANDOM, size[:1], dtype)
    ref = naive.affine(matrix.tolist(), v.tolist(), out.tolist())
    other = out.copy()
    linear.add_matrix_vector(matrix, v, back, out)
    assert_twin(out, ref, dtype)
    linear.add_matrix_vector(matrix, v, not back, other)
    assert other.tobytes() == out.tobytes()
    v, out = numbers(RANDOM, size[:1], dtype), numbers(RANDOM, size[1:], dtype)
    ref = naive.add(out.tolist(), naive.vector_matrix(v.tolist(), matrix.tolist()))
    linear.add_vector_matrix(v, matrix, back, out)
    assert_twin(out, ref, dtype)


@pytest.mark.twin_of("linear.add_rows_times", "linear.add_rows_times_transpose")
@pytest.mark.parametrize("rows", [1, 3, linear.BLAS_ROWS, 6])
@pytest.mark.parametrize("size", [(13, 9), (130, 129)], ids=["small", "large"])
@pytest.mark.parametrize("back", [False, True])
@dtypes
def test_products_with_rows(size: tuple[int, int], back: bool, rows: int, dtype: str) -> None:
    n, m = size
    matrix, out = numbers(RANDOM, size, dtype), numbers(RANDOM, (rows, m), dtype)
    each = numbers(RANDOM, (rows, n), dtype)
    ref: Any = [
        naive.add(old, naive.vector_matrix(row, matrix.tolist()))
        for old, row in zip(out.tolist(), each.tolist(), strict=True)
    ]
    linear.add_rows_times(each, matrix, back, out)
    assert_twin(out, ref, dtype)
    each, out = numbers(RANDOM, (rows, m), dtype), numbers(RANDOM, (rows, n), dtype)
    ref = [
        naive.affine(matrix.tolist(), row, old)
        for old, row in zip(out.tolist(), each.tolist(), strict=True)
    ]
    turned, other = np.empty((m, n), dtype), out.copy()
    linear.turn(matrix, turned)
    np.testing.assert_array_equal(turned, matrix.T)
    linear.add_rows_times_transpose(each, matrix, back, turned, out)
    assert_twin(out, ref, dtype)
    linear.add_rows_times_transpose(each, matrix, back, turned[:0], other)
    assert_twin(other, ref, dtype)


@pytest.mark.twin_of("linear.add_rows_product", "linear.add_outer_product", "linear.piece_rows")
@pytest.mark.parametrize("shape", [(5, 3, 4), (260, 70, 66), (40, 300, 300)], ids=str)
@dtypes
def test_products_in_pieces(shape: tuple[int, int, int], dtype: str) -> None:
    n, k, m = shape
    piece = linear.piece_rows(n, k, m)
    assert piece % 16 == 0 or piece == n
    assert piece == n or piece * k * m <= linear.PIECE
    assert (piece < n) == (n == 260)  # cut where more than one piece is needed, and pays
    rows, matrix = numbers(RANDOM, (n, k), dtype), numbers(RANDOM, (k, m), dtype)
    out = numbers(RANDOM, (n, m), dtype)
    ref: Any = [
        naive.add(old, naive.vector_matrix(row, matrix.tolist()))
        for old, row in zip(out.tolist(), rows.tolist(), strict=True)
    ]
    linear.add_rows_product(rows, matrix, out)
    assert_twin(out, ref, dtype)
    right, out = numbers(RANDOM, (n, m), dtype), numbers(RANDOM, (k, m), dtype)
    ref = [
        naive.add(old, naive.vector_matrix(column, right.tolist()))
        for old, column in zip(out.tolist(), rows.T.tolist(), strict=True)
    ]
    linear.add_outer_product(rows, right, out)
    assert_twin(out, ref, dtype)


@pytest.mark.twin_of("linear.turn", "linear.add_column_sums")
@dtypes
def test_column_sums(dtype: str) -> None:
    rows, comp = numbers(RANDOM, (7, 5), dtype), numbers(RANDOM, (5,), dtype)
    ref = naive.add(comp.tolist(), naive.column_sums(rows.tolist()))
    linear.add_column_sums(rows, comp)
    assert_twin(comp, ref, dtype)
