"""Float tensors that are no weights, told by their content alone: masks, tables, few values, whole numbers.

Weights that were drawn or trained look random from one element to the next; what was computed does not. A tensor is
looked at by a sample first, so that ordinary weights cost next to nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.storage.exact import exact_bytes
from wcompress.codec.storage.fields import Layout, words_of
from wcompress.entropy.arrays import Words
from wcompress.entropy.histogram import entropy_bits
from wcompress.fidelity import as_bytes, computable, is_finite

Floats = npt.NDArray[np.float64]

MAX_PALETTE = 256
"""Distinct values of a palette."""

_MAX_BYTE_PALETTE = 16  # of floats of 8 bits
_SAMPLE = 4096
_FEW_LINES, _MANY_LINES = 16, 256
_LINE_LENGTH = 512
_SHORTEST_LINE = 8
_UNPREDICTED = 1e-4  # of the variance, at most, in a table
_MOSTLY = 0.8  # of a sparse table is zero


@dataclass(frozen=True)
class Recognised:
    """What a float tensor is, if not weights.

    Attributes:
        kind: "constant"; "palette", at most 256 bit patterns; "powers of two", with signs and zeros; "integers";
            "sparse", mostly zeros with one run of others in a line; or "table", smooth along an axis.
        exact_bytes: what it takes bit for bit, bytes.
        n_elements: of the tensor.
        palette_bits: entropy of the bit patterns, bits an element; None where they are more than 256.
    """

    kind: str
    exact_bytes: int
    n_elements: int
    palette_bits: float | None = None

    @property
    def bits_per_element(self) -> float:
        """What an element takes bit for bit."""
        return 8 * self.exact_bytes / self.n_elements


def recognise(tensor: torch.Tensor) -> Recognised | None:
    """What a tensor is, if it is a float tensor but no weights; None if it may be weights.

    Few bit patterns are recognised whatever they are; all else only where every element is finite.

    Args:
        tensor: contiguous CPU tensor of any dtype and shape.
    """
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return None
    words_kind, layout = words_of(tensor.dtype)
    words = as_bytes(tensor).numpy().view(words_kind)
    found = _by_values(words)
    if found is None and layout is not None:
        kind = _by_numbers(words, tensor.reshape(-1), layout) or _by_lines(words, tensor)
        found = None if kind is None else (kind, None)
    return None if found is None else Recognised(found[0], exact_bytes(tensor), tensor.numel(), found[1])


def _by_values(words: Words) -> tuple[str, float | None] | None:
    sample = words[:: _step(len(words))]
    if len(np.unique(sample)) > _most_values(sample):
        return None
    counts = np.unique(words, return_counts=True)[1]
    if len(counts) > _most_values(words):
        return None
    return "constant" if len(counts) == 1 else "palette", abs(entropy_bits(counts)[0]) / len(words)


def _most_values(words: Words) -> int:
    # Bytes never have more than 256 values: those of weights in 8 bits are no palette.
    most = MAX_PALETTE if words.itemsize > 1 else _MAX_BYTE_PALETTE
    return min(most, max(2, len(words) // 4) if len(words) > 3 else 1)


def _step(n_words: int) -> int:
    # Odd, so that few row lengths are multiples of it.
    return max(1, n_words // _SAMPLE) | 1


def _by_numbers(words: Words, flat: torch.Tensor, layout: Layout) -> str | None:
    """Powers of two or integers, where that is no accident of a dtype with few mantissa bits."""
    if len(words) < 8:
        return None
    for step in (_step(len(words)), 1):
        some, bits = computable(flat[::step]).numpy(), words[::step]
        is_power = not (bits & words.dtype.type((1 << layout.mantissa) - 1)).any() and layout.mantissa > 2
        with np.errstate(invalid="ignore"):
            is_integer = bool((some == np.rint(some)).all())
        if not (is_power or is_integer):
            return None
    if not is_finite(flat):
        return None
    if is_power:
        return "powers of two"
    # Elements of more than so many bits are integers whatever they are.
    sizes = computable(flat).abs().numpy()
    telling = (sizes > 0) & (sizes < 2.0**layout.mantissa)
    return "integers" if 4 * np.count_nonzero(telling) >= np.count_nonzero(sizes) else None


def _by_lines(words: Words, tensor: torch.Tensor) -> str | None:
    """Sparse tables and smooth ones, by lines of the tensor along each of its axes that is long enough."""
    shape = tuple(tensor.shape)
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if shape[axis] < _SHORTEST_LINE:
            continue
        kind = None
        for n_lines in (_FEW_LINES, _MANY_LINES):
            lines = _lines(words.reshape(shape), tensor.dtype, axis, n_lines)
            kind = _line_kind(lines) if np.isfinite(lines).all() else None
            if kind is None:
                break
        if kind is not None and is_finite(tensor):
            return kind
    return None


def _lines(array: Words, dtype: torch.dtype, axis: int, n_lines: int) -> Floats:
    """Lines along an axis, evenly chosen, and of long ones a piece at the start, `[lines, length]`.

    Args:
        array: the elements' bits.
        dtype: of the elements.
        axis: of the lines.
        n_lines: at most.
    """
    view = np.moveaxis(array, axis, -1)[..., :_LINE_LENGTH]
    n_all = math.prod(view.shape[:-1])
    chosen = np.unique(np.linspace(0, n_all - 1, n_lines).astype(np.int64))
    with np.errstate(invalid="ignore"):  # signalling NaNs
        bits = view[np.unravel_index(chosen, view.shape[:-1])] if view.ndim > 1 else view[None]
        return computable(torch.from_numpy(np.ascontiguousarray(bits)).view(dtype)).numpy().astype(np.float64)


def _line_kind(lines: Floats) -> str | None:
    largest = np.abs(lines).max()
    if not largest:
        return None
    used = lines != 0
    if lines.size >= 256 and used.mean() <= 1 - _MOSTLY:
        n_runs = (used & ~np.pad(used, ((0, 0), (1, 0)))[:, :-1]).sum(1)
        if (n_runs <= 1).mean() >= 0.95 and (used.sum(1) > 1).any():
            return "sparse"
    lines = lines / largest
    variance = float(((lines - lines.mean(1, keepdims=True)) ** 2).sum())
    for order in (2, 4, 6):
        if lines.shape[1] >= (_SHORTEST_LINE if order == 2 else 6 * order):
            unpredicted = _unpredicted(lines, order)
            if unpredicted <= _UNPREDICTED * variance:
                return "table"
            if order == 2 and unpredicted > 0.1 * variance:
                return None
    return None


def _unpredicted(lines: Floats, order: int) -> float:
    """Energy that is left of lines once each element is predicted from `order` before it, as well as taps can."""
    n_equations = lines.shape[1] - order
    past = np.stack([lines[:, k : k + n_equations] for k in range(order)] + [np.ones((len(lines), n_equations))], 2)
    wanted = lines[:, order:, None]
    normal = past.transpose(0, 2, 1) @ past
    # A little of the identity makes lines solvable whose past says the same twice.
    normal += 1e-13 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(order + 1)
    taps = np.linalg.solve(normal, past.transpose(0, 2, 1) @ wanted)
    return float(((wanted - past @ taps) ** 2).sum())
