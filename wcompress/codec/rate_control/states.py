"""How many states the trellis has, by effort and by the number of weights."""

from __future__ import annotations

import math

_MANY, _GROUP = 1 << 18, 1 << 21  # weights; a model of more than the latter is several groups
_STATES: dict[int, tuple[tuple[float, int], ...]] = {
    1: ((_GROUP, 256), (1 << 23, 64), (1 << 25, 16), (math.inf, 1)),
    2: ((math.inf, 64),),
    3: ((_GROUP, 256), (math.inf, 64)),
    4: ((_GROUP, 1024), (math.inf, 256)),
    5: ((_MANY, 16384), (_GROUP, 4096), (math.inf, 1024)),
    6: ((_GROUP, 16384), (math.inf, 4096)),
    7: ((math.inf, 16384),),
    8: ((math.inf, 16384),),
    9: ((math.inf, 16384),),
}
"""Effort → states of models of up to so many weights. A search's time goes with both."""


def n_states_of(effort: int, n_weights: int) -> int:
    """The states of the trellis.

    Args:
        effort: 1 to 9.
        n_weights: that are coded, of the whole model.
    """
    return next(states for most, states in _STATES[effort] if n_weights <= most)
