"""Plain scalar quantisation, the trellis of one state: symbols and all that follows from them, in one reading.

Source: entropy-constrained scalar quantisation (Sullivan, "Efficient scalar quantization of exponential and Laplacian
random variables", 1996): a threshold between two levels is where distance and rate together are the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled, part
from wcompress.threads import in_parts

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]

_CHUNK = 512  # weights; divides what `in_parts` takes together
_LANES = 64


@dataclass(frozen=True)
class Counted:
    """What was found in weights that were quantised.

    Attributes:
        counts: how often each upper part −m … m of a symbol occurs, float64 `[n_classes, 2m + 1]`.
        groups: sums over the symbols of magnitude 0, 1, 2, and 3 or more: how many, of their magnitudes, of those
            squared, and of the weights' own magnitudes in steps, float64 `[4, 4]`.
        energy: of the weights, squared steps.
    """

    counts: Floats
    groups: Floats
    energy: float


def quantise(
    weights: npt.NDArray[np.floating],
    step: float,
    classes: Ints,
    class_shift: int,
    thresholds: Singles,
    low_bits: Ints,
    every: int = 1,
) -> tuple[Ints, Counted]:
    """The symbols of weights, and what tables and levels follow from.

    Args:
        weights: `[n]`.
        step: of the quantiser.
        classes: int32, the class of the weights `[c << class_shift : (c + 1) << class_shift]`.
        class_shift: log₂ of the weights that share a class.
        thresholds: float32 `[n_classes, limit + 1]`, ascending: from which magnitude in steps on k is better than
            k − 1; the first is not looked at.
        low_bits: int32 `[n_classes]`, how many of a symbol's lower bits do not count.
        every: look at one of so many chunks of weights alone.

    Returns:
        Symbols int32 `[n]`, those that were not looked at of any value; and what was found.
    """
    limit = thresholds.shape[1] - 1
    looked = every if every > 1 else max(1, min(4, len(weights) >> 17))
    # So that every magnitude lies between two of them.
    bounds = np.full((len(thresholds), limit + 2), np.inf, np.float32)
    bounds[:, 1:-1], bounds[:, 0] = thresholds[:, 1:], -1.0
    symbols = np.empty(len(weights), np.int32)
    edge = int(((limit + (1 << low_bits >> 1)) >> low_bits).max(initial=0))

    def part(some: slice) -> tuple[Longs, Longs, Floats]:
        counts = np.zeros((len(thresholds), 2 * edge + 1), np.int64)
        whole, sums = np.zeros(12, np.int64), np.zeros((5, 8))
        _quantise(
            weights[some],
            some.start,
            1.0 / step,
            classes,
            class_shift,
            bounds,
            low_bits,
            every,
            looked,
            np.empty(_CHUNK, np.float32),
            symbols[some],
            counts,
            whole,
            sums,
        )
        return counts, whole, sums

    counts, whole = np.zeros((len(thresholds), 2 * edge + 1), np.int64), np.zeros(12, np.int64)
    sums = np.zeros((5, 8))
    for found in in_parts(part, len(weights)):
        counts += found[0]
        whole += found[1]
        sums += found[2]
    groups = np.concatenate([whole.reshape(3, 4).astype(np.float64), sums[None, :4].sum(2)])
    used = np.flatnonzero(counts.any(0))
    most = int(np.abs(used - edge).max(initial=0))
    return symbols, Counted(counts[:, edge - most : edge + most + 1].astype(np.float64), groups, float(sums[4].sum()))


@compiled()
def _quantise(
    weights: npt.NDArray[np.floating],
    first: int,
    inverse: float,
    classes: Ints,
    class_shift: int,
    bounds: Singles,
    low_bits: Ints,
    every: int,
    looked: int,
    sizes: Singles,
    symbols: Ints,
    counts: Longs,
    whole: Longs,
    sums: Floats,
) -> None:
    n, start = len(weights), 0
    limit, edge = bounds.shape[1] - 2, counts.shape[1] // 2
    top = np.float32(limit)
    while start < n:
        cls = classes[(first + start) >> class_shift]
        at_most = min(n, ((start >> 9) + 1) << 9)
        # What shares a class, up to the chunk's end.
        end = min(((first + start) >> class_shift) + 1 << class_shift, first + at_most) - first
        while end < at_most and classes[(first + end) >> class_shift] == cls:
            end += 1 << class_shift
        end = min(end, at_most)
        begin, start = start, end
        if every > 1 and ((first + begin) >> 9) % every:
            continue
        length = end - begin
        some, out, row = weights[begin:end], symbols[begin:end], bounds[cls]
        for i in range(length):
            sizes[i] = abs(np.float32(some[i] * inverse))
        for i in range(length, -(-length // 8) * 8):
            sizes[i] = np.float32(0.0)
        wrong = 0
        for i in range(length):
            size = sizes[i]
            guess = np.int32(min(size, top) + np.float32(0.5))
            at = np.uint32(min(guess, np.int32(limit)))
            k = np.int32(at) + np.int32(size > row[at + np.uint32(1)]) - np.int32(size <= row[at])
            wrong += (size > row[np.uint32(k + 1)]) + (size <= row[np.uint32(k)])
            out[i] = k
        if wrong:
            for i in range(length):
                k = out[i]
                while k < limit and sizes[i] > row[k + 1]:
                    k += 1
                while k > 0 and sizes[i] <= row[k]:
                    k -= 1
                out[i] = k
        if ((first + begin) >> 9) % looked == 0:
            _sum(sizes, out, whole, sums)
        for i in range(length):
            out[i] = -out[i] if some[i] < 0 else out[i]
        n_low, of_class = low_bits[cls], counts[cls]
        half = (1 << n_low) >> 1
        if n_low == 0:
            for i in range(length):
                of_class[np.uint64(edge + out[i])] += 1
        else:
            for i in range(length):
                of_class[np.uint64(edge + ((out[i] + half) >> n_low))] += 1


@part
def _sum(sizes: Singles, magnitudes: Ints, whole: Longs, sums: Floats) -> None:
    # As many sums of floats as there are lanes in an instruction; the order is always the same.
    n = len(magnitudes)
    n1 = n2 = n3 = k3 = kk3 = np.int64(0)
    for i in range(n):
        k = magnitudes[i]
        n1 += k == 1
        n2 += k == 2
        far = k if k > 2 else 0
        n3 += k > 2
        k3 += far
        kk3 += np.int64(far) * np.int64(far)
    whole[0] += n - n1 - n2 - n3
    whole[1] += n1
    whole[2] += n2
    whole[3] += n3
    whole[5] += n1
    whole[6] += 2 * n2
    whole[7] += k3
    whole[9] += n1
    whole[10] += 4 * n2
    whole[11] += kk3
    for i in range(n):
        lane, k, size = i & 7, magnitudes[i], np.float64(sizes[i])
        sums[min(k, 3), lane] += size
        sums[4, lane] += size * size


def sum_and_farthest(weights: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Σ|w| of weights `[n]`, in float64, and the largest |w|; 0 of none."""
    sums, largest = np.zeros((2, _LANES))
    _look_at(weights, sums, largest)
    return float(sums.sum()), float(largest.max())


@compiled()
def _look_at(weights: npt.NDArray[np.floating], sums: Floats, largest: Floats) -> None:
    # As many sums as a few instructions have lanes; the order is always the same.
    n, width = len(weights), len(sums)
    for start in range(0, n, width):
        for i in range(min(width, n - start)):
            size = abs(np.float64(weights[start + i]))
            sums[i] += size
            largest[i] = max(largest[i], size)
