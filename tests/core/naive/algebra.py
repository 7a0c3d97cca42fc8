"""Vectors and matrices as lists."""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[Vector]


def zeros(n: int) -> Vector:
    return [0.0 for _ in range(n)]


def add(a: Vector, b: Vector) -> Vector:
    return [a[i] + b[i] for i in range(len(a))]


def matrix_vector(matrix: Matrix, v: Vector) -> Vector:
    """Σ_j matrix_ij v_j."""
    out = []
    for i in range(len(matrix)):
        total = 0.0
        for j in range(len(v)):
            total += matrix[i][j] * v[j]
        out.append(total)
    return out


def vector_matrix(v: Vector, matrix: Matrix) -> Vector:
    """Σ_i v_i matrix_ij."""
    out = []
    for j in range(len(matrix[0])):
        total = 0.0
        for i in range(len(v)):
            total += v[i] * matrix[i][j]
        out.append(total)
    return out


def affine(matrix: Matrix, v: Vector, bias: Vector) -> Vector:
    """bias_i + Σ_j matrix_ij v_j."""
    return add(bias, matrix_vector(matrix, v))


def column_sums(rows: Matrix) -> Vector:
    out = zeros(len(rows[0]))
    for row in rows:
        for j in range(len(out)):
            out[j] += row[j]
    return out


def tanh(a: float) -> float:
    return math.tanh(a)


def sigmoid(a: float) -> float:
    """1 / (1 + exp(-a))."""
    if a >= 0:
        return 1 / (1 + math.exp(-a))
    e = math.exp(a)
    return e / (1 + e)
