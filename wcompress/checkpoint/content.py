"""Looking through what a checkpoint holds: dictionaries, lists, arrays, pickled modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parameter import is_lazy

from wcompress.checkpoint.inert import Inert, tensor_like
from wcompress.checkpoint.messages import condensed
from wcompress.checkpoint.modules import module_state, module_tensors
from wcompress.checkpoint.storages import Storage
from wcompress.checkpoint.tensors import Unstorable

_Found = torch.Tensor | Unstorable | npt.NDArray[np.generic]


class Content:
    """What a checkpoint holds, seen as dictionaries.

    Args:
        where: What it was read from, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._modules: dict[int, tuple[Mapping[object, object], list[str]]] = {}

    def as_mapping(self, value: object) -> Mapping[object, object] | None:
        """Returns a dictionary, or what was to become one; of a pickled module its state dictionary; else None."""
        if isinstance(value, Mapping):
            return value
        if not isinstance(value, Inert):
            return None
        if module_state(value) is not None:
            return self._module(value)[0]
        return value.entries or None

    def beside(self, value: object) -> list[str]:
        """Returns the names of a pickled module's tensors that are no part of its state dictionary."""
        return self._module(value)[1] if isinstance(value, Inert) and module_state(value) is not None else []

    def _module(self, value: Inert) -> tuple[Mapping[object, object], list[str]]:
        if id(value) not in self._modules:
            self._modules[id(value)] = module_tensors(value, self._where)
        return self._modules[id(value)]


def is_container(value: object) -> bool:
    """Tells whether a value is a dictionary, a list or a tuple."""
    return isinstance(value, (Mapping, list, tuple))


def tensors_below(content: object, skip: Callable[[str, object], bool] | None = None) -> list[_Found]:
    """Returns the tensors and arrays in a value; each container is visited once, however often it occurs.

    Args:
        content: The value.
        skip: Tells of a dictionary's entry, by name and value, whether to pass it over.
    """
    found: list[_Found] = []
    seen: set[int] = set()
    waiting: list[object] = [content]
    while waiting:
        value = waiting.pop()
        tensor = tensor_like(value)
        if tensor is None and isinstance(value, Storage):
            tensor = Unstorable("is a storage without a shape: save a tensor instead")
        if tensor is not None:
            found.append(tensor)
            continue
        if not isinstance(value, (Mapping, list, tuple, Inert)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += [v for n, v in value.items() if skip is None or not skip(str(n), v)]
        elif isinstance(value, Inert):
            waiting += value.parts()
        else:
            waiting += value
    return found


def holds_tensors(content: object, skip: Callable[[str, object], bool] | None = None) -> bool:
    """Tells whether there is a tensor or an array in a value; `skip` is as in `tensors_below`."""
    return bool(tensors_below(content, skip))


def n_elements(content: object) -> int:
    """Returns the elements of all tensors and arrays in a value."""
    total = 0
    for tensor in tensors_below(content):
        if isinstance(tensor, np.ndarray):
            total += tensor.size
        # An uninitialised parameter has no shape; it is refused later, by name.
        elif isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and not tensor.is_nested:
            total += tensor.numel()
    return total


def described(value: object) -> str:
    """Returns a value's kind in a few words."""
    if tensor_like(value) is not None:
        return "a single tensor without a name"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} values"
    if isinstance(value, Inert):
        return f"an object of {condensed(value.name)}"
    return f"a value of type {condensed(type(value).__name__)}"
