"""What becomes of each tensor of a model: coded with loss, kept nearly exactly, or kept bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.groups import slabs
from wcompress.codec.container.manifest import CODED_DTYPES, Part, TensorEntry
from wcompress.codec.quantiser.step_scales import RUN
from wcompress.codec.storage.exceptions import Positions, without_exceptions
from wcompress.codec.storage.recognise import recognise
from wcompress.fidelity import LEAST_ROW, computable, largest_magnitude, pieces
from wcompress.threads import in_threads

if TYPE_CHECKING:
    from wcompress.codec.tensor_rules import Chosen

LARGEST = 1e100
"""Squares of larger numbers may not exist; such elements are kept beside the rest."""

_MIN_CODED = 64  # elements of a tensor of two or more dimensions
_LONG = 1 << 14  # elements of one of one dimension
_SHORTEST_ROW = 1 << 11  # the same where such tensors are most of the model
_WIDE = 64.0  # the largest number over the smallest
_NARROW = 1 << 16  # elements of one whose rows are too short to have a quality
_OUTLIER = 50.0  # standard deviations of its tensor, row and column
_MOST_OUTLIERS = 0.02  # of a tensor; more are no outliers
_SUSPECT = 8.0
_SAMPLE = 1 << 16
_TOGETHER = 1 << 15  # elements looked at, which fit a processor's cache
_MEDIAN_OF_NORMAL = 0.6745  # of |x|, in standard deviations
ALWAYS_EXACT_BITS = 2.0
"""An element's, of what is recognised as no weights: so little is never saved."""

_EXACT_SHARE = 0.01  # of what coding all floats takes


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
            if tensor.ndim > 1 and _dtype_name(tensor) in CODED_DTYPES:
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


def plan_tensors(
    checkpoint: Checkpoint,
    method: str,
    *,
    exact_bits: float = ALWAYS_EXACT_BITS,
    given: Mapping[str, str] | None = None,
    chosen: Chosen | None = None,
) -> Plan:
    """Decide how each tensor of a checkpoint is kept.

    Args:
        checkpoint: the model.
        method: one of `METHODS`.
        exact_bits: method `vae` keeps what is recognised as no weights bit for bit where that takes at most so many
            bits an element, and beyond that as long as all of it takes next to nothing.
        given: the kinds of some tensors, whatever they are; no other is coded then.
        chosen: the kinds of some tensors, and what their values are rounded to.
    """
    positions = {name: index for index, name in enumerate(checkpoint.tensors)}
    kinds = _Kinds(checkpoint, method, exact_bits, given, {} if chosen is None else chosen.kinds)
    plan = Plan((), {}, {}, {}, release=checkpoint.release)
    entries: list[TensorEntry] = []
    looked_at: list[tuple[int, torch.Tensor]] = []
    for index, (name, tensor) in enumerate(checkpoint.tensors.items()):
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if name in checkpoint.ties:
            entries.append(TensorEntry(name, dtype, shape, "tie", positions[checkpoint.ties[name]]))
            continue
        kind = kinds.of(name, tensor)
        if chosen is not None:
            tensor = chosen.rounded.get(name, tensor)
        if kind == "coded" and method == "vae" and given is None:
            looked_at.append((index, tensor))
        entries.append(TensorEntry(name, dtype, shape, kind))
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


