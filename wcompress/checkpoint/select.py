"""Which entries of a training checkpoint are the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from wcompress.checkpoint import state_metadata
from wcompress.checkpoint.content import Content, described, holds_tensors, is_container, n_elements
from wcompress.checkpoint.inert import Inert, TensorLike, tensor_like, to_tensor
from wcompress.checkpoint.messages import condensed, damaged, listed, shown, unsafe, unsupported
from wcompress.checkpoint.tensors import check_name
from wcompress.errors import UnsafeCheckpoint, UnsupportedCheckpoint

# Where training code puts the weights, the first that is present being taken.
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
)
_INNER_WRAPPERS = ("state_dict", "model_state_dict")
# Running averages of the weights, which are another set of them: a user says which is wanted.
_AVERAGE = re.compile(r"(?i:(?<![a-z])(ema|swa|polyak|averaged?|avg|shadow)(?![a-z]))|(?<=[a-z])E(MA|ma)(?![a-z])")
_TRAINING_ONLY = re.compile(r"optim|sched|scaler|rng|random_state|callbacks|loops|hparams|hyper_param", re.IGNORECASE)
_MAX_DEPTH = 32
_MAX_ENTRIES = 4_000_000
_MAX_NAME_CHARS = 256 << 20
_EVERYTHING = "."


@dataclass
class Selection:
    """What was taken from a checkpoint, and what was not.

    Attributes:
        tensors: Name → tensor in the file's order, not yet checked.
        left_out: Names of all that was not taken.
        with_tensors: Those of them that hold tensors.
        notes: One line for each thing that is not kept as it was.
        versions: What the state dictionary's `_metadata` says of each module; empty where it has none.
    """

    tensors: dict[str, TensorLike] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    with_tensors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: state_metadata.Versions = field(default_factory=state_metadata.Versions)

    def leave(self, name: str, value: object) -> None:
        """Notes that an entry is not taken."""
        self.left_out.append(name)
        if holds_tensors(value):
            self.with_tensors.append(name)


def select(content: object, *, key: str | None, where: str) -> Selection:
    """Finds the weights in what a checkpoint file held.

    In order: the entry `key` if one is given; the first of `WRAPPERS` that holds tensors; the tensors of the
    top level; the only entry that holds tensors. Training state (optimizer, scheduler, random numbers) is
    never a candidate. A checkpoint within the chosen entry is searched in the same way. Dictionaries and lists
    inside the weights are flattened, names joined with a dot; NumPy arrays become tensors of the same dtype.

    Args:
        content: What a file held, or a mapping given by a caller.
        key: Name of the entry to take, or a path to it with dots; `.` for the top level as a whole.
        where: What it was read from, for messages.

    Returns:
        The tensors, not yet checked, and all that is to be told of them.

    Raises:
        UnsupportedCheckpoint: There are no named tensors, or no telling which are meant; the message lists
            the candidates.
    """
    return _Selector(where).run(content, key)


class _Selector:
    def __init__(self, where: str) -> None:
        self._where = where
        self._content = Content(where)
        self._found = Selection()
        self._arrays: list[str] = []
        self._flattened: list[str] = []
        self._extra_states: list[str] = []
        self._n_name_chars = 0

    def run(self, content: object, key: str | None) -> Selection:
        chosen = self._content.as_mapping(content)
        if (
            chosen is None
            and isinstance(content, (list, tuple))
            and not any(tensor_like(v) is not None for v in content)
        ):
            chosen = {str(index): value for index, value in enumerate(content)}  # (state_dict, epoch)
        if chosen is None:
            if isinstance(content, Inert):
                raise self._needs_code(content)
            raise unsupported(self._where, f"holds {described(content)}, not tensors by name; save model.state_dict()")
        whole: object = content
        path: list[str] = []
        step: str | None
        keys = self._path(chosen, key) if key not in (None, _EVERYTHING) and key is not None else []
        is_weights = key is not None
        while len(path) < _MAX_DEPTH:
            if keys:
                step = keys.pop(0)
            elif key == _EVERYTHING:
                break
            else:
                step = self._choose(chosen, path, is_weights)
            if step is None:
                break
            for other, value in chosen.items():
                if other != step:
                    self._found.leave(_joined([*path, other]), value)
            whole = chosen[step]
            inner = self._content.as_mapping(whole)
            if inner is None:
                break
            chosen = inner
            path.append(step)
            is_weights = is_weights or step in WRAPPERS or bool(_AVERAGE.search(step))
        for name in self._content.beside(whole):
            self._found.left_out.append(_joined([*path, name]))
            self._found.with_tensors.append(_joined([*path, name]))
        self._flatten(chosen, "", path)
        self._tell()
        return self._found

    # --- choosing ----------------------------------------------------------------------------------------------

    def _candidates(self, content: Mapping[object, object]) -> list[str]:
        return [
            name
            for name, value in content.items()
            if isinstance(name, str)
            and not _is_training_state(name, value)
            and holds_tensors(self._content.as_mapping(value), _is_training_state)
        ]

    def _choose(self, content: Mapping[object, object], path: list[str], is_weights: bool) -> str | None:
        """Returns the entry that holds the weights, or None when `content` itself does.

        Args:
            content: The entries at this level.
            path: Where they are.
            is_weights: Whether the way here says that these are weights, so that only a known wrapper is left to
                be removed.
        """
        if not path and "param_groups" in content and "state" in content:
            raise unsupported(self._where, "holds the state of an optimizer, not of a model; save model.state_dict()")
        candidates = self._candidates(content)
        averages = [name for name in candidates if _AVERAGE.search(name)]
        others = [name for name in candidates if name not in averages]
        n_direct = sum(n_elements(value) for value in content.values() if tensor_like(value) is not None)
        has_direct = any(tensor_like(value) is not None for value in content.values())
        wrapper = next((name for name in WRAPPERS if name in candidates), None)
        if is_weights and (has_direct or (wrapper is None and len(candidates) > 1)):
            return None
        if averages and (others or len(averages) > 1):
            raise self._ask("holds several sets of weights", candidates, path)
        if is_weights:
            return self._inner_wrapper(candidates, wrapper)
        if wrapper is not None and n_direct <= n_elements(content[wrapper]):
            twins = [name for name in others if name != wrapper and self._are_twins(content[name], content[wrapper])]
            if twins:
                raise self._ask("holds several sets of weights", [wrapper, *twins], path)
            return wrapper
        if has_direct and candidates:
            if wrapper is None and not averages and n_direct >= sum(n_elements(content[name]) for name in candidates):
                return None
            level = "at its top level" if not path else f"in '{_joined(path)}'"
            raise self._ask(f"holds tensors {level} and also inside", candidates, path)
        if has_direct:
            return None
        if len(candidates) == 1:
            return candidates[0]
        if path:
            return None
        if candidates:
            raise self._ask("holds several sets of tensors", candidates, path)
        self._check_lists(content)
        return None

    def _check_lists(self, content: Mapping[object, object]) -> None:
        """Refuses a top level without tensors by name, unless there are lists of them."""
        if any(
            isinstance(v, (list, tuple)) and holds_tensors(v) and not _is_training_state(str(n), v)
            for n, v in content.items()
        ):
            return
        if any(isinstance(value, torch.nn.Module) for value in content.values()):
            raise unsupported(self._where, "holds a torch.nn.Module; pass model.state_dict()")
        for value in content.values():
            if isinstance(value, Inert):
                raise self._needs_code(value)
        found = f"its entries are {listed(content)}" if content else "it is an empty dictionary"
        raise unsupported(self._where, f"holds no tensors by name ({found}); save model.state_dict()")

    def _needs_code(self, value: Inert) -> UnsafeCheckpoint:
        problem = f"holds no tensors by name that can be read without running code, which {condensed(value.name)} needs"
        return unsafe(self._where, f"{problem}; load it where you trust it and save only model.state_dict()")

    def _inner_wrapper(self, candidates: list[str], wrapper: str | None) -> str | None:
        if wrapper is not None and (len(candidates) == 1 or wrapper in _INNER_WRAPPERS):
            return wrapper
        return candidates[0] if len(candidates) == 1 and _AVERAGE.search(candidates[0]) else None

    def _are_twins(self, one: object, other: object) -> bool:
        """Tells whether two sets of weights have the same names, as the best and the last of a training have."""
        names = [set(map(str, self._content.as_mapping(value) or ())) for value in (one, other)]
        return names[0] == names[1]

    def _ask(self, problem: str, names: Iterable[str], path: list[str]) -> UnsupportedCheckpoint:
        keys = [_joined([*path, name]) for name in names]
        everything = ", or everything with --key ." if not path else ""
        choice = f"choose one with `key` (on the command line --key {shown(keys[0])}{everything})"
        return unsupported(self._where, f"{problem}, {listed(keys)}; {choice}")

    def _path(self, content: Mapping[object, object], key: str) -> list[str]:
        """Returns the names on the way to the entry `key`, which may itself have dots in its name."""
        path: list[str] = []
        rest = key
        level = content
        while True:
            name = self._longest(level, rest)
            if name is None:
                what = f"'{shown(_joined(path))}' has no entry" if path else "has no entry"
                raise unsupported(self._where, f"{what} '{shown(rest)}'; its entries are {listed(level)}")
            value = level[name]
            inner = self._content.as_mapping(value)
            if inner is None or not holds_tensors(inner):
                problem = (
                    f"its entry '{shown(_joined([*path, name]))}' is {described(value)}, not a dictionary of tensors"
                )
                raise unsupported(self._where, f"{problem}; the entries there are {listed(level)}")
            path.append(name)
            if name == rest:
                return path
            level, rest = inner, rest[len(name) + 1 :]

    def _longest(self, level: Mapping[object, object], rest: str) -> str | None:
        parts = rest.split(".")
        starts = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((start for start in starts if start in level), None)

    # --- flattening --------------------------------------------------------------------------------------------

    def _flatten(self, content: object, prefix: str, path: list[str], depth: int = 0) -> None:
        """Adds the tensors below `content` to those taken, and notes everything else."""
        found = self._found
        # A pickle may hold a dictionary that contains itself, or one that doubles at every level.
        n_entries = len(found.tensors) + len(found.left_out)
        if depth > _MAX_DEPTH or n_entries > _MAX_ENTRIES or self._n_name_chars > _MAX_NAME_CHARS:
            raise damaged(self._where, f"its dictionaries are nested more than {_MAX_DEPTH} deep or without end")
        self._add_versions(content, prefix)
        entries = (
            content.items()
            if isinstance(content, Mapping)
            else enumerate(content if isinstance(content, (list, tuple)) else ())
        )
        for name, value in entries:
            tensor = tensor_like(value)
            inner = value if isinstance(value, (list, tuple)) else self._content.as_mapping(value)
            full = f"{prefix}{shown(name) if not isinstance(name, str) else name}"
            self._n_name_chars += len(full)
            if tensor is not None:
                self._take(self._checked(name, prefix, full), tensor)
            elif inner is not None and holds_tensors(inner) and not _is_training_state(str(name), value):
                self._checked(name, prefix, full)
                n_before = len(found.tensors)
                self._flatten(inner, f"{full}.", path, depth + 1)
                if not isinstance(value, Inert) and len(found.tensors) > n_before and depth == 0:
                    self._flattened.append(full)
            else:
                if full.endswith("_extra_state"):
                    self._extra_states.append(full)
                found.leave(_joined([*path, full]), value)

    def _checked(self, name: object, prefix: str, full: str) -> str:
        """Returns the full name; numbers are names only within lists and dictionaries."""
        is_number = bool(prefix) and type(name) is int
        check_name(name if not is_number else full, self._where)
        return check_name(full, self._where)

    def _take(self, name: str, value: object) -> None:
        tensor = tensor_like(value)
        if tensor is None:
            return
        if name in self._found.tensors:
            raise unsupported(self._where, f"the name '{shown(name)}' occurs twice; rename one of the two tensors")
        if isinstance(tensor, np.ndarray):
            self._arrays.append(name)
        self._found.tensors[name] = to_tensor(tensor)

    def _add_versions(self, content: object, prefix: str) -> None:
        if (given := getattr(content, "_metadata", None)) is None or not isinstance(content, Mapping):
            return
        versions = state_metadata.checked(given)
        if versions is None:
            self._found.notes.append("the state dictionary's `_metadata` is not what torch writes and is left out")
            return
        for module, entries in versions.items():
            self._found.versions[f"{prefix}{module}" if module else prefix.removesuffix(".")] = entries

    def _tell(self) -> None:
        notes = self._found.notes
        if self._arrays:
            notes.append(f"stored as tensors, not as NumPy arrays: {listed(self._arrays)}")
        if self._flattened:
            notes.append(f"stored as one tensor for each entry, named with dots: {listed(self._flattened)}")
        if self._extra_states:
            what = f"the extra state {listed(self._extra_states)} is not a tensor and is left out"
            notes.append(f"{what}; give the restored model its own, or load it with strict=False")


def _joined(names: Sequence[object]) -> str:
    return ".".join(shown(name) for name in names)


def _is_training_state(name: str, value: object) -> bool:
    """Tells whether an entry belongs to training: by its name, or by the shape of an optimizer's state."""
    if _TRAINING_ONLY.search(name) and (is_container(value) or isinstance(value, Inert)):
        return True
    return isinstance(value, Mapping) and "param_groups" in value and "state" in value
