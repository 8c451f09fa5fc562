"""Symbols of trellis-quantised weights ↔ bytes, given the class of each sub-block.

The weights are cut into units of 32 blocks, which are coded one by one. Within a unit the symbols are grouped by class
and quantiser, and each group is coded under its own table. Of a large symbol only the upper part is under the
table; the lower bits, as good as uniform, follow as they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.entropy.coder import Decoder, Encoder
from wcompress.entropy.tables import FrequencyTable, fit_table
from wcompress.errors import ArchiveError
from wcompress.quantize.trellis import Trellis, interleave, quantisers
from wcompress.vae.prior import LOWEST_SCALE, N_CLASSES, UNITS_PER_CLASS, UNITS_PER_OCTAVE
from wcompress.wire import ByteCursor, encode_varint

Ints = npt.NDArray[np.int32]
_LOW_BITS_FROM_OCTAVE = 3


def low_bits(cls: int) -> int:
    """How many of a symbol's lower bits a class keeps out of its table."""
    octave = (LOWEST_SCALE + cls * UNITS_PER_CLASS) // UNITS_PER_OCTAVE
    return max(0, octave - _LOW_BITS_FROM_OCTAVE)


LOW_BITS = np.array([low_bits(cls) for cls in range(N_CLASSES)], dtype=np.int32)


def upper(symbols: npt.NDArray[np.int32], n_low: npt.NDArray[np.int32] | int) -> Ints:
    """The part of symbols that is under the table: ⌊(k + 2^(b−1)) / 2^b⌋ for b lower bits."""
    result: Ints = (symbols + ((1 << np.asarray(n_low)) >> 1)) >> n_low
    return result.astype(np.int32)


@dataclass(frozen=True)
class ClassTables:
    """A table for each class and quantiser; neighbouring classes may share one.

    Attributes:
        owner: int `[N_CLASSES]`, index of a class's pair of tables in `pairs`; −1 for a class that does not occur.
        pairs: tables of quantiser 0 and 1.
    """

    owner: tuple[int, ...]
    pairs: tuple[tuple[FrequencyTable, FrequencyTable], ...]

    def write(self, out: BitWriter) -> None:
        """For each class whether it occurs and whether it has its predecessor's tables; then the tables."""
        before = -1
        for index in self.owner:
            out.write(index >= 0, 1)
            if index >= 0:
                if before >= 0:
                    out.write(index == before, 1)
                before = index
        for pair in self.pairs:
            for table in pair:
                table.write(out)

    @classmethod
    def read(cls, data: BitReader) -> ClassTables:
        """Undo `write`."""
        owner: list[int] = []
        last = -1
        for _ in range(N_CLASSES):
            if not data.read(1):
                owner.append(-1)
                continue
            if last < 0 or not data.read(1):
                last += 1
            owner.append(last)
        pairs = [(FrequencyTable.read(data), FrequencyTable.read(data)) for _ in range(last + 1)]
        return cls(tuple(owner), tuple(pairs))


def fit_tables(
    symbols: Ints, which: npt.NDArray[np.uint8], classes: npt.NDArray[np.int32], *, merge: bool = True
) -> ClassTables:
    """Tables for symbols, neighbouring classes merged where that makes the archive smaller.

    Args:
        symbols: `[n]`.
        which: quantiser of each, `[n]`.
        classes: class of each, `[n]`.
        merge: look for classes to merge.
    """
    head = upper(symbols, LOW_BITS[classes])
    limit = int(np.abs(head).max(initial=0))
    width = 2 * limit + 1
    index = (classes.astype(np.int64) * 2 + which) * width + (head + limit)
    counts = np.bincount(index, minlength=N_CLASSES * 2 * width).reshape(N_CLASSES, 2, width).astype(np.float64)
    used = [c for c in range(N_CLASSES) if counts[c].any()]
    groups: list[list[int]] = []
    for cls in used:
        groups.append([cls])
        # Classes of different lower bits have symbols of different meaning and stay apart.
        while merge and len(groups) > 1 and LOW_BITS[groups[-2][-1]] == LOW_BITS[groups[-1][0]]:
            left, right = (counts[group].sum(0) for group in groups[-2:])
            if _cost(left + right) > _cost(left) + _cost(right) + 1:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
    owner = [-1] * N_CLASSES
    for number, group in enumerate(groups):
        for cls in group:
            owner[cls] = number
    return ClassTables(tuple(owner), tuple(_pair(counts[group].sum(0)) for group in groups))


def _pair(counts: npt.NDArray[np.float64]) -> tuple[FrequencyTable, FrequencyTable]:
    first = fit_table(counts[0]) if counts[0].any() else FrequencyTable((0,))
    second = fit_table(counts[1]) if counts[1].any() else FrequencyTable((0,))
    return first, second


def _cost(counts: npt.NDArray[np.float64]) -> float:
    # Bits of symbols and tables together.
    total = 0.0
    limit = counts.shape[1] // 2
    writer = BitWriter()
    for row, table in zip(counts, _pair(counts), strict=True):
        total += float(row[limit - table.limit : limit + table.limit + 1] @ table.bits)
        table.write(writer)
    return total + writer.n_bits


