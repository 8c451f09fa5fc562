"""Which kind each tensor is of: coded by the method, fine for nearly exact, raw for bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

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


class Kinds:
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
        floats = [(name, t) for name, t in owners if is_float(t) and t.numel()]
        if method == "vae":
            free = [(name, t) for name, t in floats if name not in (given or chosen)]
            self._exact = _exact(_one_by_one(free, checkpoint.release), exact_bits)
        weights = [t for name, t in floats if name not in self._exact and chosen.get(name) != "raw"]
        # A model whose numbers lie in long rows has no other weights.
        self._rows_are_weights = 2 * sum(t.numel() for t in weights if _is_matrix(t)) < sum(t.numel() for t in weights)

    def of(self, name: str, tensor: torch.Tensor) -> str:
        if name in self._chosen:
            return self._chosen[name]
        if not is_float(tensor) or name in self._exact or is_extra_state(name):
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
