"""How far a gradient reaches back: a unit vector pushed through the recurrent Jacobians.

With s_t the whole carried state after step t (all layers; h, and c of an LSTM), the gradient v of a
loss at the last step T becomes, k steps earlier,

    (∂s_T/∂s_{T-k})ᵀ v  =  (∂s_{T-k+1}/∂s_{T-k})ᵀ ⋯ (∂s_T/∂s_{T-1})ᵀ v

The unit vector v is a gradient at the top layer's h_T, which the head reads. Its norm k steps back,
the *ratio at lag k*, is the share of the gradient from which a dependency over k steps is learned:
nothing is learned where the ratio vanishes; where it explodes it drowns all other gradients.

Sources: Bengio, Simard and Frasconi (1994), "Learning long-term dependencies with gradient descent
    is difficult"; Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent
    neural networks", section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import network, params
from bptt_core.cells import CELLS
from bptt_core.errors import InvalidArgument, NonFiniteError, ShapeError
from bptt_core.layout import check_floats, check_layout
from bptt_core.specs import ModelSpec, SEED_MAX

Array = NDArray[Any]

HORIZON_SHARE = 0.01  # of the norm; a dependency with less is not learned

EXACT_SIZE_MAX = 128  # of a matrix, for all its eigenvalues: 10 ms; 256 take 50, 512 a second
KRYLOV_SIZE = 64  # Arnoldi steps above that: within 2 % on random matrices, 0.3 s at 2,048


@dataclass(frozen=True, slots=True, eq=False)
class GradientFlow:
    """The curve of one window, and figures computed from it."""

    ratios: Array
    """(T + 1,) float64: the norm at every lag 0 … T relative to lag 0; 0 or infinite where it is
    out of a double's range."""
    direction: Array
    """(H,) float64: the unit vector v at the top layer's h_T."""
    spectral_radius: float
    """Largest absolute eigenvalue of W, or of a gated cell's candidate block; the maximum over
    layers. `spectral_radii` gives every block."""

    @property
    def steps(self) -> int:
        """T: the largest lag."""
        return len(self.ratios) - 1

    @property
    def by_lag(self) -> dict[int, float]:
        """The ratio at lags 1, 2, 4, … and T."""
        lags = [1 << power for power in range(self.steps.bit_length())]
        return {lag: float(self.ratios[lag]) for lag in sorted({*lags, self.steps})}

    @property
    def memory_horizon(self) -> int:
        """Largest lag with more than 1 % of the norm; T means T or more."""
        return int(np.flatnonzero(self.ratios > HORIZON_SHARE)[-1])


def gradient_flow(
    spec: ModelSpec,
    parameters: Mapping[str, Array],
    inputs: Array,
    state: Array | None = None,
    seed: int = 0,
) -> GradientFlow:
    """Push a unit vector back through a window of a network.

    Computed in float64 for any dtype of the network, so that small ratios do not underflow.

    Args:
        spec: the network.
        parameters: under PyTorch's names, as `Learner.parameters` gives them.
        inputs: (T, F) features as the network reads them, T >= 1; token ids (T, 1).
            `Learner.window` gives a stream's.
        state: (L, parts, H) before the first step; None is zero.
        seed: seed of the vector's direction.

    Raises:
        InvalidArgument: an argument does not match the spec; the subclass says how.
        NonFiniteError: an input or parameter is not finite, or the states grew until they were not.

    >>> import numpy as np
    >>> from bptt_core import gradient_flow, Learner, ModelSpec
    >>> learner = Learner(ModelSpec(input_size=1, hidden_size=8), backend="reference")
    >>> result = learner.feed(np.sin(np.arange(60) / 5).reshape(60, 1, 1))
    >>> features, state = learner.window("0")
    >>> flow = gradient_flow(learner.spec, learner.parameters(), features, state)
    >>> list(flow.by_lag), flow.memory_horizon, round(flow.spectral_radius, 2)
    ([1, 2, 4, 8, 16, 32], 4, 0.63)
    """
    spec = dataclasses.replace(spec, dtype="float64")
    named = _loaded(spec, parameters)
    x = _checked("inputs", inputs, (None, spec.features))
    if spec.vocabulary_size and not np.isin(x, np.arange(spec.vocabulary_size)).all():
        bound = f"token ids, whole numbers from 0 to {spec.vocabulary_size - 1}"
        raise InvalidArgument("inputs", "something else", bound)
    shape = (spec.layers, spec.state_parts, spec.hidden_size)
    start = np.zeros(shape) if state is None else _checked("state", state, shape)
    if not 0 <= seed <= SEED_MAX:
        raise InvalidArgument("seed", seed, f"a whole number from 0 to {SEED_MAX}")
    with np.errstate(all="ignore"):  # non-finite states are detected below
        tape = network.forward(spec, named, x[:, np.newaxis], start[:, :, np.newaxis])
    if not all(np.isfinite(part).all() for layer in tape.layers for part in layer.states):
        raise NonFiniteError("state", "not finite within the window", "finite after every step")
    direction = np.random.Generator(np.random.PCG64(seed)).normal(size=spec.hidden_size)
    direction /= np.linalg.norm(direction)
    ratios = _push_back(spec, named, tape, direction)
    candidate = CELLS[spec.cell].candidate
    radius = max(
        spectral_radius(_block(spec, named, index, candidate)) for index in range(spec.layers)
    )
    return GradientFlow(_frozen(ratios), _frozen(direction), radius)


