"""Groups: runs of tensors, or slabs of a large one, each coded alone, so that no more than a few are ever in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from wcompress.codec.container.manifest import Part, TensorEntry

MOST_TOGETHER = 1 << 21
"""Elements of a model that is one group."""

GROUP_SIZE = 1 << 20
"""Elements at which a group of a larger model ends."""

_RUN = 1 << 10  # elements of a one-dimensional tensor that share a step scale; slabs hold whole runs


@dataclass(frozen=True)
class Slab:
    """A part of a model, as it is coded: a whole tensor, or some indices of its first dimension.

    Attributes:
        entry: with the shape of the part.
        part: which part of which tensor it is.
        is_whole: whether it is all of the tensor.
    """

    entry: TensorEntry
    part: Part
    is_whole: bool


def is_several(sizes: Iterable[int], most: int | None = None) -> bool:
    """Whether tensors of so many elements, none of them a tie, are too many for one group of `MOST_TOGETHER`."""
    return sum(sizes) > (most or MOST_TOGETHER)


def grouped(
    entries: Sequence[TensorEntry], size: int | None = None, most: int | None = None
) -> tuple[tuple[Part, ...], ...]:
    """Divides tensors into groups of about `GROUP_SIZE` elements, in order.

    Args:
        entries: of all tensors.
        size: elements at which a group ends, by default `GROUP_SIZE`.
        most: elements of a model that is one group, by default `MOST_TOGETHER`.

    Returns:
        The parts in each group; nothing for a model that is one group. Ties are in none.
    """
    size = size or GROUP_SIZE
    owners = [(index, entry) for index, entry in enumerate(entries) if entry.kind != "tie"]
    if not is_several((entry.numel for _, entry in owners), most):
        return ()
    groups: list[tuple[Part, ...]] = []
    current: list[Part] = []
    held = 0
    for index, entry in owners:
        for part, n in _parts(index, entry, size):
            # A group knows tensors by name, so it holds no two parts of one.
            if current and (held + n > size + size // 2 or current[-1].index == index):
                groups.append(tuple(current))
                current, held = [], 0
            current.append(part)
            held += n
            if held >= size:
                groups.append(tuple(current))
                current, held = [], 0
    if current:
        groups.append(tuple(current))
    return tuple(groups) if len(groups) > 1 else ()


def _parts(index: int, entry: TensorEntry, size: int) -> Iterable[tuple[Part, int]]:
    # A tensor of up to half as much again stays whole; a larger one is cut evenly, between rows.
    n_rows = entry.shape[0] if entry.shape else 1
    unit = _RUN if len(entry.shape) == 1 else 1
    n_slabs = min(round(entry.numel / size), -(-n_rows // unit)) if entry.numel > size + size // 2 else 1
    if entry.kind == "fine" or n_slabs < 2:
        yield Part(index), entry.numel
        return
    bounds = [min(n_rows, unit * round(n_rows * k / n_slabs / unit)) for k in range(n_slabs)] + [n_rows]
    per_row = entry.numel // n_rows
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            yield Part(index, start, stop), (stop - start) * per_row


def slabs(entries: Sequence[TensorEntry], parts: Sequence[Part]) -> tuple[Slab, ...]:
    """The parts of a group with the entries that they are coded under."""
    found = []
    for part in parts:
        entry = entries[part.index]
        if part.stop is None:
            found.append(Slab(entry, part, True))
        else:
            shape = (part.stop - part.start, *entry.shape[1:])
            found.append(Slab(replace(entry, shape=shape), part, shape == entry.shape))
    return tuple(found)


def places(groups: Sequence[Sequence[Part]], n_entries: int) -> list[list[tuple[int, Part]]]:
    """For each tensor the groups that hold parts of it, in order, with the parts."""
    found: list[list[tuple[int, Part]]] = [[] for _ in range(n_entries)]
    for number, parts in enumerate(groups):
        for part in parts:
            found[part.index].append((number, part))
    return found