def _unit_groups(
    tables: ClassTables, classes: Ints, which: npt.NDArray[np.uint8]
) -> list[tuple[int, FrequencyTable, npt.NDArray[np.intp]]]:
    # Class, table and positions of each group, in coding order.
    groups = []
    for cls in np.unique(classes):
        inside = classes == cls
        pair = tables.pairs[tables.owner[cls]]
        for quantiser in (0, 1):
            positions = np.flatnonzero(inside & (which == quantiser))
            groups.append((int(cls), pair[quantiser], positions))
    return groups


def encode_symbols(
    symbols: Ints, unit_starts: npt.NDArray[np.int64], classes: Ints, machine: Trellis, tables: ClassTables
) -> bytes:
    """The `symbols` section: for each unit a varint length and its stream.

    Args:
        symbols: int32 `[n]`.
        unit_starts: int64 `[n_units + 1]`.
        classes: int32 `[n]`, class of each symbol.
        machine: the trellis.
        tables: as `fit_tables` gave them for these symbols.
    """
    which = quantisers(symbols, unit_starts, machine)
    parts: list[bytes] = []
    for start, end in itertools.pairwise(unit_starts):
        encoder = Encoder()
        unit, unit_classes = symbols[start:end], classes[start:end]
        groups = _unit_groups(tables, unit_classes, which[start:end])
        if machine.n_states > 1:
            for (_, _, first), (_, _, second) in zip(groups[::2], groups[1::2], strict=True):
                encoder.add_uniform(*_split(len(second), len(first) + len(second)))
        for cls, table, positions in groups:
            n_low = int(LOW_BITS[cls])
            values = unit[positions]
            head = upper(values, n_low)
            encoder.add(head, table)
            if n_low:
                encoder.add_bits(values - (head << n_low) + (1 << n_low >> 1), n_low)
        data = encoder.to_bytes()
        parts += [encode_varint(len(data)), data]
    return b"".join(parts)


def _about_half(n_both: int) -> tuple[int, int]:
    # A class's symbols fall to the two quantisers about evenly: the first of the likely counts, and how many there are.
    half_width = min(n_both, 4 * math.isqrt(n_both) + 4)
    low = max(0, n_both // 2 - half_width)
    return low, min(n_both, n_both // 2 + half_width) - low + 1


def _split(n_second: int, n_both: int) -> tuple[list[int], list[int]]:
    """How many of a class's symbols use quantiser 1, as numbers below known sizes."""
    low, size = _about_half(n_both)
    inside = low <= n_second < low + size
    if inside:
        return [1, n_second - low], [2, size]
    return [0, n_second >> 12, n_second & 4095], [2, (n_both >> 12) + 1, 4096]


def decode_symbols(
    data: bytes,
    unit_starts: npt.NDArray[np.int64],
    classes: Ints,
    machine: Trellis,
    tables: ClassTables,
    units: Sequence[int],
) -> list[Ints]:
    """The symbols of some units, int32 each, in order.

    Args:
        data: the whole `symbols` section.
        unit_starts: int64 `[n_units + 1]`.
        classes: int32 `[n]`, class of each symbol.
        machine: the trellis.
        tables: as they were when encoding.
        units: those wanted.

    Raises:
        ArchiveError: the section is malformed.
    """
    cursor = ByteCursor(data, "symbols")
    streams = [cursor.take(cursor.varint()) for _ in range(len(unit_starts) - 1)]
    cursor.finish()
    decoded: list[Ints] = []
    for unit in units:
        start, end = int(unit_starts[unit]), int(unit_starts[unit + 1])
        decoded.append(_decode_unit(streams[unit], classes[start:end], machine, tables))
    return decoded


def _decode_unit(data: bytes, classes: Ints, machine: Trellis, tables: ClassTables) -> Ints:
    decoder = Decoder(data, "symbols")
    used, slot = np.unique(classes, return_inverse=True)
    n_both = np.bincount(slot, minlength=len(used))
    n_second = [_take_split(decoder, int(n)) if machine.n_states > 1 else 0 for n in n_both]
    pool: list[Ints] = []
    for cls, n, second in zip(used, n_both, n_second, strict=True):
        owner = tables.owner[cls]
        if owner < 0:
            raise ArchiveError(f"symbols: class {cls} has no table; the archive is damaged")
        n_low = int(LOW_BITS[cls])
        for n_symbols, table in zip((int(n) - second, second), tables.pairs[owner], strict=True):
            values = decoder.take(n_symbols, table)
            if n_low:
                values = (values << n_low) + decoder.take_bits(n_symbols, n_low) - np.int32(1 << n_low >> 1)
            pool.append(values)
    sizes = np.array([len(part) for part in pool], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return interleave(np.concatenate(pool), starts, sizes, slot.astype(np.int32), machine)


def _take_split(decoder: Decoder, n_both: int) -> int:
    low, size = _about_half(n_both)
    if next(decoder.take_uniform([2])):
        return low + next(decoder.take_uniform([size]))
    high, rest = decoder.take_uniform([(n_both >> 12) + 1, 4096])
    n_second = (high << 12) + rest
    if n_second > n_both:
        raise ArchiveError(f"symbols: {n_second} of {n_both}; the archive is damaged")
    return n_second