class _Kinds:
    def __init__(
        self,
        checkpoint: Checkpoint,
        method: str,
        exact_bits: float,
        given: Mapping[str, str] | None,
        chosen: Mapping[str, str],
    ) -> None:
        self._method, self._given, self._chosen = method, given, chosen
        self._exact: set[str] = set()
        owners = [(name, t) for name, t in checkpoint.tensors.items() if name not in checkpoint.ties]
        floats = [(name, t) for name, t in owners if _dtype_name(t) in CODED_DTYPES and t.numel()]
        if method == "vae":
            free = [(name, t) for name, t in floats if name not in (given or chosen)]
            self._exact = _exact(_one_by_one(free, checkpoint.release), exact_bits)
        weights = [t for name, t in floats if name not in self._exact and chosen.get(name) != "raw"]
        # A model whose numbers lie in long rows has no other weights.
        self._rows_are_weights = 2 * sum(t.numel() for t in weights if _is_matrix(t)) < sum(t.numel() for t in weights)

    def of(self, name: str, tensor: torch.Tensor) -> str:
        if name in self._chosen:
            return self._chosen[name]
        if _dtype_name(tensor) not in CODED_DTYPES or name in self._exact or is_extra_state(name):
            return "raw"
        if self._method == "lossless":
            return "coded"
        if self._given is not None:
            return self._given.get(name, self._kept(tensor))
        if self._method == "paper":
            return "coded" if largest_magnitude(tensor) <= LARGEST else "raw"
        return "coded" if self._is_coded(tensor) and not _is_tiny(tensor) else self._kept(tensor)

    def _kept(self, tensor: torch.Tensor) -> str:
        return "fine" if largest_magnitude(tensor) <= LARGEST and not _is_tiny(tensor) else "raw"

    def _is_coded(self, tensor: torch.Tensor) -> bool:
        return _is_worth_coding(tensor, _SHORTEST_ROW if self._rows_are_weights else _LONG)


