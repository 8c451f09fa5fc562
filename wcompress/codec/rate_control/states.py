"""How many states the trellis has, by effort and by the number of weights."""

from __future__ import annotations

from wcompress.codec.quantiser.trellis import N_STATES

_LEAST_OF_A_TRELLIS = 8  # with 4 the search takes longer than with 8
_TABLE = {
    1: (64, 1, 1 << 29),
    2: (64, 64, 0),
    3: (256, 64, 1 << 27),
    4: (1024, 256, 1 << 29),
    5: (16384, 1024, 1 << 31),
    6: (16384, 4096, 1 << 33),
    7: (16384, 16384, 0),
    8: (16384, 16384, 0),
    9: (16384, 16384, 0),
}
"""Effort → the most and the least states, and states · weights between them: what a search's time goes with."""


def n_states_of(effort: int, n_weights: int) -> int:
    """The states of the trellis.

    Args:
        effort: 1 to 9.
        n_weights: that are coded, of the whole model.
    """
    most, least, product = _TABLE[effort]
    fitting = [n for n in N_STATES if least <= n <= min(most, max(least, product // max(1, n_weights)))]
    return max(n for n in fitting if n == least or n >= _LEAST_OF_A_TRELLIS)
