"""What each weight costs by quantiser and parity of its symbol: the branches between which a trellis search chooses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.compiled import inlined, part

Ints = npt.NDArray[np.int32]
Shorts = npt.NDArray[np.int16]
Singles = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

NEVER = np.float32(1e30)
"""The cost of what cannot be chosen; finite, so that sums and differences are numbers."""
# Of a weight, in its byte: of each quantiser whether the symbol of the other parity than the nearest lower one's is the
# one below it, not above; whether an even symbol is zero; the nearest lower one's parity. Then whether it is negative.
_BITS = 3
CHOICE = np.array([0.0, NEVER], np.float32)
"""What is added to the cost of what may be chosen, and of what may not."""


@dataclass(frozen=True)
class BranchTables:
    """What costs are looked up in.

    Magnitudes go from −1, the first one of the other sign, to limit + 1, which is never chosen.

    Attributes:
        levels: of magnitudes under both quantisers, float32 `[2, limit + 3]`, in steps.
        rest: float32 `[n_classes, 2, 2 · (limit + 3)]`, the Lagrangian times the bits of symbols by quantiser and
            magnitude, those of positive weights first; of 0, which is looked up in `zero`, `NEVER`.
        zero: float32 `[n_classes, 2]`, the Lagrangian times the bits of a zero.
        shifts: float32 `[n_classes, 2]`, what is added to the level of a zero, and of any other symbol.
    """

    levels: Singles
    rest: Singles
    zero: Singles
    shifts: Singles

    @classmethod
    def of(cls, levels: Singles, rates: Singles, multiplier: float, shifts: Singles | None) -> BranchTables:
        """From what `wcompress.codec.quantiser.viterbi.search` is given."""
        limit = levels.shape[1] // 2
        rest = np.full((len(rates), 2, 2, limit + 3), NEVER, np.float32)
        for sign, of_sign in enumerate((rates[:, :, limit - 1 :], rates[:, :, limit + 1 :: -1])):
            np.multiply(of_sign, multiplier, out=rest[:, :, sign, :-1], casting="same_kind")
        rest[:, :, :, 1] = NEVER
        return cls(
            np.concatenate([levels[:, limit - 1 :], np.zeros((2, 1), np.float32)], axis=1),
            rest.reshape(len(rates), 2, 2 * (limit + 3)),
            (multiplier * rates[:, :, limit]).astype(np.float32),
            np.zeros((len(rates), 2), np.float32) if shifts is None else shifts,
        )


@part
def find_branches(
    x: Singles,
    first: int,
    classes: Ints,
    class_shift: int,
    levels: Singles,
    rest: Singles,
    zero: Singles,
    shifts: Singles,
    choice: Singles,
    lane: int | np.int64,
    costs: Singles,
    nearest: Shorts,
    flags: Bytes,
) -> None:
    """The cheapest symbol of each weight by quantiser and parity.

    Of each quantiser the two symbols around the weight are tried, the one below these, and zero; rates may differ by
    sign.

    Args:
        x: weights in steps, float32 `[n]`.
        first: place in the sequence of the first, for its class.
        classes, class_shift: as for `wcompress.codec.quantiser.viterbi.search`.
        levels, rest, zero, shifts: see `BranchTables`.
        choice: `CHOICE`.
        lane: where the weights' costs go.
        costs: float32 `[≥ n, 4, n_lanes]`; gets squared error + Lagrangian · bits of branch 2 · quantiser + parity,
            less the least of the four.
        nearest: int16 `[n]`, gets the magnitude nearest below under quantiser 0.
        flags: uint8 `[n]`, gets what tells the four symbols, with `nearest`; see `symbol_of`.
    """
    # No branch depends on a weight: it could not be foreseen, which takes longer than all of this.
    n, top = len(x), np.float32(levels.shape[1] - 3)
    half, unit = np.float32(0.5), np.float32(1.0)
    width, levels0, levels1 = np.uint64(levels.shape[1]), levels[0], levels[1]
    start = 0
    while start < n:
        cls = (first + start) >> class_shift
        row = classes[cls]
        stop = min(n, ((cls + 1) << class_shift) - first)
        rest0, rest1, zero0, zero1 = rest[row, 0], rest[row, 1], zero[row, 0], zero[row, 1]
        zero_shift, shift = shifts[row, 0], shifts[row, 1]
        for i in range(start, stop):
            from_zero, away = x[i] - zero_shift, x[i] - shift
            size, none, negative = abs(away), from_zero * from_zero, np.uint64(away < 0)
            signed = negative * width
            m = np.uint64(min(size * half, top))
            even, odd, flag = _of_quantiser(size, m, signed, none + zero0, levels0, rest0, choice)
            nearest[i] = m
            m = np.uint64(min((size + unit) * half, top))
            even1, odd1, flag1 = _of_quantiser(size, m, signed, none + zero1, levels1, rest1, choice)
            flags[i] = flag | flag1 << np.uint64(_BITS) | negative << np.uint64(2 * _BITS)
            least = min(min(even, odd), min(even1, odd1))
            costs[i, 0, lane] = even - least
            costs[i, 1, lane] = odd - least
            costs[i, 2, lane] = even1 - least
            costs[i, 3, lane] = odd1 - least
        start = stop


@inlined
def _of_quantiser(
    size: np.float32,
    m: np.uint64,
    signed: np.uint64,
    zero_cost: np.float32,
    levels: Singles,
    rest: Singles,
    choice: Singles,
) -> tuple[np.float32, np.float32, np.uint64]:
    # Under one quantiser, of a weight's size between magnitudes m and m + 1: the least cost of an even symbol and of an
    # odd one, and its bits of the flags.
    one, two = np.uint64(1), np.uint64(2)
    at = m + signed
    d0, d1, d2 = size - levels[m], size - levels[m + one], size - levels[m + two]
    below, middle, above = d0 * d0 + rest[at], d1 * d1 + rest[at + one], d2 * d2 + rest[at + two]
    side, parity = min(below, above), m & one
    even = min(middle + choice[parity], side + choice[one - parity])
    odd = min(middle + choice[one - parity], side + choice[parity])
    flag = np.uint64(below < above) | np.uint64(zero_cost <= even) << one | parity << two
    return min(even, zero_cost), odd, flag


@part
def symbol_of(nearest: np.int64, flags: np.int64, quantiser: int, parity: int) -> np.int64:
    """The symbol of a branch, from what `find_branches` says of the weight."""
    # As above, no branch depends on a weight.
    own = flags >> _BITS * quantiser
    # Under quantiser 1 the nearest one below is the same or the next.
    magnitude = nearest + (quantiser & (nearest ^ own >> 2))
    magnitude += (parity ^ (magnitude & 1)) * (1 - 2 * (own & 1))
    magnitude *= 1 - ((own >> 1) & (parity ^ 1))
    return magnitude * (1 - 2 * (flags >> 2 * _BITS))
