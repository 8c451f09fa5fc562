"""Logarithms in whole numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import part

Ints = npt.NDArray[np.int64]


@part
def log2(x: int, log: Ints) -> int:
    # 16 · log2(x) for x ≥ 1, rounded down
    bits = 0
    y = x
    if y >= 1 << 32:
        y >>= 32
        bits += 32
    if y >= 1 << 16:
        y >>= 16
        bits += 16
    if y >= 1 << 8:
        y >>= 8
        bits += 8
    if y >= 1 << 4:
        y >>= 4
        bits += 4
    if y >= 1 << 2:
        y >>= 2
        bits += 2
    if y >= 2:
        bits += 1
    mantissa = (x << (8 - bits) if bits <= 8 else x >> (bits - 8)) & 255
    return int(16 * bits + log[mantissa])


@part
def mean_log(total: int, count: int, log: Ints) -> int:
    # 16 · log2(total / count + 0.08), both with 12 bits after the point
    return log2(total + ((328 * count) >> 12) + 1, log) - log2(count, log)


@part
def sign(x: int) -> int:
    return 1 if x > 0 else (-1 if x < 0 else 0)
