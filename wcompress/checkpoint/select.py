"""Which entries of a training checkpoint are the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn.parameter import is_lazy

from wcompress.checkpoint.messages import condensed, damaged, listed, shown, unsupported
from wcompress.checkpoint.tensors import check_name

# Where training code puts the weights, the first that is present being taken. Trained weights come before
# their running averages: a user who wants the average says so with `key`.
WRAPPERS = (
    "state_dict",  # Lightning, and most hand-written loops
    "model_state_dict",  # the PyTorch tutorials
    "model_state",
    "model",
    "module",  # DeepSpeed
    "network",
    "net",
    "params",  # BasicSR, JAX conversions
    "weights",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "params_ema",
    "ema",
)
_INNER_WRAPPERS = ("state_dict", "model_state_dict")
_TRAINING_ONLY = re.compile(r"optim|sched|scaler|rng|callbacks|loops|hparams|hyper_param", re.IGNORECASE)
_MAX_DEPTH = 32
_MAX_ENTRIES = 4_000_000


def select(content: object, *, key: str | None, where: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Finds the weights in what a checkpoint file held.

    In order: the entry `key` if one is given; the first of `WRAPPERS` that holds tensors; the tensors of the
    top level; the only entry that holds tensors. Training state (optimizer, scheduler, random numbers) is
    never a candidate. Dictionaries inside the chosen one are flattened, names joined with a dot.

    Args:
        content: What `torch.load` returned, or a mapping given by a caller.
        key: Name of the top-level entry to take.
        where: What it was read from, for messages.

    Returns:
        Name → tensor in the file's order, not yet checked, and the names of all that was not taken.

    Raises:
        UnsupportedCheckpoint: There are no named tensors, or no telling which are meant; the message lists
            the candidates.
    """
    if not isinstance(content, Mapping):
        raise unsupported(where, f"holds {_described(content)}, not tensors by name; save model.state_dict()")
    chosen: Mapping[object, object] = content
    path: list[str] = []
    left_out: list[str] = []
    step = _choose(content, where) if key is None else _entry(content, key, where)
    while step is not None and len(path) < _MAX_DEPTH:
        left_out += [_joined([*path, other]) for other in chosen if other != step]
        path.append(step)
        inner = chosen[step]
        assert isinstance(inner, Mapping)  # a step leads to an entry that holds tensors
        chosen = inner
        step = None if _direct(chosen) else _first_holding(chosen, _INNER_WRAPPERS)
    tensors: dict[str, torch.Tensor] = {}
    rest: list[str] = []
    if path:
        _flatten(chosen, "", 0, tensors, rest, where)
    else:  # only tensors are taken at the top level: its dictionaries are known to be training state
        tensors = {check_name(n, where): v for n, v in content.items() if isinstance(v, torch.Tensor)}
        rest = [str(n) for n, v in content.items() if not isinstance(v, torch.Tensor)]
    return tensors, left_out + [_joined([*path, name]) for name in rest]


def _joined(names: Sequence[object]) -> str:
    return ".".join(shown(name) for name in names)


def _first_holding(content: Mapping[object, object], names: Iterable[str]) -> str | None:
    return next((name for name in names if _holds_tensors(content.get(name))), None)


def _entry(content: Mapping[object, object], key: str, where: str) -> str:
    """Returns `key` if that top-level entry holds named tensors."""
    if key not in content:
        raise unsupported(where, f"has no entry '{shown(key)}'; its entries are {listed(content)}")
    if not _holds_tensors(content[key]):
        problem = f"its entry '{shown(key)}' is {_described(content[key])}, not a dictionary of tensors"
        raise unsupported(where, f"{problem}; its entries are {listed(content)}")
    return key


def _choose(content: Mapping[object, object], where: str) -> str | None:
    """Returns the top-level entry that holds the weights, or None when the top level itself does."""
    if "param_groups" in content and "state" in content:
        raise unsupported(where, "holds the state of an optimizer, not of a model; save model.state_dict()")
    candidates = [
        name
        for name, value in content.items()
        if isinstance(name, str) and not _is_training_state(name, value) and _holds_tensors(value)
    ]
    direct = _direct(content)
    wrapper = next((name for name in WRAPPERS if name in candidates), None)
    choice = "choose one with `key` (on the command line --key NAME)"
    # A learning rate kept as a tensor beside the wrapper is common; weights there would be lost unnoticed.
    n_direct = sum(value.numel() for value in direct if _is_counted(value))
    if wrapper is not None and n_direct <= _n_elements(content[wrapper]):
        return wrapper
    if direct and candidates:
        problem = f"holds tensors at its top level and also inside {listed(candidates)}"
        raise unsupported(where, f"{problem}; {choice}, or save only model.state_dict()")
    if direct:
        return None
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise unsupported(where, f"holds several sets of tensors, {listed(candidates)}; {choice}")
    if any(isinstance(value, torch.nn.Module) for value in content.values()):
        raise unsupported(where, "holds a torch.nn.Module; pass model.state_dict()")
    found = f"its entries are {listed(content)}" if content else "it is an empty dictionary"
    raise unsupported(where, f"holds no tensors by name ({found}); save model.state_dict()")


def _is_training_state(name: str, value: object) -> bool:
    """Tells whether an entry belongs to training: by its name, or by the shape of an optimizer's state."""
    if _TRAINING_ONLY.search(name):
        return True
    return isinstance(value, Mapping) and "param_groups" in value and "state" in value


def _direct(content: Mapping[object, object]) -> list[torch.Tensor]:
    return [value for value in content.values() if isinstance(value, torch.Tensor)]


def _is_counted(tensor: torch.Tensor) -> bool:
    # An uninitialised parameter has no shape; it is refused later, by name.
    return not is_lazy(tensor) and not tensor.is_nested


def _tensors_below(content: object) -> list[torch.Tensor]:
    """Returns the tensors below a dictionary; each dictionary is visited once, however often it occurs."""
    found: list[torch.Tensor] = []
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        found += _direct(value)
        waiting += [inner for inner in value.values() if isinstance(inner, Mapping)]
    return found


def _holds_tensors(content: object) -> bool:
    return bool(_tensors_below(content))


def _n_elements(content: object) -> int:
    return sum(tensor.numel() for tensor in _tensors_below(content) if _is_counted(tensor))


def _flatten(
    content: Mapping[object, object],
    prefix: str,
    depth: int,
    tensors: dict[str, torch.Tensor],
    rest: list[str],
    where: str,
) -> None:
    """Adds the tensors below `content` to `tensors` and the names of everything else to `rest`."""
    # A pickle may hold a dictionary that contains itself, or one that doubles at every level.
    if depth > _MAX_DEPTH or len(tensors) + len(rest) > _MAX_ENTRIES:
        raise damaged(where, f"its dictionaries are nested more than {_MAX_DEPTH} deep or without end")
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            full = prefix + check_name(name, where)
            if full in tensors:
                raise unsupported(where, f"the name '{shown(full)}' occurs twice; rename one of the two tensors")
            tensors[full] = value
        elif isinstance(value, Mapping) and value and not _is_training_state(str(name), value):
            _flatten(value, f"{prefix}{check_name(name, where)}.", depth + 1, tensors, rest, where)
        else:
            rest.append(f"{prefix}{name}")


def _described(value: object) -> str:
    """Returns a value's kind in a few words."""
    if isinstance(value, torch.Tensor):
        return "a single tensor without a name"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"a value of type {condensed(type(value).__name__)}"
