"""A pickled `torch.nn.Module`, recorded but not made → the tensors that its `state_dict()` would give."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from wcompress.checkpoint.inert import Inert, tensor_like
from wcompress.checkpoint.messages import damaged, shown
from wcompress.checkpoint.tensors import LAZY, Unstorable

_MAX_DEPTH = 100
_MAX_MODULES = 1_000_000
_MAX_NAME_CHARS = 4096
_PARTS = ("_parameters", "_buffers", "_modules")
_UNINITIALIZED = ("torch.nn.parameter.UninitializedParameter", "torch.nn.parameter.UninitializedBuffer")


def module_state(value: object) -> Mapping[object, object] | None:
    """Returns the recorded attributes of a module; None for anything else."""
    if not isinstance(value, Inert):
        return None
    state = value.attributes()
    # torch.fx pickles a module's attributes as the first argument of the function that would compile its code.
    if state is None and isinstance(value.args, tuple) and value.args and isinstance(value.args[0], Mapping):
        state = value.args[0]
    if state is None or not all(isinstance(state.get(part), Mapping) for part in _PARTS):
        return None
    return state


def module_tensors(module: Inert, where: str) -> tuple[OrderedDict[object, object], list[str]]:
    """Returns name → tensor in the order and under the names of `module.state_dict()`, and other tensors' names.

    The others are attributes that are neither parameters nor persistent buffers; `state_dict()` has none of them.

    A part of a module that keeps its state in a way of its own, by which it can only be read by running its code, is
    there as `Unstorable`.

    Args:
        module: For which `module_state` gives attributes.
        where: What it was read from, for messages.

    Raises:
        CheckpointError: Its modules contain each other.
    """
    tensors: OrderedDict[object, object] = OrderedDict()
    others: list[str] = []
    waiting: list[tuple[str, object, int]] = [("", module, 0)]
    n_modules = 0
    while waiting:
        prefix, value, depth = waiting.pop()
        n_modules += 1
        if depth > _MAX_DEPTH or n_modules > _MAX_MODULES or len(prefix) > _MAX_NAME_CHARS:
            raise damaged(where, f"its modules are nested more than {_MAX_DEPTH} deep or without end")
        state = module_state(value)
        if state is None:
            if isinstance(value, Inert):
                tensors[prefix.removesuffix(".")] = Unstorable(
                    f"is a module that keeps its state in its own way ({shown(value.name)[:200]}): "
                    "load it where you trust it and save model.state_dict()"
                )
            continue
        hidden = state.get("_non_persistent_buffers_set")
        hidden = hidden if isinstance(hidden, list) else []
        for part in ("_parameters", "_buffers"):
            for name, tensor in _items(state, part):
                if isinstance(tensor, Inert) and tensor.name in _UNINITIALIZED:
                    tensor = Unstorable(LAZY)
                if part == "_buffers" and name in hidden:
                    others.append(f"{prefix}{name}")
                elif tensor is not None:
                    tensors[f"{prefix}{name}"] = tensor
        others += [f"{prefix}{shown(name)}" for name, kept in state.items() if tensor_like(kept) is not None]
        children = [(f"{prefix}{name}.", child, depth + 1) for name, child in _items(state, "_modules")]
        waiting += reversed(children)
    return tensors, others


def _items(state: Mapping[object, object], part: str) -> list[tuple[str, object]]:
    entries = state[part]
    if not isinstance(entries, Mapping):
        return []
    return [(shown(name) if not isinstance(name, str) else name, value) for name, value in entries.items()]
