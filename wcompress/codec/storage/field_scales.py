"""Scales of the rows and columns of floats, which form 6 of a unit codes exponents relative to; and their choice.

A float's *head* is its exponent and its first mantissa bits. The head of an element less its octave is its symbol, and
its class says under which table the symbol is coded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled
from wcompress.entropy.histogram import MAX_SYMBOLS, entropy_bits

Heads = npt.NDArray[np.uint16]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

SPECIAL = 0xFFFF
"""In place of a symbol: an exponent and a mantissa of 0 that have a symbol of their own."""

_MAX_SCALE = 40  # octaves
_SAMPLE = 1 << 16  # elements that suffice to choose how to code a tensor


@dataclass(frozen=True)
class Scales:
    """Scales in steps of 1/P octave.

    Attributes:
        width: elements in a row.
        n_classes: P, a power of two.
        rows: of each row, None where rows have none.
        columns: of each column, None where columns have none.
    """

    width: int
    n_classes: int
    rows: Longs | None
    columns: Longs | None

    def sides(self) -> list[Longs]:
        """The arrays of scales."""
        return [side for side in (self.rows, self.columns) if side is not None]

    def of(self, first: int, n_rows: int) -> tuple[Longs, Longs]:
        """Scales of some rows and of all columns, zeros for those that are absent: `[n_rows]`, `[width]`."""
        rows = np.zeros(n_rows, np.int64) if self.rows is None else self.rows[first : first + n_rows]
        columns = np.zeros(self.width, np.int64) if self.columns is None else self.columns
        return rows, columns


NO_SCALES = Scales(64, 1, None, None)


def counted(heads: Heads, rows: Longs, columns: Longs, n_classes: int, top: int, special: bool) -> tuple[int, Longs]:
    """Lowest symbol, and how often each from there on occurs.

    Args:
        heads: of elements, `[n]`.
        rows, columns: scales of their rows, and of each place in a row.
        n_classes: see `Scales`.
        top: mantissa bits in a head.
        special: whether an exponent of 0 has a symbol of its own.

    Returns:
        The lowest symbol, a multiple of 2^top; occurrences by class, `[n_classes, m + 1]`, the special symbol's last.
    """
    # Octaves can only be as far apart as this; at the least one symbol is there.
    lowest = (int(rows.min(initial=0)) + int(columns.min(initial=0))) // n_classes
    highest = (int(rows.max(initial=0)) + int(columns.max(initial=0))) // n_classes
    first = (int(heads.min()) >> top) - highest
    n_octaves = (int(heads.max()) >> top) - lowest - first + 1
    counts = np.zeros((n_classes, (n_octaves << top) + 1), np.int64)
    _count(heads, rows, columns, n_classes.bit_length() - 1, top, first << top, special, counts)
    used = np.flatnonzero(counts[:, :-1].any(0))
    if not len(used):
        return 0, np.ascontiguousarray(counts[:, -1:])
    low, high = int(used[0]) >> top, (int(used[-1]) >> top) + 1
    parts = counts[:, low << top : high << top], counts[:, -1:]
    return first + low << top, np.concatenate(parts, 1)


@compiled()
def _count(
    heads: Heads, rows: Longs, columns: Longs, log_classes: int, top: int, first: int, special: bool, counts: Longs
) -> None:
    n, width, last = len(heads), len(columns), counts.shape[1] - 1
    low_bits = (1 << log_classes) - 1
    for row in range(len(rows)):
        start = row * width
        for column in range(min(width, n - start)):
            head = np.int64(heads[start + column])
            scale = rows[row] + columns[column]
            symbol = head - (scale >> log_classes << top) - first
            if special and head >> top == 0:
                symbol = last
            counts[scale & low_bits, symbol] += 1


def placed(
    heads: Heads, scales: Scales, top: int, special: bool, first: int, counts: Longs
) -> tuple[npt.NDArray[np.uint16], Longs]:
    """Symbols class by class, in order, less `first`; `SPECIAL` for the special one.

    Args:
        heads, top, special: see `counted`.
        scales: of the elements.
        first, counts: what `counted` found.

    Returns:
        The symbols `[n]`, and where each class begins and the last ends, `[n_classes + 1]`.
    """
    bounds = np.concatenate([[0], np.cumsum(counts.sum(1))])
    symbols = np.empty(len(heads), np.uint16)
    rows, columns = scales.of(0, -(-len(heads) // scales.width))
    _place(heads, rows, columns, scales.n_classes.bit_length() - 1, top, first, special, bounds[:-1].copy(), symbols)
    return symbols, bounds


@compiled()
def _place(
    heads: Heads,
    rows: Longs,
    columns: Longs,
    log_classes: int,
    top: int,
    first: int,
    special: bool,
    at: Longs,
    symbols: npt.NDArray[np.uint16],
) -> None:
    n, width = len(heads), len(columns)
    low_bits = (1 << log_classes) - 1
    for row in range(len(rows)):
        start = row * width
        for column in range(min(width, n - start)):
            head = np.int64(heads[start + column])
            scale = rows[row] + columns[column]
            cls = scale & low_bits
            symbol = head - (scale >> log_classes << top) - first
            if special and head >> top == 0:
                symbol = 0xFFFF
            symbols[at[cls]] = symbol
            at[cls] += 1


@compiled()
def class_sizes(n: int, rows: Longs, columns: Longs, sizes: Longs) -> None:
    """Counts the elements of each class.

    Args:
        n: elements.
        rows, columns: scales of ⌈n / width⌉ rows and of `width` columns.
        sizes: gets the counts, `[n_classes]`.
    """
    width, low_bits = len(columns), len(sizes) - 1
    for cls in range(len(sizes)):
        sizes[cls] = 0
    for row in range(len(rows)):
        for column in range(min(width, n - row * width)):
            sizes[(rows[row] + columns[column]) & low_bits] += 1


@compiled()
def gathered(
    symbols: npt.NDArray[np.int32],
    at: Longs,
    shifts: Longs,
    rows: Longs,
    columns: Longs,
    top: int,
    special: bool,
    limit: int,
    heads: npt.NDArray[np.int32],
) -> bool:
    """Undo `placed`: whether every head is in its range.

    Args:
        symbols: indices into the tables class by class, `[n]`.
        at: where each class begins, `[n_classes]`; is moved on.
        shifts: what to add to each class's indices to get symbols.
        rows, columns: scales of ⌈n / width⌉ rows and of `width` columns, of magnitudes below 2^30.
        top: mantissa bits in a head.
        special: whether index 0 is the special symbol.
        limit: what heads are below.
        heads: gets the heads, `[n]`; −1 for the special symbol.
    """
    n, width = len(heads), len(columns)
    low_bits, log_classes = len(at) - 1, 0
    while 1 << log_classes < len(at):
        log_classes += 1
    for row in range(len(rows)):
        start = row * width
        for column in range(min(width, n - start)):
            scale = rows[row] + columns[column]
            cls = scale & low_bits
            index = np.int64(symbols[at[cls]])
            at[cls] += 1
            head = index + shifts[cls] + (scale >> log_classes << top)
            if special and index == 0:
                head = np.int64(-1)
            elif head < 0 or head >= limit:
                return False
            heads[start + column] = head
    return True


def chosen_scales(
    heads: Heads, shape: tuple[int, ...], n_exponent: int, n_mantissa: int, top: int, n_zeros: int, special: bool
) -> tuple[Scales, int]:
    """Which scales, and how many mantissa bits with the exponent: by entropy, on a sample of rows.

    Args:
        heads: of the elements, `[n]`.
        shape: of the tensor whose elements they are.
        n_exponent, n_mantissa: bits of a float's fields.
        top: mantissa bits in a head.
        n_zeros: low bits that are 0 in every mantissa.
        special: whether an exponent of 0 has a symbol of its own.
    """
    n_words = len(heads)
    best = float("inf"), NO_SCALES, 0
    samples: dict[int, tuple[Heads, slice]] = {}
    for scales in _candidates(heads, shape, n_exponent, top):
        width = scales.width
        if width not in samples:
            samples[width] = _sample(heads, width)
        some, picked = samples[width]
        n_rows = -(-n_words // width)
        rows, columns = scales.of(0, n_rows)
        _, counts = counted(some, np.ascontiguousarray(rows[picked]), columns, scales.n_classes, top, special)
        side_bits = sum(sum(entropy_bits(np.bincount(side - side.min()))) for side in scales.sides())
        n_ordinary = int(counts[:, :-1].sum())
        bits_at, used_at = np.zeros(top + 1), np.zeros(top + 1)
        _entropies(np.ascontiguousarray(counts[:, :-1]), np.ascontiguousarray(counts[:, -1]), bits_at, used_at)
        for n_top in range(top, -1, -1):
            kept = max(n_mantissa - n_top - n_zeros, 0) * n_ordinary
            bits = (bits_at[n_top] + kept) * n_words / len(some)
            bits += 2.0 * used_at[n_top] + 20.0 * scales.n_classes + side_bits
            if bits < best[0] and (counts.shape[1] - 1) >> (top - n_top) <= MAX_SYMBOLS:
                best = bits, scales, n_top
    return best[1:]


def _sample(heads: Heads, width: int) -> tuple[Heads, slice]:
    """Rows that are enough, and which they are."""
    n_words, n_rows = len(heads), len(heads) // width
    if n_words < 2 * _SAMPLE or not n_rows:
        return heads, slice(None)
    picked = slice(0, n_rows, max(min(n_words // _SAMPLE, n_rows // 8), 1))
    return heads[: n_rows * width].reshape(n_rows, width)[picked].reshape(-1), picked


@compiled()
def _entropies(counts: Longs, rare: Longs, bits: npt.NDArray[np.float64], used: npt.NDArray[np.float64]) -> None:
    # Bits of all symbols, and how many there are, for each number of mantissa bits; folds `counts` in place.
    n_classes, n_symbols = counts.shape
    for n_top in range(len(bits) - 1, -1, -1):
        for cls in range(n_classes):
            total = rare[cls]
            for symbol in range(n_symbols):
                total += counts[cls, symbol]
            if total == 0:
                continue
            if rare[cls]:
                used[n_top] += 1
                bits[n_top] += rare[cls] * np.log2(total / rare[cls])
            for symbol in range(n_symbols):
                if counts[cls, symbol]:
                    used[n_top] += 1
                    bits[n_top] += counts[cls, symbol] * np.log2(total / counts[cls, symbol])
        n_symbols >>= 1
        for cls in range(n_classes):
            for symbol in range(n_symbols):
                counts[cls, symbol] = counts[cls, 2 * symbol] + counts[cls, 2 * symbol + 1]


def _candidates(heads: Heads, shape: tuple[int, ...], n_exponent: int, top: int) -> Iterator[Scales]:
    yield NO_SCALES
    n_words = len(heads)
    width = n_words // shape[0] if len(shape) > 1 else 64
    if n_words < 256 or width < 8:
        return
    exponents = np.bincount(heads[:: max(n_words // _SAMPLE, 1)] >> np.uint16(top), minlength=1 << n_exponent)
    exponents[[0, -1]] = 0
    if not exponents.any():
        return
    middle = int(np.searchsorted(np.cumsum(exponents), exponents.sum() / 2))
    n_rows = -(-n_words // width)
    by_columns = n_rows >= 8 and len(shape) > 1
    grid = np.empty(n_words, np.float32)
    row_counts, column_counts = np.zeros(n_rows, np.int64), np.zeros(width, np.int64)
    _measure(heads, _sizes(n_exponent, top, middle), grid, row_counts, column_counts)
    columns = np.zeros(width, np.float32)
    rows = rows_alone = _log_ratio(_row_sums(grid, np.exp2(-columns), n_rows), row_counts)
    for _ in range(3 if by_columns else 0):
        columns = _log_ratio(_column_sums(grid, np.exp2(-rows), width), column_counts)
        columns = np.clip(columns - np.rint(columns.mean()), -_MAX_SCALE, _MAX_SCALE)
        rows = _log_ratio(_row_sums(grid, np.exp2(-columns), n_rows), row_counts)
    for n_classes in (1, 2, 4, 8):
        steps = [np.rint(n_classes * side).astype(np.int64) for side in (rows_alone, rows, columns)]
        yield Scales(width, n_classes, steps[0], None)
        if by_columns:
            yield Scales(width, n_classes, steps[1], steps[2])


def _sizes(n_exponent: int, top: int, middle: int) -> Floats:
    # The magnitude of each head over 2^middle; 0 where it is no ordinary number. Sums of products with scales stay in
    # float32.
    heads = np.arange(1 << (n_exponent + top))
    exponents = heads >> top
    sizes = np.exp2(np.clip(exponents - middle, -_MAX_SCALE, _MAX_SCALE)) * (
        1 + (heads & ((1 << top) - 1)) / (1 << top)
    )
    usable = (exponents > 0) & (exponents < (1 << n_exponent) - 1)
    of_heads: Floats = (sizes * usable).astype(np.float32)
    return of_heads


def _log_ratio(sums: Floats, counts: Longs) -> Floats:
    # log₂(sum / count), and 0 where there is nothing.
    ratio: Floats = np.log2(np.where(sums > 0, sums, 1) / np.where(sums > 0, counts, 1)).astype(np.float32)
    return np.minimum(np.maximum(ratio, -_MAX_SCALE), _MAX_SCALE)


@compiled()
def _measure(heads: Heads, sizes: Floats, grid: Floats, row_counts: Longs, column_counts: Longs) -> None:
    # Each element's magnitude, and how many of each row and column have one.
    n, width = len(heads), len(column_counts)
    for row in range(len(row_counts)):
        start, n_usable = row * width, 0
        for column in range(min(width, n - start)):
            size = sizes[heads[start + column]]
            grid[start + column] = size
            usable = size > 0
            n_usable += usable
            column_counts[column] += usable
        row_counts[row] = n_usable


@compiled(fastmath=True, makes_arrays=True)
def _row_sums(grid: Floats, weights: Floats, n_rows: int) -> Floats:
    sums, width = np.zeros(n_rows, np.float32), len(weights)
    for row in range(n_rows):
        start, total = row * width, np.float32(0)
        for column in range(min(width, len(grid) - start)):
            total += grid[start + column] * weights[column]
        sums[row] = total
    return sums


@compiled(makes_arrays=True)
def _column_sums(grid: Floats, weights: Floats, width: int) -> Floats:
    sums = np.zeros(width, np.float32)
    for row in range(len(weights)):
        start = row * width
        for column in range(min(width, len(grid) - start)):
            sums[column] += grid[start + column] * weights[row]
    return sums
