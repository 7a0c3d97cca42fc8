"""Products of small vectors and matrices, and elementwise functions, written to vectorise.

A product with a batch of rows calls BLAS. A product with a single row does not: for a small matrix
the call costs as much as the product, and for a large one memory bandwidth is the limit either way.
Alternate steps read the matrix forwards and backwards, because its last part is still in the cache.

Large products of small matrices are cut into pieces that OpenBLAS computes without packing its
arguments first. At H = 64 packing took half of the time of a product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.gemm import add_product
from bptt_core.kernels.jit import compiled, inlined

Array = NDArray[Any]

LARGEST = float(np.finfo(np.float64).max)
PIECE = 900_000
"""Multiplications in a piece of a product. OpenBLAS packs the arguments of products of more than a
million (interface/gemm.c and kernel/x86_64/sgemm_small_kernel_permit_skylakex.c)."""
PIECE_ROWS = 32  # shorter pieces cost more in calls than packing does
BLAS_ROWS = 4  # from this many rows a BLAS product beats row by row (measured at H = 64)

# tanh(x) ≈ x P(x²) / Q(x²) on [-7.9, 7.9], beyond which float32's tanh is 1 to its last digits: the
# coefficients of Eigen's and XLA's float32 tanh, within 3 units in the last place.
TANH_BOUND = np.float32(7.90531110763549805)
A1 = np.float32(4.89352455891786e-03)
A3 = np.float32(6.37261928875436e-04)
A5 = np.float32(1.48572235717979e-05)
A7 = np.float32(5.12229709037114e-08)
A9 = np.float32(-8.60467152213735e-11)
A11 = np.float32(2.00018790482477e-13)
A13 = np.float32(-2.76076847742355e-16)
B0 = np.float32(4.89352518554385e-03)
B2 = np.float32(2.26843463243900e-03)
B4 = np.float32(1.18534705686654e-04)
B6 = np.float32(1.19825839466702e-06)


@inlined
def is_finite(x: float) -> bool:
    """Neither NaN nor infinite. With reordered sums, `math.isfinite`'s x - x may become 0."""
    return abs(x) <= LARGEST


@inlined
def copy(source: Array, out: Array) -> None:
    """Copy source to out, both 1-D. A loop compiles ten times as fast as a slice assignment."""
    for i in range(out.size):
        out[i] = source[i]


@inlined
def fill(out: Array, value: float) -> None:
    """Fill out, 1-D."""
    number = out.dtype.type(value)
    for i in range(out.size):
        out[i] = number


@inlined
def tanh_into(a: Array, out: Array) -> None:
    """Fill out with tanh(a), element by element, 1-D. NaN stays NaN."""
    if a.itemsize == 8:
        for i in range(a.size):
            out[i] = np.tanh(a[i])
    else:
        for i in range(a.size):
            x = np.float32(a[i])
            x = TANH_BOUND if x > TANH_BOUND else x
            x = -TANH_BOUND if x < -TANH_BOUND else x
            s = x * x
            p = s * (s * (s * (s * (s * (s * A13 + A11) + A9) + A7) + A5) + A3) + A1
            q = s * (s * (s * B6 + B4) + B2) + B0
            out[i] = x * p / q


@inlined
def sigmoid_in_place(a: Array) -> None:
    """Replace a by σ(a) = (tanh(a / 2) + 1) / 2, element by element, 1-D."""
    half = a.dtype.type(0.5)
    if a.itemsize == 8:
        for i in range(a.size):
            a[i] = half * np.tanh(half * a[i]) + half
    else:  # in one pass: with tanh_into it would take three
        for i in range(a.size):
            x = half * np.float32(a[i])
            x = TANH_BOUND if x > TANH_BOUND else x
            x = -TANH_BOUND if x < -TANH_BOUND else x
            s = x * x
            p = s * (s * (s * (s * (s * (s * A13 + A11) + A9) + A7) + A5) + A3) + A1
            q = s * (s * (s * B6 + B4) + B2) + B0
            a[i] = half * (x * p / q) + half


# The products below index the matrix itself: eight views of its rows would cost as much as the
# arithmetic at H = 64, because each view counts a reference.


