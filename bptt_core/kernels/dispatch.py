"""Selects the kernels of a model's cell and optimizer when their callers are compiled.

Every kernel that reaches a cell or an optimizer takes a *tag*. Its class is the choice: Numba
compiles the caller once for each class, with the calls of that cell and that optimizer in it, so a
program that uses an RNN never compiles an LSTM. Kernels that differ in a number only, such as tanh
and ReLU, share one class and read the number from the tag.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin
from numpy.typing import NDArray

from bptt_core.cells import CELLS
from bptt_core.kernels.jit import compiled
from bptt_core.optimizers import OPTIMIZERS
from bptt_core.specs import ModelSpec

Array = NDArray[Any]
Tag = Any
"""An instance of a class that `tag` made: `cell` and `rule` are the numbers that kernels read."""


class CellKernels(NamedTuple):
    """A cell's compiled passes: plain functions, which Numba compiles into their callers."""

    forward: Callable[..., None]
    """Takes the arguments of `cell_forward`."""
    backward: Callable[..., None]
    """Takes the arguments of `cell_backward`."""
    number: int = 0
    """Tells cells that share both functions apart: `tag.cell`."""


class OptimizerKernel(NamedTuple):
    """An optimizer's compiled rule: a plain function, which Numba compiles into its caller."""

    step: Callable[..., None]
    """Takes the arguments of `rule_step`."""
    number: int = 0
    """Tells rules that share the function apart: `tag.rule`."""


class Chosen(NamedTuple):
    """The kernels that a tag's class stands for."""

    cell: CellKernels
    optimizer: OptimizerKernel


_CHOSEN: dict[type, Chosen] = {}


def tag(spec: ModelSpec) -> Tag:
    """The tag of a spec's cell and optimizer.

    Raises:
        ValueError: other kernels of the same name and source have this tag's class, such as those
            that a function returns. Compiled code could not tell them apart.
    """
    chosen = Chosen(CELLS[spec.cell].kernels(), OPTIMIZERS[spec.optimizer].kernel())
    functions = (chosen.cell.forward, chosen.cell.backward, chosen.optimizer.step)
    kind = getattr(sys.modules[__name__], "_".join(["Tag", *map(_identity, functions)]))
    known = _CHOSEN.setdefault(kind, chosen)
    if (known.cell.forward, known.cell.backward, known.optimizer.step) != functions:
        raise ValueError(
            f"the kernels of cell {spec.cell!r} and optimizer {spec.optimizer!r} have the names "
            "and source of other kernels; define each kernel as a function of its own in a module"
        )
    return kind(chosen.cell.number, chosen.optimizer.number)


@functools.cache
def _identity(function: Callable[..., None]) -> str:
    """A function's module, and a digest of its source file.

    Compiled code on the disk is found by the tag's class. A file outside of `bptt_core` is no part
    of the cache folder's digest (`jit.cache_folder`), so its digest is part of the class's name.
    """
    lines, _ = inspect.findsource(function)
    source = function.__qualname__ + "".join(lines)
    module = function.__module__.rpartition(".")[2]
    return f"{module}_{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def __getattr__(name: str) -> Any:
    """Make a tag's class on first use.

    Numba's index of compiled code names the classes of all cells that were ever compiled, also of
    those that this process does not know.
    """
    if not name.startswith("Tag_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = namedtuple(name, ["cell", "rule"], module=__name__)
    return made


def cell_forward(
    tag: Tag, W: Array, b_hidden: Array, states: Array, tape: Array, extra: Array, turned: Array
) -> None:
    """Unfold a cell over a window.

    Args:
        tag: selects the cell.
        W: (G·H, H).
        b_hidden: (G·H,).
        states: (parts, T + 1, B, H); row 0 is given, the others are filled.
        tape: (T, B, G·H) U x_t + b on entry (with b_hidden, unless the cell keeps it apart); what
            the backward pass needs on return, usually the gates.
        extra: (T + 3, B, H): T rows to keep for the backward pass, and 3H numbers of scratch for
            each stream.
        turned: (H, G·H) W transposed, or (0, G·H) where nothing gains from it.
    """
    _CHOSEN[type(tag)].cell.forward(tag, W, b_hidden, states, tape, extra, turned)


def cell_backward(
    tag: Tag,
    W: Array,
    states: Array,
    tape: Array,
    extra: Array,
    dh: Array,
    da: Array,
    dw: Array,
) -> None:
    """Go back through a window.

    Args:
        tag: selects the cell.
        W: (G·H, H).
        states: (parts, T + 1, B, H) of the forward pass.
        tape: (T, B, G·H) of the forward pass.
        extra: (T + 3, B, H) of the forward pass; the last 3 rows may be overwritten.
        dh: (T, B, H) ∂L_t/∂h_t on entry, ∂L/∂h_t on return.
        da: (T, B, G·H) filled with the gradient at U x_t + b.
        dw: (T, B, G·H) filled with the gradient at W h_{t-1} + b'; the same array as `da`, unless
            the cell keeps b_hidden apart.
    """
    _CHOSEN[type(tag)].cell.backward(tag, W, states, tape, extra, dh, da, dw)


def rule_step(
    tag: Tag,
    parameters: Array,
    gradient: Array,
    factor: float,
    moments: Array,
    update: int,
    learning_rate: float,
) -> None:
    """Apply an optimizer's rule in place, after weight decay.

    Args:
        tag: selects the optimizer.
        parameters: (P,); overwritten.
        gradient: (P,), to be multiplied by `factor`.
        factor: the scale that the clip still has to apply.
        moments: (moments, P); overwritten.
        update: number of this update, from 1.
        learning_rate: > 0.
    """
    _CHOSEN[type(tag)].optimizer.step(
        tag, parameters, gradient, factor, moments, update, learning_rate
    )


# In compiled callers the chosen kernels take the place of the three functions above.


def _choose(function: Callable[..., None], choice: Callable[[Chosen], Callable[..., None]]) -> None:
    """Make a compiled call of `function` a call of the kernel that its tag's class stands for."""

    def chosen(tag: Any) -> Any:  # pragma: no cover - for Numba
        return types.Dispatcher(_part(choice(_CHOSEN[tag.instance_class])))

    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            return chosen(args[0]).get_call_type(self.context, args, kws)

    infer_global(function)(Template)

    @lower_builtin(function, types.VarArg(types.Any))
    def code(  # pragma: no cover - for Numba
        context: Any, builder: Any, signature: Any, arguments: Any
    ) -> Any:
        kernel = context.get_function(chosen(signature.args[0]), signature)
        context.add_linking_libs(kernel.libs)
        return kernel(builder, arguments)


@functools.cache
def _part(function: Callable[..., None]) -> Any:  # pragma: no cover - for Numba
    """A plain function, compiled."""
    return compiled(function)


_choose(cell_forward, lambda chosen: chosen.cell.forward)
_choose(cell_backward, lambda chosen: chosen.cell.backward)
_choose(rule_step, lambda chosen: chosen.optimizer.step)
