"""Which kind each tensor is of: coded by the method, fine for nearly exact, raw for bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Protocol

import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.manifest import CODED_DTYPES
from wcompress.codec.storage.outliers import LARGEST
from wcompress.codec.storage.recognise import recognise
from wcompress.fidelity import LEAST_ROW, computable, largest_magnitude, pieces

_MIN_CODED = 64  # elements of a tensor of two or more dimensions
_LONG = 1 << 14  # elements of one of one dimension
_SHORTEST_ROW = 1 << 11  # the same where such tensors are most of the model
_WIDE = 64.0  # the largest number over the smallest
_NARROW = 1 << 16  # elements of one whose rows are too short to have a quality
ALWAYS_EXACT_BITS = 2.0
"""An element's, of what is recognised as no weights: so little is never saved."""

_EXACT_SHARE = 0.01  # of what coding all floats takes


class Kinds(Protocol):
    """Says how each tensor is kept.

    Attributes:
        sets_aside: elements of coded tensors that would hide the quality of all others are kept beside these.
    """

    sets_aside: ClassVar[bool]

    def of(self, name: str, tensor: torch.Tensor) -> str:
        """`coded`, `fine` or `raw`, of a tensor that is no tie and that no rule decides."""


class LosslessKinds:
    """All floats are coded."""

    sets_aside: ClassVar[bool] = False

    def of(self, name: str, tensor: torch.Tensor) -> str:
        """See `Kinds`."""
        return "coded" if _may_be_coded(name, tensor) else "raw"


class PaperKinds:
    """All floats are coded that can be squared."""

    sets_aside: ClassVar[bool] = False

    def of(self, name: str, tensor: torch.Tensor) -> str:
        """See `Kinds`."""
        return "coded" if _may_be_coded(name, tensor) and largest_magnitude(tensor) <= LARGEST else "raw"


class VaeKinds:
    """Weights are coded, but for small and vulnerable tensors, which are fine; what is recognised as no weights is raw.

    Args:
        checkpoint: the model.
        exact_bits: what is recognised as no weights is kept bit for bit where that takes at most so many bits an
            element, and beyond that as long as all of it takes next to nothing.
        chosen: kinds of tensors that are decided already, by name.
    """

    sets_aside: ClassVar[bool] = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        exact_bits: float = ALWAYS_EXACT_BITS,
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        chosen = chosen or {}
        floats = _floats(checkpoint)
        self._exact = _exact(floats, checkpoint, exact_bits, chosen)
        weights = [t for name, t in floats if name not in self._exact and chosen.get(name) != "raw"]
        # A model whose numbers lie in long rows has no other weights.
        self._rows_are_weights = 2 * sum(t.numel() for t in weights if _is_matrix(t)) < sum(t.numel() for t in weights)

    def of(self, name: str, tensor: torch.Tensor) -> str:
        """See `Kinds`."""
        if name in self._exact or not _may_be_coded(name, tensor):
            return "raw"
        shortest_row = _SHORTEST_ROW if self._rows_are_weights else _LONG
        return "coded" if _is_worth_coding(tensor, shortest_row) and not _is_tiny(tensor) else _kept(tensor)


class GivenKinds:
    """As given, whatever the tensors are; no other is coded.

    Args:
        checkpoint: the model.
        given: kinds of some floats by name.
    """

    sets_aside: ClassVar[bool] = False

    def __init__(self, checkpoint: Checkpoint, given: Mapping[str, str]) -> None:
        self._given = given
        self._exact = _exact(_floats(checkpoint), checkpoint, ALWAYS_EXACT_BITS, given)

    def of(self, name: str, tensor: torch.Tensor) -> str:
        """See `Kinds`."""
        if name in self._exact or not _may_be_coded(name, tensor):
            return "raw"
        return self._given[name] if name in self._given else _kept(tensor)


def _may_be_coded(name: str, tensor: torch.Tensor) -> bool:
    return is_float(tensor) and not is_extra_state(name)


def _kept(tensor: torch.Tensor) -> str:
    return "fine" if largest_magnitude(tensor) <= LARGEST and not _is_tiny(tensor) else "raw"


def _floats(checkpoint: Checkpoint) -> list[tuple[str, torch.Tensor]]:
    owners = [(name, tensor) for name, tensor in checkpoint.tensors.items() if name not in checkpoint.ties]
    return [(name, tensor) for name, tensor in owners if is_float(tensor) and tensor.numel()]


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


def is_float(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a dtype that may be coded."""
    return str(tensor.dtype).removeprefix("torch.") in CODED_DTYPES


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


def _exact(
    floats: Iterable[tuple[str, torch.Tensor]], checkpoint: Checkpoint, exact_bits: float, decided: Mapping[str, str]
) -> set[str]:
    """Names of tensors that are no weights and cheaply kept bit for bit, of those that are not decided already."""
    found, dear, n_elements = set(), [], 0
    for name, tensor in floats:
        if name in decided:
            continue
        n_elements += tensor.numel()
        recognised = recognise(tensor)
        checkpoint.release(name)
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
