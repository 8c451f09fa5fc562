"""The fixed list of functions and classes that a pickle may use, each replaced by code of our own.

A name on the list gets its arguments checked and a value built from them; a name off the list becomes an inert record.
Names that only an attack has a use for are refused.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch

from wcompress.checkpoint.cursor import PickleDamage
from wcompress.checkpoint.inert import Array, Dtype, Global, Inert, Known
from wcompress.checkpoint.machine import called_name
from wcompress.checkpoint.messages import shown, unsafe
from wcompress.checkpoint.rebuild_python import PYTHON_FUNCTIONS, as_bytes, fill_array, set_dtype
from wcompress.checkpoint.rebuild_torch import TORCH_FUNCTIONS, as_storage, is_old_state, set_old_state, tensor_class
from wcompress.checkpoint.storages import STORAGE_DTYPES, Storage, StorageClass

_STATE_METADATA = "_metadata"

# What nothing but an attack calls while weights are loaded. Whatever is missing here is not run either.
_ATTACK_MODULES = frozenset(
    (
        *("os", "posix", "nt", "sys", "subprocess", "_posixsubprocess", "pty", "shutil", "socket", "_socket", "winreg"),
        *("runpy", "importlib", "_frozen_importlib", "pip", "ctypes", "_ctypes", "pdb", "bdb", "webbrowser"),
    )
)
_ATTACK_NAMES = frozenset(
    f"{module}.{name}"
    for module, names in {
        "builtins": (
            *("eval", "exec", "execfile", "compile", "open", "__import__", "breakpoint", "input", "exit", "quit"),
            *("globals", "locals", "setattr", "delattr"),
        ),
        "io": ("open", "open_code", "FileIO"),
        "_io": ("open", "open_code", "FileIO"),
        "codecs": ("open",),
        "platform": ("popen",),
        "commands": ("getoutput", "getstatusoutput"),
        "code": ("interact", "InteractiveInterpreter", "InteractiveConsole"),
        "timeit": ("timeit", "repeat", "main"),
        "cProfile": ("run", "runctx"),
        "profile": ("run", "runctx"),
        "asyncio": ("create_subprocess_shell", "create_subprocess_exec"),
        "urllib.request": ("urlopen", "urlretrieve"),
        "pickle": ("load", "loads"),
        "_pickle": ("load", "loads"),
        "marshal": ("load", "loads"),
        "joblib": ("load",),
        "numpy": ("load",),
        "torch": ("load",),
        "torch.serialization": ("load",),
        "torch.jit": ("load",),
        "torch.hub": ("load", "load_state_dict_from_url", "download_url_to_file"),
    }.items()
    for name in names
)
_HARMLESS = frozenset(("os._Environ", "os.stat_result", "posix.stat_result", "os.uname_result", "posix.uname_result"))

# Python 2 and old libraries → today's names.
_RENAMED_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    "torch.tensor": "torch._tensor",
}

_TENSOR_CLASS = re.compile(r"^torch(\.cuda)?\.(Tensor|(\w+)Tensor)$")


class Rebuilder:
    """Makes values of what a pickle of torch, NumPy or Python calls.

    Args:
        where: The file, for messages.
        outside: Makes a value of a persistent identifier.
        storage_from_bytes: Reads a storage that was pickled whole, as `pickle.dump` of a tensor does.
    """

    def __init__(
        self,
        where: str,
        outside: Callable[[object], object],
        storage_from_bytes: Callable[[bytes], object],
    ) -> None:
        self._where = where
        self._outside = outside
        self._known: dict[str, object] = {
            **_CONSTANTS,
            "torch.storage._load_from_bytes": Known(
                "torch.storage._load_from_bytes", lambda data: as_storage(storage_from_bytes(as_bytes(data)))
            ),
        }

    def find(self, module: str, name: str) -> object:
        """What a global name stands for: a constant, one of our functions, or an inert record of the name."""
        full = f"{_RENAMED_MODULES.get(module, module)}.{name}"
        if full not in _HARMLESS and (full in _ATTACK_NAMES or full.partition(".")[0] in _ATTACK_MODULES):
            wanted = shown(f"{module}.{name}")[:200]
            advice = "it looks like an attack; if you trust it, load it elsewhere and save only model.state_dict()"
            raise unsafe(self._where, f"calls {wanted} when it is loaded, which was not run; {advice}")
        if full in self._known:
            return self._known[full]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGE_DTYPES:
            return StorageClass(STORAGE_DTYPES[name])
        if module == "torch" and isinstance(dtype := vars(torch).get(name), (torch.dtype, torch.qscheme)):
            return dtype
        if _TENSOR_CLASS.match(full):
            return Known(full, tensor_class(name))
        return Global(full)

    def call(self, function: object, args: object) -> object:
        """What a call stands for."""
        if not isinstance(args, tuple):
            raise PickleDamage(f"{called_name(function)} is called with a {type(args).__name__} for its arguments")
        if isinstance(function, Known):
            if function.name == "builtins.getattr":
                return self._attribute(args)
            return function.make(*args)
        if isinstance(function, StorageClass):
            return Storage(function.dtype, 0, torch.empty(0, dtype=torch.uint8))
        return Inert(called_name(function), args)

    def _attribute(self, args: tuple[object, ...]) -> object:
        """`getattr` as pickles use it, for classes within classes: the name joined on, nothing looked up."""
        if len(args) == 2 and isinstance(args[0], Global) and isinstance(args[1], str):
            module, _, name = f"{args[0].name}.{args[1]}".rpartition(".")
            return self.find(module, name)
        return Inert("builtins.getattr", args)

    def build(self, target: object, state: object) -> None:
        """Give one of our own values its state."""
        if isinstance(target, OrderedDict):
            if isinstance(state, Mapping) and _STATE_METADATA in state:
                target._metadata = state[_STATE_METADATA]  # type: ignore[attr-defined]
        elif isinstance(target, Array):
            fill_array(target, state)
        elif isinstance(target, Dtype):
            set_dtype(target, state)
        elif isinstance(target, torch.Tensor) and is_old_state(state):
            set_old_state(target, state)

    def persistent(self, identifier: object) -> object:
        """What lies outside the pickle."""
        return self._outside(identifier)


_CONSTANTS: dict[str, object] = {
    name: Known(name, function) for name, function in (TORCH_FUNCTIONS | PYTHON_FUNCTIONS).items()
}
