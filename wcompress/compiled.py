"""Compiled kernels, and the cache of their machine code.

numba's own cache refuses to import a module when it can write nowhere, and loads whatever its files hold, damaged or
not. This one is a convenience and nothing more: a file that is missing, damaged or of another environment is ignored,
a folder that cannot be written is passed over, and at worst every process compiles what it needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
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

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_MAGIC = b"WCK1"
_DIGEST_BYTES = 32
_ENVIRONMENT = (numba.__version__, llvmlite.__version__, sys.version, np.__version__)
_SUFFIX = ".kernel"
_rebuild: Callable[..., Any] = CompileResult._rebuild
_dumps: Callable[[Any], bytes] = serialize.dumps
_njit: Any = numba.njit


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
            data = _load(self._file_name(sig, target_context.codegen()))
            return None if data is None else _rebuild(target_context, *pickle.loads(data))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function where that is possible."""
        if data.library.has_dynamic_globals or data.lifted:
            return
        with contextlib.suppress(Exception):
            name = self._file_name(sig, data.codegen)
            _save(name, _dumps(data._reduce()))

    def _file_name(self, sig: Any, codegen: Any) -> str:
        function = self._dispatcher.py_func
        self._stamp = self._stamp or _stamp(self._dispatcher)
        key = hashlib.sha256(repr((_ENVIRONMENT, codegen.magic_tuple(), sig)).encode()).hexdigest()[:24]
        place = re.sub(r"\W", "_", f"{function.__module__}.{function.__qualname__}")
        return f"{place}-{key}-{self._stamp}{_SUFFIX}"


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


@dataclass(frozen=True)
class _Folder:
    """A place for cache files.

    Attributes:
        path: it need not exist.
        private: what is in it is only loaded when the folder is this user's, and nobody else may write to it.
    """

    path: Path
    private: bool

    def make(self) -> None:
        """Create it where it is missing.

        Raises:
            OSError: that is not possible.
        """
        if self.private:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
        else:
            self.path.mkdir(parents=True, exist_ok=True)

    def is_trusted(self) -> bool:
        """Whether only those can have written to it whom the user trusts anyway.

        Raises:
            OSError: it is not there.
        """
        if not self.private or not hasattr(os, "geteuid"):
            return True
        status = self.path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _folders() -> Iterator[_Folder]:
    """Where cache files may lie, first choice first."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield _Folder(Path(chosen) / "wcompress", private=False)
    yield _Folder(Path(__file__).parent / "__pycache__", private=False)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    if user_cache.is_absolute():
        yield _Folder(user_cache / "wcompress" / "kernels", private=True)
    owner = os.geteuid() if hasattr(os, "geteuid") else "user"
    yield _Folder(Path(tempfile.gettempdir()) / f"wcompress-kernels-{owner}", private=True)


def _usable_folders() -> Iterator[_Folder]:
    # Without a home, or without a folder for temporary files, the list ends early.
    with contextlib.suppress(OSError, RuntimeError):
        yield from _folders()


def _load(name: str) -> bytes | None:
    """What `_save` kept under a name; None where no folder holds it whole."""
    for folder in _usable_folders():
        with contextlib.suppress(OSError):
            if not folder.is_trusted():
                continue
            content = (folder.path / name).read_bytes()
            head = len(_MAGIC) + _DIGEST_BYTES
            if content[:head] == _MAGIC + hashlib.sha256(content[head:]).digest():
                return content[head:]
    return None


def _save(name: str, data: bytes) -> None:
    """Keep bytes under a name in the first folder that takes them, whole or not at all."""
    content = _MAGIC + hashlib.sha256(data).digest() + data
    for folder in _usable_folders():
        temporary = folder.path / f".{secrets.token_hex(8)}{_SUFFIX}.part"
        try:
            folder.make()
            if not folder.is_trusted():
                continue
            temporary.write_bytes(content)
            temporary.replace(folder.path / name)
            _forget_older(folder.path, name)
        except OSError:
            continue
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return


def _forget_older(folder: Path, name: str) -> None:
    # The same function for the same arguments in the same environment, from other source code.
    same = name.rpartition("-")[0]
    for path in folder.glob(f"{same}-*{_SUFFIX}"):
        if path.name != name:
            path.unlink(missing_ok=True)
