"""What becomes of each tensor of a model: coded with loss, kept nearly exactly, or kept bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.groups import slabs
from wcompress.codec.container.manifest import Part, TensorEntry
from wcompress.codec.kinds import Kinds, is_float
from wcompress.codec.storage.dtypes import entry_of
from wcompress.codec.storage.exceptions import Positions, without_exceptions
from wcompress.codec.storage.outliers import exceptional, is_plain
from wcompress.codec.tensor_rules import Chosen
from wcompress.fidelity import computable
from wcompress.threads import in_threads


@dataclass(frozen=True)
class Plan:
    """How each tensor is kept.

    Attributes:
        entries: of all tensors, in order.
        coded, fine, raw: the tensors of each kind by name, as they are.
        exceptions: by index of the entry, ascending positions, int64 `[k]`, and the elements there, of the tensor's
            dtype `[k]`: NaN, infinities, and outliers so far out that they would hide the quality of all others.
        chosen: what a user's rules make of the model; None without rules.
        release: called with the name of a tensor that is not needed for now.
        sizes: elements of the whole tensors, by name, where the plan holds only samples of them.
    """

    entries: tuple[TensorEntry, ...]
    coded: dict[str, torch.Tensor]
    fine: dict[str, torch.Tensor]
    raw: dict[str, torch.Tensor]
    exceptions: dict[int, tuple[Positions, torch.Tensor]] = field(default_factory=dict)
    chosen: Chosen | None = None
    release: Callable[[str], None] = field(default=lambda _name: None, repr=False)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def held(self, name: str) -> torch.Tensor:
        """A tensor that is no tie, or the sample of it."""
        for tensors in (self.coded, self.fine, self.raw):
            if name in tensors:
                return tensors[name]
        raise KeyError(name)

    def size(self, name: str) -> int:
        """Elements of a tensor, whether it is held whole or not."""
        return self.sizes[name] if name in self.sizes else self.held(name).numel()

    def times(self, name: str) -> float:
        """How many times as many elements a tensor has as are held; 1 where it is held whole."""
        return self.size(name) / max(1, self.held(name).numel()) if name in self.sizes else 1.0

    @property
    def to_code(self) -> Mapping[str, torch.Tensor]:
        """The coded tensors by name, with zeros where there are exceptions; each is made when it is asked for."""
        places = {self.entries[index].name: found for index, (found, _) in self.exceptions.items()}
        return _ToCode(self.coded, places, self.release)

    def of_group(self, parts: Sequence[Part]) -> Plan:
        """How the parts of a group are kept; its entries have their shapes."""
        entries = slabs(self.entries, parts)
        plan = Plan(tuple(slab.entry for slab in entries), {}, {}, {})
        for place, slab in enumerate(entries):
            name, kind = slab.entry.name, slab.entry.kind
            tensor = getattr(self, kind)[name]
            getattr(plan, kind)[name] = tensor if slab.is_whole else tensor[slab.part.start : slab.part.stop]
            if slab.part.index in self.exceptions:
                positions, values = self.exceptions[slab.part.index]
                n_before = 0 if slab.is_whole else slab.part.start * (tensor.numel() // tensor.shape[0])
                first, last = np.searchsorted(positions, [n_before, n_before + slab.entry.numel])
                if first < last:
                    plan.exceptions[place] = positions[first:last] - n_before, values[first:last]
        return plan

    def exact_energy(self) -> float:
        """Σw² of what is not coded and counts in an SQNR all the same: finite numbers of two or more dimensions."""
        found = 0.0
        for index, (_, values) in self.exceptions.items():
            entry = self.entries[index]
            found += _finite_energy(values) * self.times(entry.name) if len(entry.shape) > 1 else 0.0
        for name, tensor in (*self.fine.items(), *self.raw.items()):
            if tensor.ndim > 1 and is_float(tensor):
                found += _finite_energy(tensor) * self.times(name)
                self.release(name)
        return found

    def exception_rows(self, aside: Mapping[str, Positions]) -> list[tuple[int, Positions, torch.Tensor]]:
        """As `wcompress.codec.storage.exceptions.encode_exceptions` takes them.

        Args:
            aside: further positions by name of a coded tensor.
        """
        rows = dict(self.exceptions)
        for index, entry in enumerate(self.entries):
            if entry.name in aside:
                places = aside[entry.name]
                values = self.coded[entry.name].reshape(-1)[torch.from_numpy(places)]
                if index in rows:
                    order = np.argsort(np.concatenate([rows[index][0], places]), kind="stable")
                    values = torch.cat([rows[index][1], values])[torch.from_numpy(order)]
                    places = np.concatenate([rows[index][0], places])[order]
                rows[index] = places, values
        return [(index, *found) for index, found in sorted(rows.items())]


def _finite_energy(tensor: torch.Tensor) -> float:
    values = computable(tensor).double()
    return float(values[values.isfinite()].square().sum())


class _ToCode(Mapping[str, torch.Tensor]):
    def __init__(
        self, tensors: Mapping[str, torch.Tensor], places: Mapping[str, Positions], release: Callable[[str], None]
    ) -> None:
        self._tensors, self._places, self._release = tensors, places, release
        self._last: str | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        # Who looks at one tensor after another is done with the one before.
        if self._last is not None:
            self._release(self._last)
        self._last = name
        tensor = self._tensors[name]
        return without_exceptions(tensor, self._places[name]) if name in self._places else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def plan_tensors(checkpoint: Checkpoint, kinds: Kinds, chosen: Chosen | None = None) -> Plan:
    """Decide how each tensor of a checkpoint is kept.

    Args:
        checkpoint: the model.
        kinds: say so of each tensor.
        chosen: the kinds of some tensors, and what their values are rounded to.
    """
    positions = {name: index for index, name in enumerate(checkpoint.tensors)}
    decided = {} if chosen is None else chosen.kinds
    plan = Plan((), {}, {}, {}, release=checkpoint.release)
    entries: list[TensorEntry] = []
    looked_at: list[tuple[int, torch.Tensor]] = []
    for index, (name, tensor) in enumerate(checkpoint.tensors.items()):
        if name in checkpoint.ties:
            entries.append(replace(entry_of(name, tensor, "tie"), tie_to=positions[checkpoint.ties[name]]))
            continue
        kind = decided[name] if name in decided else kinds.of(name, tensor)
        if chosen is not None:
            tensor = chosen.rounded.get(name, tensor)
        if kind == "coded" and kinds.sets_aside:
            looked_at.append((index, tensor))
        entries.append(entry_of(name, tensor, kind))
        getattr(plan, kind)[name] = tensor
        checkpoint.release(name)
    for index, tensor in _not_plain(looked_at, entries, checkpoint.release):
        places = exceptional(tensor)
        if len(places):
            plan.exceptions[index] = (places, tensor.reshape(-1)[torch.from_numpy(places)])
        checkpoint.release(entries[index].name)
    return replace(plan, entries=tuple(entries), chosen=chosen)


def _not_plain(
    rows: Sequence[tuple[int, torch.Tensor]], entries: Sequence[TensorEntry], release: Callable[[str], None]
) -> list[tuple[int, torch.Tensor]]:
    def plain(row: tuple[int, torch.Tensor]) -> bool:
        found = is_plain(row[1])
        release(entries[row[0]].name)
        return found

    return [row for row, found in zip(rows, in_threads(plain, rows), strict=True) if not found]
