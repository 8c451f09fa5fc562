"""Work in threads; what numba compiles lets others run beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numba

Item = TypeVar("Item")
Result = TypeVar("Result")


_PART = 1 << 18


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Results for all items, in their order; as many threads at once as numba may use."""
    n_threads = min(len(items), numba.get_num_threads())
    if n_threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(function, items))


def in_parts(function: Callable[[slice], Result], n: int) -> list[Result]:
    """Results for parts of `n` places, in their order; of one size, so that they do not differ by how many threads."""
    return in_threads(function, [slice(first, min(first + _PART, n)) for first in range(0, n, _PART)])
