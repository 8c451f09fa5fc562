"""Compiled kernels, and the cache of their machine code.

numba's own cache refuses to import a module when it can write nowhere, and loads whatever its files hold, damaged or
not. This one is a convenience and nothing more: a file that is missing, damaged or of another environment is ignored,
a folder that cannot be written is passed over, and at worst every process compiles what it needs (`kernel_files`).
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, TypeVar, cast

import llvmlite
import numba
import numpy as np
from numba.core import serialize
from numba.core.caching import NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.dispatcher import Dispatcher

from wcompress import ahead, kernel_files

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_ENVIRONMENT = (numba.__version__, llvmlite.__version__, sys.version, np.__version__)
_rebuild: Callable[..., Any] = CompileResult._rebuild
_dumps: Callable[[Any], bytes] = serialize.dumps
_njit: Any = numba.njit
_typeof: Any = numba.typeof


def compiled(*, fastmath: bool = False, makes_arrays: bool = False) -> Callable[[Kernel], Kernel]:
    """Compile a function with numba when it is first called, or load what an earlier process compiled.

    Other threads run beside it.

    Args:
        fastmath: floating-point operations may be reordered.
        makes_arrays: it may make some. Where it does not, numba need not count who uses an array, which takes time, of
            the compiler too.
    """

    def decorate(function: Kernel) -> Kernel:
        kernel: Any = _njit(nogil=True, fastmath=fastmath, _nrt=makes_arrays, no_cfunc_wrapper=True)(function)
        if hasattr(kernel, "_cache"):  # numba may be told not to compile anything
            kernel._cache = _Cache(kernel)
        result: Kernel = kernel
        return result

    return decorate


def part(function: Kernel) -> Kernel:
    """Part of compiled functions: it is compiled with each that calls it. It makes no arrays; Python cannot call it."""
    return _part(function)


def inlined(function: Kernel) -> Kernel:
    """As `part`, and its machine code is repeated wherever it is called."""
    return _part(function, forceinline=True)


def _part(function: Kernel, **options: bool) -> Kernel:
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    kernel: Kernel = _njit(nogil=True, pipeline_class=_PartCompiler, **options)(function)
    return kernel


def compile_for(kernel: Any, *examples: Any) -> None:
    """Compile a kernel for arguments like these, or load what was compiled, without calling it."""
    kernel.compile(tuple(_typeof(example) for example in examples))


class _PartCompiler(Compiler):
    """Leaves it to what calls a function to optimise it, which it would do anyway."""

    def compile_extra(self, function: Any) -> Any:
        """What numba calls."""
        library, compile_extra = cast(Any, _PartLibrary), cast(Any, super().compile_extra)
        self.state.library = library(self.state.targetctx.codegen(), function.__qualname__)
        return compile_extra(function)


class _PartLibrary(JITCodeLibrary):
    def _optimize_final_module(self) -> None:
        pass


class _Cache(NullCache):
    """What numba asks for machine code of one function.

    Args:
        dispatcher: the function.
    """

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._stamp = ""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for a signature, None where no file holds it."""
        target_context.refresh()
        with contextlib.suppress(Exception):  # whatever a file of another environment causes: it is compiled anew
            name = self._file_name(sig, target_context.codegen())
            data = kernel_files.load(name)
            if data is None and ahead.missed(name):
                data = kernel_files.load(name)
            return None if data is None else _rebuild(target_context, *pickle.loads(data))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function where that is possible."""
        if data.library.has_dynamic_globals or data.lifted:
            return
        with contextlib.suppress(Exception):
            name = self._file_name(sig, data.codegen)
            kernel_files.save(name, _dumps(data._reduce()))

    def _file_name(self, sig: Any, codegen: Any) -> str:
        function = self._dispatcher.py_func
        self._stamp = self._stamp or _stamp(self._dispatcher)
        key = hashlib.sha256(repr((_ENVIRONMENT, codegen.magic_tuple(), sig)).encode()).hexdigest()[:24]
        place = re.sub(r"\W", "_", f"{function.__module__}.{function.__qualname__}")
        return f"{place}-{key}-{self._stamp}{kernel_files.SUFFIX}"


def _stamp(dispatcher: Any) -> str:
    """A hash of all that a function's machine code is made from, what it calls and its constants included."""
    sha = hashlib.sha256()
    seen: set[int] = set()

    def add_code(code: CodeType) -> None:
        sha.update(code.co_code)
        sha.update(repr((code.co_names, code.co_varnames, code.co_argcount)).encode())
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                add_code(constant)
            else:
                sha.update(repr(constant).encode())

    def add(value: Any, names: tuple[str, ...]) -> None:
        if isinstance(value, Dispatcher):
            add_function(value)
        elif isinstance(value, ModuleType) and value.__name__.partition(".")[0] == __package__:
            for name in names:
                add(getattr(value, name, None), ())
        elif isinstance(value, np.ndarray):
            sha.update(repr((value.dtype, value.shape)).encode() + value.tobytes())
        elif isinstance(value, (bool, int, float, complex, str, bytes, tuple, np.generic)):
            sha.update(repr(value).encode())

    def add_function(found: Any) -> None:
        if id(found) in seen:
            return
        seen.add(id(found))
        function = found.py_func
        sha.update(repr(sorted(found.targetoptions.items())).encode())
        add_code(function.__code__)
        for name in function.__code__.co_names:
            add(function.__globals__.get(name), function.__code__.co_names)
        for cell in function.__closure__ or ():
            add(cell.cell_contents, ())

    add_function(dispatcher)
    return sha.hexdigest()[:24]