def _one_by_one(
    tensors: Iterable[tuple[str, torch.Tensor]], release: Callable[[str], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        release(name)


def _is_worth_coding(tensor: torch.Tensor, shortest_row: int) -> bool:
    # What is never negative acts by its relative size: variances and gains.
    if tensor.numel() and not any(bool((piece < 0).any()) for piece in pieces(tensor)) and not _is_dense(tensor):
        return False
    return _is_matrix(tensor) or tensor.numel() >= shortest_row


def can_be_quantised(tensor: torch.Tensor) -> bool:
    """Whether a float tensor may be coded where a user wants it so: not what is small, or never negative."""
    return _is_worth_coding(tensor, _SHORTEST_ROW) and not _is_tiny(tensor)


def is_extra_state(name: str) -> bool:
    """Whether a tensor is what a module keeps beside its weights, which is its own business, as torch names it."""
    return name.rsplit(".", 1)[-1] == "_extra_state"


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_matrix(tensor: torch.Tensor) -> bool:
    """Whether a tensor of two or more dimensions is worth coding; short rows are kept finely, unless they are many.

    One whose numbers lie along one dimension is no matrix.
    """
    if sum(size > 1 for size in tensor.shape) < 2 or tensor.numel() < _MIN_CODED:
        return False
    return tensor.numel() >= LEAST_ROW * tensor.shape[0] or tensor.numel() >= _NARROW


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a matrix that is never negative has numbers of like size, so that its errors count as those of others."""
    sizes = computable(tensor).nan_to_num(0.0)
    return _is_matrix(tensor) and float(sizes.max()) <= _WIDE * float(sizes.min())


def _is_tiny(tensor: torch.Tensor) -> bool:
    # Squares of such numbers do not exist.
    if not tensor.numel() or tensor.dtype != torch.float64:  # others have none
        return False
    return 0 < float(computable(tensor).abs().nan_to_num_(0.0, 0.0, 0.0).max()) < 1 / LARGEST


def _exact(floats: Iterable[tuple[str, torch.Tensor]], exact_bits: float) -> set[str]:
    """Names of tensors that are no weights and cheaply kept bit for bit."""
    found, dear, n_elements = set(), [], 0
    for name, tensor in floats:
        n_elements += tensor.numel()
        recognised = recognise(tensor)
        if recognised is None:
            continue
        if recognised.bits_per_element <= max(ALWAYS_EXACT_BITS, exact_bits):
            found.add(name)
        else:
            dear.append((recognised.exact_bytes, name))
    left = _EXACT_SHARE * min(exact_bits, 32.0) * n_elements / 8
    for n_bytes, name in sorted(dear):
        if n_bytes > left:
            break
        left -= n_bytes
        found.add(name)
    return found


def exceptional(tensor: torch.Tensor) -> Positions:
    """Ascending flat positions of elements to be kept beside a coded rest, int64 `[k]`.

    NaN, infinities and numbers beyond `LARGEST`; and outliers: more than 50 times as large as is usual in their tensor,
    in their row and in their column, where usual is the standard deviation of normal numbers with the same median
    magnitude. A row of which little is left beside a few ordinary weights has no outliers.

    Args:
        tensor: contiguous, of a float dtype.
    """
    if not tensor.numel():
        return np.zeros(0, np.int64)
    sizes = computable(tensor.reshape(-1)).abs().numpy()
    usable = sizes <= (LARGEST if sizes.dtype == np.float64 else np.finfo(np.float32).max)
    beyond = np.flatnonzero(~usable)
    if len(beyond):
        sizes = np.where(usable, sizes, 0)
    outliers = _outliers(sizes, tuple(tensor.shape))
    return np.union1d(beyond, outliers).astype(np.int64)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is soon seen that a matrix has no exceptional elements: all finite, and none far out in its row.

    Args:
        tensor: contiguous, of a float dtype.
    """
    n, n_rows = tensor.numel(), tensor.shape[0] if tensor.ndim else 1
    if tensor.ndim < 2 or not n or n < LEAST_ROW * n_rows or tensor.dtype == torch.float64:
        return False
    rows = tensor.reshape(n_rows, -1)
    n_together = max(1, _TOGETHER // rows.shape[1])
    for first in range(0, n_rows, n_together):
        sizes = computable(rows[first : first + n_together]).abs().numpy()
        largest = sizes.max(1)
        if not np.isfinite(largest).all():
            return False
        for row in np.flatnonzero(largest > _SUSPECT * sizes.mean(1, dtype=np.float64)).tolist():
            if largest[row] > _OUTLIER * _usual(sizes[row]):
                return False
    return True


def _outliers(sizes: npt.NDArray[np.floating], shape: tuple[int, ...]) -> Positions:
    n = len(sizes)
    if len(shape) == 1 or n < LEAST_ROW * shape[0]:
        width = min(n, RUN)
        rows = sizes[: n // width * width].reshape(-1, width)
        found = _far_in_rows(rows)
        if n % width:
            found = np.append(found, n // width * width + _far_in_rows(sizes[None, n // width * width :]))
        columns = None
    else:
        found = _far_in_rows(sizes.reshape(shape[0], -1))
        columns = np.moveaxis(sizes.reshape(shape), 1, 0)
    if len(found):
        found = found[sizes[found] > _OUTLIER * _usual(sizes[:: max(1, n // _SAMPLE) | 1])]
    if not 0 < len(found) <= _MOST_OUTLIERS * n:
        return np.zeros(0, np.int64)
    if columns is None or columns[0].size < LEAST_ROW:
        return found
    column = found // math.prod(shape[2:]) % shape[1]
    usual = {int(c): _usual(columns[c].reshape(-1)) for c in np.unique(column)}
    return found[sizes[found] > _OUTLIER * np.array([usual[int(c)] for c in column])]


def _far_in_rows(rows: npt.NDArray[np.floating]) -> Positions:
    """Flat positions of what is far larger than usual in its row."""
    width = rows.shape[1]
    largest = rows.max(1)
    suspects = np.flatnonzero(largest > _SUSPECT * rows.mean(1, dtype=np.float64))
    found = [
        row * width + np.flatnonzero(rows[row] > _OUTLIER * usual)
        for row in suspects.tolist()
        if largest[row] > _OUTLIER * (usual := _usual(rows[row]))
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def _usual(sizes: npt.NDArray[np.floating]) -> np.float64:
    # Where nearly all is zero, the rest is what there is. In float64, which has room for a multiple of any float32.
    nonzero = sizes[sizes > 0].astype(np.float64)
    return np.float64(np.median(nonzero) / _MEDIAN_OF_NORMAL if len(nonzero) else math.inf)
