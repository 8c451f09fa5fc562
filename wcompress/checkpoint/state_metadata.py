"""The versions of a model's modules, which `state_dict()` keeps in `_metadata`, as one text in an archive's metadata.

`load_state_dict` reads them to convert old weights. Nearly every module has version 1 and is named by its tensors, so
the text lists only what differs from that: a JSON list that is walked along the modules which tensor names imply
(`a.b.weight` implies ``""``, `a` and `a.b`), each once, in the order of the names.

    3                     the next three of them have version 1
    [2]                   the next one has version 2
    [{"version": 1, …}]   the next one has these entries
    "act"                 a module that no tensor names, of version 1
    ["act", 2]            and of version 2, or with entries
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch

KEY = "state_dict._metadata"
"""The name of the text among an archive's or a safetensors file's metadata."""

_MAX_MODULES = 200_000
_MAX_CHARS = 16 << 20

Versions = OrderedDict[str, dict[str, Any]]


def checked(metadata: object) -> Versions | None:
    """Returns what `_metadata` says of each module; None if it is not what torch writes."""
    if not isinstance(metadata, Mapping) or len(metadata) > _MAX_MODULES:
        return None
    versions: Versions = OrderedDict()
    n_chars = 0
    for name, entries in metadata.items():
        if not isinstance(name, str) or not isinstance(entries, Mapping):
            return None
        for key, value in entries.items():
            if not isinstance(key, str) or not isinstance(value, (str, int, float, bool, type(None))):
                return None
            if type(value) is int and abs(value) >= 1 << 60:
                return None
            n_chars += len(key) + (len(value) if isinstance(value, str) else 8)
        n_chars += len(name)
        if n_chars > _MAX_CHARS:
            return None
        versions[name] = dict(entries)
    try:
        json.dumps(versions, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return None
    return versions


def to_text(versions: Mapping[str, dict[str, Any]], names: Iterable[str]) -> str:
    """Returns the text for the modules of a model whose tensors have these names, in this order."""
    implied = _implied(names)
    place = {name: index for index, name in enumerate(implied)}
    steps: list[Any] = []
    n_plain = position = 0
    for name, entries in versions.items():
        short = entries["version"] if list(entries) == ["version"] and type(entries["version"]) is int else entries
        if place.get(name) == position:
            position += 1
            if short == 1:
                n_plain += 1
                continue
            step: Any = [short]
        elif name in place:
            return json.dumps(versions, separators=(",", ":"), ensure_ascii=False)
        else:
            step = name if short == 1 else [name, short]
        steps += [n_plain, step] if n_plain else [step]
        n_plain = 0
    if position < len(implied):
        return json.dumps(versions, separators=(",", ":"), ensure_ascii=False)
    if n_plain:
        steps.append(n_plain)
    return json.dumps(steps, separators=(",", ":"), ensure_ascii=False)


def from_text(text: str, names: Iterable[str]) -> Versions | None:
    """Undoes `to_text`; None for a text that it did not write."""
    try:
        steps = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(steps, dict):
        return checked(steps)
    implied = _implied(names)
    versions: Versions = OrderedDict()
    position = 0
    for step in steps if isinstance(steps, list) else [None]:
        if type(step) is int:
            for name in implied[position : position + max(step, 0)]:
                versions[name] = {"version": 1}
            position += max(step, 0)
        elif isinstance(step, str):
            versions[step] = {"version": 1}
        elif isinstance(step, list) and len(step) == 1 and position < len(implied):
            versions[implied[position]] = _entries(step[0])
            position += 1
        elif isinstance(step, list) and len(step) == 2 and isinstance(step[0], str):
            versions[step[0]] = _entries(step[1])
        else:
            return None
    return checked(versions)


def attached(tensors: dict[str, torch.Tensor], versions: Versions | None) -> dict[str, torch.Tensor]:
    """Returns the tensors as `state_dict()` would, with `_metadata`; as they are where there are no versions."""
    if not versions:
        return tensors
    state: OrderedDict[str, torch.Tensor] = OrderedDict(tensors)
    # torch keeps it as an attribute of the dictionary.
    state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return state


def _entries(short: Any) -> Any:
    return {"version": short} if type(short) is int else short


def _implied(names: Iterable[str]) -> list[str]:
    found: dict[str, None] = {"": None}
    for name in names:
        parts = name.split(".")
        for n_parts in range(1, len(parts)):
            found[".".join(parts[:n_parts])] = None
    return list(found)