@inlined
def add_vector_matrix(v: Array, matrix: Array, back: bool, out: Array) -> None:
    """Add v (n,) · matrix (n, m) to out (m,); with `back`, from the matrix's end to its beginning.

    Takes eight rows at once, so that `out` is read and written once for all of them.
    """
    n, m = matrix.shape
    blocks = n // 8
    for block in range(blocks):
        j = 8 * (blocks - 1 - block) if back else 8 * block
        v0, v1, v2, v3 = v[j], v[j + 1], v[j + 2], v[j + 3]
        v4, v5, v6, v7 = v[j + 4], v[j + 5], v[j + 6], v[j + 7]
        for i in range(m):
            low = v0 * matrix[j, i] + v1 * matrix[j + 1, i]
            low += v2 * matrix[j + 2, i] + v3 * matrix[j + 3, i]
            high = v4 * matrix[j + 4, i] + v5 * matrix[j + 5, i]
            high += v6 * matrix[j + 6, i] + v7 * matrix[j + 7, i]
            out[i] += low + high
    for j in range(n - n % 8, n):
        for i in range(m):
            out[i] += v[j] * matrix[j, i]


@inlined
def add_matrix_vector(matrix: Array, v: Array, back: bool, out: Array) -> None:
    """Add matrix (n, m) · v (m,) to out (n,), eight rows at once.

    With `back`, from the matrix's end to its beginning, which changes no bit.
    """
    n, m = matrix.shape
    blocks = n // 8
    for block in range(blocks):
        i = 8 * (blocks - 1 - block) if back else 8 * block
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = out.dtype.type(0)
        for j in range(m):
            x = v[j]
            s0 += matrix[i, j] * x
            s1 += matrix[i + 1, j] * x
            s2 += matrix[i + 2, j] * x
            s3 += matrix[i + 3, j] * x
            s4 += matrix[i + 4, j] * x
            s5 += matrix[i + 5, j] * x
            s6 += matrix[i + 6, j] * x
            s7 += matrix[i + 7, j] * x
        out[i] += s0
        out[i + 1] += s1
        out[i + 2] += s2
        out[i + 3] += s3
        out[i + 4] += s4
        out[i + 5] += s5
        out[i + 6] += s6
        out[i + 7] += s7
    for i in range(n - n % 8, n):
        s = out.dtype.type(0)
        for j in range(m):
            s += matrix[i, j] * v[j]
        out[i] += s


@inlined
def piece_rows(n: int, k: int, m: int) -> int:
    """Rows of each piece in which to multiply n rows with a (k, m) matrix."""
    rows = PIECE // (k * m) // 16 * 16
    return rows if rows >= PIECE_ROWS else n


@compiled
def add_rows_product(rows: Array, matrix: Array, out: Array) -> None:
    """Add rows (n, k) · matrix (k, m) to out (n, m)."""
    n, m = out.shape
    piece = piece_rows(n, rows.shape[1], m)
    for start in range(0, n, piece):
        stop = min(n, start + piece)
        add_product(rows[start:stop], matrix, out[start:stop])


@compiled
def add_outer_product(left: Array, right: Array, out: Array) -> None:
    """Add left (n, k)ᵀ · right (n, m) to out (k, m)."""
    n = left.shape[0]
    piece = piece_rows(n, out.shape[0], out.shape[1])
    for start in range(0, n, piece):
        stop = min(n, start + piece)
        add_product(left[start:stop].T, right[start:stop], out)


@compiled
def turn(matrix: Array, out: Array) -> None:
    """Fill out (m, n) with matrix (n, m) transposed."""
    n, m = matrix.shape
    for j in range(m):
        for i in range(n):
            out[j, i] = matrix[i, j]


@inlined
def add_rows_times_transpose(
    rows: Array, matrix: Array, back: bool, turned: Array, out: Array
) -> None:
    """Add rows (B, m) · matrix (n, m)ᵀ to out (B, n).

    From BLAS_ROWS rows on the product uses `turned` (m, n), the transposed matrix; (0, n): not
    made. Below, neither the number of rows nor `back` changes a bit of any row.
    """
    if rows.shape[0] >= BLAS_ROWS:
        if turned.shape[0] > 0:
            add_product(rows, turned, out)
        else:
            add_product(rows, matrix.T, out)
    else:
        for b in range(rows.shape[0]):
            add_matrix_vector(matrix, rows[b], back, out[b])


@inlined
def add_rows_times(rows: Array, matrix: Array, back: bool, out: Array) -> None:
    """Add rows (B, n) · matrix (n, m) to out (B, m)."""
    if rows.shape[0] >= BLAS_ROWS:
        add_product(rows, matrix, out)
    else:
        for b in range(rows.shape[0]):
            add_vector_matrix(rows[b], matrix, back, out[b])


@inlined
def add_flat(source: Array, out: Array) -> None:
    """Add source to out, both 1-D."""
    for i in range(out.size):
        out[i] += source[i]


@compiled
def add_column_sums(rows: Array, out: Array) -> None:
    """Add the sum of rows (n, m) to out (m,)."""
    for r in range(rows.shape[0]):
        row = rows[r]
        for i in range(out.size):
            out[i] += row[i]
