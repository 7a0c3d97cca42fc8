"""Compiles a kernel and all that it calls as one piece of machine code.

Numba turns each compiled function into machine code by itself, with copies of everything it calls,
and with a wrapper to call it from Python. Python calls few of the kernels: the entries. All others,
the parts, are only translated to LLVM's language. An entry links the parts that it reaches, each
once, optimises them with itself, and becomes machine code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.environment import lookup_environment
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering

from bptt_core.compilation import Event, tell
from bptt_core.kernels.cache import Folder, KernelCache

ENVIRONMENT = "_ZN08NumbaEnv"  # Numba's name of a function's pointer to its Python objects


class PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    """LLVM code of one kernel, without what it calls."""

    def finalize(self) -> None:
        """Leave linking and machine code to the entries that call this kernel."""
        self._raise_if_finalized()
        self._finalized = True


class EntryLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Machine code with private copies of everything it calls.

    All copies of a callee share one name, and the loader binds a call to the first copy that was
    loaded. A process that compiles would then get other last bits than one that loads everything
    from disk. Private copies have no such name. (Copies with internal linkage do: a call from
    elsewhere would reach them, with arguments that were optimised away.)
    """

    def finalize(self) -> None:
        """Link all parts, optimise, and make machine code."""
        self._linking_libraries: list[Any] = list(_reached(self._linking_libraries))
        super().finalize()
        for variable in self._final_module.global_variables:
            if variable.name.startswith(ENVIRONMENT):
                environment = lookup_environment(variable.name)
                if environment is not None:
                    self._codegen.set_env(variable.name, environment)

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "private"
        super()._optimize_final_module()


def _reached(libraries: Iterable[Any]) -> Iterator[Any]:  # pragma: no cover - for Numba
    """These libraries and those that parts among them call, each once, in the order of calls."""
    seen = set()
    waiting = list(libraries)[::-1]
    while waiting:
        library = waiting.pop()
        if library not in seen:
            seen.add(library)
            yield library
            if isinstance(library, PartLibrary):
                waiting.extend(library._linking_libraries[::-1])


@register_pass(mutates_CFG=True, analysis_only=False)
class PartLowering(NativeLowering):  # type: ignore[misc]
    """Translates a kernel to LLVM's language; it gets no address that Python could call."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:  # pragma: no cover - called by Numba
        """As Numba's pass of this name, which also makes machine code."""
        state.flags.no_compile = True
        super().run_pass(state)
        name = object()  # callers find the part by it
        state.targetctx.insert_user_function(name, state["cr"].fndesc, [state.library])
        state["cr"] = state["cr"]._replace(cfunc=name)
        return True


class PartCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler, for a part."""

    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        super().__init__(typing, target, PartLibrary(target.codegen(), "part"), *rest)

    def define_pipelines(self) -> list[Any]:  # pragma: no cover - called by Numba
        """Numba's passes, with the last one replaced."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (PartLowering if each is NativeLowering else each, text) for each, text in passes.passes
        ]
        passes.finalize()
        return [passes]


class EntryCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler, for an entry."""

    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        library = EntryLibrary(target.codegen(), "entry")
        library.enable_object_caching()
        super().__init__(typing, target, library, *rest)


class _Telling(_FunctionCompiler):  # type: ignore[misc]
    """Compiles an entry, and tells the listeners."""

    tell: Callable[..., None]

    def compile(self, args: Any, return_type: Any) -> Any:  # pragma: no cover - Numba calls it
        self.tell("begun")
        try:
            result = super().compile(args, return_type)
        except BaseException:
            self.tell("failed")
            raise
        self.tell("compiled")
        return result


class Entry(CPUDispatcher):  # type: ignore[misc]
    """A kernel that Python calls."""

    def __init__(
        self,
        function: Callable[..., Any],
        options: dict[str, Any],
        folder: Folder,
        number: int = 1,
        of: int = 1,
    ) -> None:
        super().__init__(function, targetoptions=options, pipeline_class=EntryCompiler)

        def say(what: Any, detail: str = "") -> None:
            tell(Event(what, function.__name__, number, of, detail))

        self._compiler = _Telling(function, self.targetdescr, options, {}, EntryCompiler)
        self._compiler.tell = say
        self._cache = KernelCache(function, folder, lambda why: say("not kept", why))


class Part(CPUDispatcher):  # type: ignore[misc]
    """A kernel that other kernels call."""

    def __init__(
        self, function: Callable[..., Any], options: dict[str, Any], folder: Folder
    ) -> None:
        without = options | {"no_cpython_wrapper": True}
        super().__init__(function, targetoptions=without, pipeline_class=PartCompiler)
        self._alone_options, self._folder = options | {"_nrt": True}, folder

    def add_overload(self, cres: Any) -> None:
        """Let other kernels find it."""
        self.overloads[tuple(cres.signature.args)] = cres

    @functools.cached_property
    def alone(self) -> Entry:
        """The same function as an entry, for calls from Python."""
        return Entry(self.py_func, self._alone_options, self._folder)

    def __call__(self, *arguments: Any) -> Any:
        """Call it from Python, compiled as an entry of its own: tests do."""
        return self.alone(*arguments)
