"""The loops of asymmetric numeral systems: what constriction's stack coder writes and reads, without calling it.

The state has 64 bits, words have 32, and probabilities are ranges among 2^24 places.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled

Words = npt.NDArray[np.uint32]
State = npt.NDArray[np.uint64]
Bounds = npt.NDArray[np.uint32]
Slots = npt.NDArray[np.uint16]

PRECISION = 24
SLOT_BITS = 12
"""A place among 2^24 is looked up by what is above so many bits of it."""


def bounds_of(weights: npt.NDArray[np.int64]) -> Bounds:
    """Where the symbols' ranges begin among 2^24 places, and where the last ends, `[m + 1]`.

    Args:
        weights: whole numbers from 1 on, `[m]`, m at least 2.
    """
    factor = float((1 << PRECISION) - len(weights)) / float(weights.sum())
    starts = np.floor(factor * np.cumsum(weights[:-1]).astype(np.float64)).astype(np.int64)
    return np.concatenate([[0], starts + np.arange(1, len(weights)), [1 << PRECISION]]).astype(np.uint32)


def first_of_slot(bounds: Bounds) -> Slots:
    """The symbol that the first of each 2^12 places belongs to, `[2^12]`."""
    places = np.arange(0, 1 << PRECISION, 1 << SLOT_BITS)
    return (np.searchsorted(bounds, places, side="right") - 1).astype(np.uint16)


@compiled()
def put(symbols: npt.NDArray[np.integer], lowest: int, bounds: Bounds, at: State, out: Words) -> None:
    """Code symbols, the last one first, since a stack gives back first what came last.

    Args:
        symbols: each from `lowest` to `lowest` + m − 1, `[n]`.
        lowest: the symbol that the first range belongs to.
        bounds: see `bounds_of`.
        at: the state, and how many words were written; both are moved on.
        out: gets at most a word for each symbol.
    """
    state, n_words = at[0], np.int64(at[1])
    for i in range(len(symbols) - 1, -1, -1):
        index = np.int64(symbols[i]) - lowest
        low = np.uint64(bounds[index])
        width = np.uint64(bounds[index + 1]) - low
        if state >> np.uint64(64 - PRECISION) >= width:
            out[n_words] = np.uint32(state & np.uint64(0xFFFFFFFF))
            n_words += 1
            state >>= np.uint64(32)
        above = state // width
        state = (above << np.uint64(PRECISION)) | (low + (state - above * width))
    at[0], at[1] = state, np.uint64(n_words)


@compiled()
def take(words: Words, at: State, bounds: Bounds, slots: Slots, lowest: int, out: npt.NDArray[np.int32]) -> None:
    """Undo `put`.

    The state's lower 24 bits lie in a symbol's range; what is above and the place within it make the next state.

    Args:
        words: the stream.
        at: the state, and how many words are left; both are moved on.
        bounds, slots: see `bounds_of` and `first_of_slot`.
        lowest: is added to each index.
        out: gets the indices, `[n]`.
    """
    state, left = at[0], np.int64(at[1])
    for i in range(len(out)):
        place = np.uint32(state & np.uint64(0xFFFFFF))
        symbol = np.int64(slots[place >> np.uint32(SLOT_BITS)])
        while bounds[symbol + 1] <= place:
            symbol += 1
        low = bounds[symbol]
        state = (state >> np.uint64(24)) * np.uint64(bounds[symbol + 1] - low) + np.uint64(place - low)
        if state < np.uint64(1 << 32) and left > 0:
            left -= 1
            state = (state << np.uint64(32)) | np.uint64(words[left])
        out[i] = symbol + lowest
    at[0], at[1] = state, np.uint64(left)


def opened(words: Words) -> State:
    """What `take` begins with: the state, and how many words are left."""
    at = np.array([0, len(words)], np.uint64)
    for _ in range(min(2, len(words))):
        at[1] -= np.uint64(1)
        at[0] = at[0] << np.uint64(32) | np.uint64(words[int(at[1])])
    return at