def _push_back(
    spec: ModelSpec, named: params.Views, tape: network.NetworkTape, direction: Array
) -> Array:
    """Ratios (T + 1,) of a vector pushed back from the top layer's h_T.

    The vector is normalised after every step, and the logarithms of its lengths are added up, so
    that no product of Jacobians overflows or underflows.
    """
    cell = CELLS[spec.cell]
    weights = [params.layer(named, index) for index in range(spec.layers)]
    later = np.zeros((spec.layers, spec.state_parts, 1, spec.hidden_size))
    later[-1, 0, 0] = direction
    T = len(tape.output)
    log_norms = np.zeros(T + 1)
    for lag in range(1, T + 1):
        from_above: Array | float = 0.0
        for index in reversed(range(spec.layers)):
            dL_dstate = (later[index, 0] + from_above, *later[index, 1:])
            dL_da, _, before = cell.step_back(
                weights[index], tape.layers[index], T - lag, dL_dstate
            )
            later[index] = before
            from_above = dL_da @ weights[index].U
        norm = float(np.linalg.norm(later))
        if norm == 0:  # every ReLU on the way is inactive
            log_norms[lag:] = -np.inf
            break
        log_norms[lag] = log_norms[lag - 1] + np.log(norm)
        later /= norm
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(log_norms)


def spectral_radii(
    spec: ModelSpec, parameters: Mapping[str, Array]
) -> tuple[dict[str, float], ...]:
    """Spectral radius of each block of W, for every layer: `h`, or the letters of the gates.

    Raises:
        InvalidArgument: the parameters do not match the spec.
    """
    named, gates = _loaded(spec, parameters), CELLS[spec.cell].gates
    return tuple(
        {block: spectral_radius(_block(spec, named, index, block)) for block in gates}
        for index in range(spec.layers)
    )


def _loaded(spec: ModelSpec, parameters: Mapping[str, Array]) -> params.Views:
    """Views of a checked float64 copy."""
    vector: Array = np.empty(params.count(spec), np.float64)
    params.load(spec, vector, parameters)
    return params.views(spec, vector)


def _block(spec: ModelSpec, named: params.Views, index: int, block: str) -> Array:
    H, place = spec.hidden_size, CELLS[spec.cell].gates.index(block)
    return params.layer(named, index).W[place * H : (place + 1) * H]


def spectral_radius(matrix: Array) -> float:
    """Largest absolute eigenvalue of a square matrix (H, H).

    Exact up to EXACT_SIZE_MAX. Above it, an estimate in a Krylov space of KRYLOV_SIZE dimensions,
    usually slightly too small: all eigenvalues cost H³, which is minutes at 4,096.

    Raises:
        ShapeError: it is not square.
        NonFiniteError: it is not finite.

    Source:
        Arnoldi (1951); Saad (2011), "Numerical methods for large eigenvalue problems", chapter 6.
    """
    matrix = _checked("matrix", matrix, (None, None))
    H = len(matrix)
    if matrix.shape != (H, H):
        raise ShapeError("matrix", f"of shape {matrix.shape}", f"of shape {(H, H)}")
    if H > EXACT_SIZE_MAX:
        matrix = _hessenberg(matrix)
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def _hessenberg(matrix: Array) -> Array:
    """The matrix in an orthonormal basis of a Krylov space, (m, m), m <= KRYLOV_SIZE."""
    basis = np.zeros((KRYLOV_SIZE + 1, len(matrix)))
    start = np.random.Generator(np.random.PCG64(0)).normal(size=len(matrix))
    basis[0] = start / np.linalg.norm(start)
    small = np.zeros((KRYLOV_SIZE + 1, KRYLOV_SIZE))
    for column in range(KRYLOV_SIZE):
        image = matrix @ basis[column]
        size = np.linalg.norm(image)
        for _ in range(2):  # once leaves rounding errors that grow
            shares = basis[: column + 1] @ image
            image -= shares @ basis[: column + 1]
            small[: column + 1, column] += shares
        rest = np.linalg.norm(image)
        if rest <= 1e-12 * size:  # the space is closed: its eigenvalues are the matrix's own
            return small[: column + 1, : column + 1]
        small[column + 1, column] = rest
        basis[column + 1] = image / rest
    return small[:KRYLOV_SIZE]


def _checked(field: str, value: Array, shape: tuple[int | None, ...]) -> Array:
    """A float64 copy of an array; None in `shape` is any length from 1."""
    array = np.asarray(value)
    check_floats(field, array)
    fits = array.ndim == len(shape) and all(
        have >= 1 if want is None else have == want
        for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("1 or more" if size is None else str(size) for size in shape)
        raise ShapeError(field, f"of shape {array.shape}", f"of shape ({sizes})")
    check_layout(field, array)
    if not np.isfinite(array).all():
        raise NonFiniteError(field, "not finite", "finite numbers")
    return array.astype(np.float64)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
