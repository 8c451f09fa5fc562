"""What a pickle holds when nothing in it is run: plain values, tensors, and records of everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from wcompress.checkpoint.storages import Storage
from wcompress.checkpoint.tensors import Unstorable, as_ordinary


@dataclass(frozen=True, eq=False)
class Known:
    """A function or class on the list of those that may be called; `make` is our own code.

    Attributes:
        name: The name in the pickle.
        make: Builds the value from the pickle's arguments, checking them.
    """

    name: str
    make: Callable[..., object] = field(repr=False)


class Global:
    """A function or class that a pickle names and that is neither imported nor called.

    Attributes:
        name: Module and name, joined by a dot.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Inert:
    """An object that a pickle would make by running code: what it would be made from.

    Attributes:
        name: Of the class or function that would make it.
        args: The arguments of the call.
        state: What `__setstate__` or `__dict__` would receive.
        items: Values it would be extended by, as a list.
        entries: Values it would be given by key, as a dictionary.
    """

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: object = ()) -> None:
        self.name = name
        self.args = args
        self.state: object = None
        self.items: list[object] = []
        self.entries: dict[object, object] = {}

    def parts(self) -> Iterator[object]:
        """Everything recorded."""
        yield from (self.args, self.state, self.items, self.entries)

    def attributes(self) -> Mapping[object, object] | None:
        """The recorded `__dict__`; None where the state is something else."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Mapping):
            state = {**state[0], **state[1]} if isinstance(state[0], Mapping) else state[1]
        return state if isinstance(state, Mapping) else None


class Dtype:
    """A NumPy dtype.

    Attributes:
        code: As NumPy spells it, such as `f4`, or the full name of a class.
        is_big_endian: Whether the highest byte comes first.
        is_plain: Whether it is a single number, not a structure.
    """

    __slots__ = ("code", "is_big_endian", "is_plain")

    def __init__(self, code: str) -> None:
        self.code = code
        self.is_big_endian = False
        self.is_plain = True


class Array:
    """A NumPy array, of which a pickle first gives the type and later the content.

    Attributes:
        values: The array, or None for one that holds no numbers.
        tensor: The values as a tensor, for dtypes that NumPy itself lacks.
    """

    __slots__ = ("tensor", "values")

    def __init__(self) -> None:
        self.values: npt.NDArray[np.generic] | None = None
        self.tensor: torch.Tensor | None = None


# torch's dtypes by NumPy's name.
_FROM_NUMPY = {
    "bool": torch.bool,
    **{f"{sign}int{bits}": getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
    **{f"complex{bits}": getattr(torch, f"complex{bits}") for bits in (64, 128)},
}

TensorLike = torch.Tensor | Unstorable


def tensor_like(value: object) -> torch.Tensor | Unstorable | npt.NDArray[np.generic] | None:
    """Returns what is a tensor in all but its type: a tensor, one with an obstacle, or an array of numbers."""
    if isinstance(value, Array):
        value = value.values if value.tensor is None else value.tensor
    if isinstance(value, (torch.Tensor, Unstorable)):
        return value
    if isinstance(value, Inert) and isinstance(value.args, tuple) and any(isinstance(v, Storage) for v in value.args):
        return Unstorable(as_ordinary(value.name[:200]))  # a tensor of a class of its own
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return value
    return None


def to_tensor(value: torch.Tensor | Unstorable | npt.NDArray[np.generic]) -> TensorLike:
    """Returns a tensor of the same dtype, shape and values; an array that torch lacks a dtype for is an obstacle."""
    if isinstance(value, (torch.Tensor, Unstorable)):
        return value
    native = value.dtype.newbyteorder("=")
    if native.name not in _FROM_NUMPY:
        return Unstorable(
            f"is a NumPy array of dtype {native.name}, which torch lacks: convert it, for example to float64"
        )
    # A subclass such as np.matrix or a memory map would bring its own behaviour along.
    plain = np.array(value, dtype=native, order="C", copy=True, subok=False)
    return torch.from_numpy(plain)
