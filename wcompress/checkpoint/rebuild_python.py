"""What functions and classes of NumPy and Python make when a pickle calls them, done by our own code."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from wcompress.checkpoint.cursor import PickleDamage
from wcompress.checkpoint.inert import Array, Dtype, Inert, Known
from wcompress.checkpoint.machine import called_name, safe_key
from wcompress.checkpoint.storages import as_numbers

_ARRAY_CODE = re.compile(r"^(\?|[bhilqBHILQefdgFDG]|[biufc]\d{1,2})$")
_DTYPE_CLASSES = {
    f"ml_dtypes.{name}": getattr(torch, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
}
# The one function of NumPy that every dtype and every version pickles arrays by, and the classes it may make.
_PLAIN_ARRAYS = (
    "numpy.ndarray",
    "numpy.memmap",
    "numpy.matrix",
    "numpy.core.memmap.memmap",
    "numpy.matrixlib.defmatrix.matrix",
)


def as_bytes(value: object) -> bytes:
    """Returns bytes, also where Python 2 wrote a text, and refuses anything else."""
    if isinstance(value, str):
        return value.encode("latin-1")
    if not isinstance(value, (bytes, bytearray)):
        raise PickleDamage(f"bytes expected, a {type(value).__name__} found")
    return bytes(value)


def _new_array(kind: object, *_: object) -> object:
    name = called_name(kind)
    return Array() if name in _PLAIN_ARRAYS else Inert(name)


def _new_dtype(code: object = "O", *_: object) -> Dtype:
    if isinstance(code, bytes):
        code = code.decode("latin-1")
    return Dtype(code if isinstance(code, str) else called_name(code))


def set_dtype(dtype: Dtype, state: object) -> None:
    """Gives a dtype its byte order, as `numpy.dtype.__setstate__` would."""
    # (version, byte order, sub-dtype, names, fields, …)
    if isinstance(state, tuple) and len(state) >= 5:
        dtype.is_big_endian = state[1] in (">", b">")
        dtype.is_plain = state[2] is None and state[3] is None


def fill_array(array: Array, state: object) -> None:
    """Gives an array its content, as `numpy.ndarray.__setstate__` would."""
    # (version, shape, dtype, whether in column order, bytes)
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise PickleDamage("a NumPy array without its content")
    shape, dtype, columns, data = state[-4:]
    if isinstance(data, list):  # of objects
        return
    _set_values(array, as_bytes(data), dtype, shape, "F" if columns else "C")


def _array_from_buffer(data: object, dtype: object, shape: object, order: object, *axes: object) -> Array:
    array = Array()
    if axes and axes[0] is not None:
        raise PickleDamage("a NumPy array with its axes permuted")
    _set_values(array, as_bytes(data), dtype, shape, order)
    return array


def _set_values(array: Array, data: bytes, dtype: object, shape: object, order: object) -> None:
    if not isinstance(dtype, Dtype) or not isinstance(shape, (tuple, int)) or order not in ("C", "F"):
        raise PickleDamage("a NumPy array without a dtype and a shape")
    sizes = as_numbers((shape,) if isinstance(shape, int) else shape)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise PickleDamage("a NumPy array with an impossible shape")
    torch_dtype = _DTYPE_CLASSES.get(dtype.code)
    if not dtype.is_plain or (torch_dtype is None and not _ARRAY_CODE.match(dtype.code)):
        return  # texts, dates, structures: no numbers
    kind = np.dtype(np.uint8 if torch_dtype is not None else dtype.code)
    itemsize = kind.itemsize if torch_dtype is None else torch_dtype.itemsize
    if math.prod(sizes) * itemsize != len(data):
        raise PickleDamage(f"a NumPy array of shape {sizes} has {len(data)} bytes")
    if torch_dtype is not None:
        flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        values = flat.view(torch_dtype)
        array.tensor = (
            values.reshape(sizes) if order == "C" else values.reshape(sizes[::-1]).permute(*range(len(sizes))[::-1])
        )
        return
    kind = _ordered(kind, dtype)
    array.values = (np.frombuffer(data, kind) if data else np.empty(0, kind)).reshape(sizes, order=order)


def _ordered(kind: np.dtype[Any], dtype: Dtype) -> np.dtype[Any]:
    return kind.newbyteorder(">") if dtype.is_big_endian else kind


def _scalar(dtype: object, data: object = b"") -> object:
    if not isinstance(dtype, Dtype) or not dtype.is_plain or not _ARRAY_CODE.match(dtype.code):
        return Inert("numpy._core.multiarray.scalar")
    kind = _ordered(np.dtype(dtype.code), dtype)
    return np.frombuffer(as_bytes(data), kind, count=1)[0].item()


def _encode(text: object, encoding: object = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise PickleDamage("bytes in an unknown encoding")
    return text.encode(encoding)


def _new_bytes(*args: object) -> bytes:
    if len(args) == 2:
        return _encode(*args)
    data = args[0] if args else b""
    return as_bytes(data)


def _new_list(items: object = (), *_: object) -> list[object]:
    return list(items) if isinstance(items, (list, tuple)) else []


def _pairs(make: Callable[[], dict[object, object]]) -> Callable[..., object]:
    """A dictionary class: filled from a mapping or from pairs, if there are any."""

    def fill(*args: object) -> object:
        made = make()
        for given in args:
            if isinstance(given, Mapping):
                made.update(given)
            elif isinstance(given, (list, tuple)):
                for pair in given:
                    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                        raise PickleDamage("a dictionary that is not made of pairs")
                    made[safe_key(pair[0])] = pair[1]
        return made

    return fill


def _reconstruct(kind: object, _base: object = None, state: object = None, *_: object) -> Inert:
    """`copyreg._reconstructor`: an object of any class, with what its built-in base class holds."""
    made = Inert(called_name(kind))
    if isinstance(state, dict):
        made.entries.update(state)
    elif isinstance(state, list):
        made.items.extend(state)
    else:
        made.args = (state,)
    return made


def _new_object(kind: object, *args: object) -> object:
    return kind.make(*args) if isinstance(kind, Known) else Inert(called_name(kind), args)


PYTHON_FUNCTIONS: dict[str, Callable[..., object]] = {
    "numpy._core.multiarray._reconstruct": _new_array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _array_from_buffer,
    "numpy.dtype": _new_dtype,
    "_codecs.encode": _encode,
    "builtins.bytes": _new_bytes,
    "builtins.bytearray": _new_bytes,
    "builtins.list": _new_list,
    "builtins.set": _new_list,
    "builtins.frozenset": _new_list,
    "builtins.tuple": lambda items=(): tuple(_new_list(items)),
    "builtins.dict": _pairs(dict),
    "builtins.getattr": lambda *args: Inert("builtins.getattr", args),
    "collections.OrderedDict": _pairs(OrderedDict),
    "collections.Counter": _pairs(dict),
    "collections.defaultdict": _pairs(dict),
    "collections.deque": _new_list,
    "copyreg._reconstructor": _reconstruct,
    "copyreg.__newobj__": _new_object,
}
