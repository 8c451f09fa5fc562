"""Symbols of trellis-quantised weights ↔ bytes, given the class of each sub-block.

The weights are cut into units of 32 blocks, which are coded one by one. Within a unit the symbols are grouped by class
and quantiser, and each group is coded under its own table. Of a large symbol only the upper part is under the
table; the lower bits, as good as uniform, follow as they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.trellis import Trellis, group, interleave
from wcompress.compiled import compiled
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.entropy.coder import Decoder, Encoder, streams_of
from wcompress.entropy.tables import FrequencyTable, fit_table
from wcompress.errors import ArchiveError
from wcompress.threads import in_parts, in_threads
from wcompress.vae.prior import LOWEST_SCALE, N_CLASSES, UNITS_PER_CLASS, UNITS_PER_OCTAVE
from wcompress.wire import ByteCursor, encode_varint

Ints = npt.NDArray[np.int32]
_LOW_BITS_FROM_OCTAVE = 3
_TOGETHER = 4


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

    def check(self) -> None:
        """Say that a reader takes the tables.

        Raises:
            TableTooWideError: one has too many magnitudes.
        """
        for pair in self.pairs:
            for table in pair:
                table.check()

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


def count_symbols(
    symbols: Ints, which: npt.NDArray[np.uint8], classes: Ints, class_shift: int
) -> npt.NDArray[np.float64]:
    """How often each upper part −m … m occurs, float64 `[N_CLASSES, 2, 2m + 1]`.

    Args:
        symbols: int32 `[n]`.
        which: quantiser of each, uint8 `[n]`.
        classes: int32, the class of the symbols `[c << class_shift : (c + 1) << class_shift]`.
        class_shift: log₂ of the symbols that share a class.
    """

    def largest(some: slice) -> int:
        magnitudes = np.zeros(N_CLASSES, np.int32)
        _largest(symbols, some.start, some.stop, classes, class_shift, magnitudes)
        return int(upper(magnitudes, LOW_BITS).max())

    limit = max(in_parts(largest, len(symbols)), default=0)

    def counted(some: slice) -> npt.NDArray[np.float64]:
        counts = np.zeros((N_CLASSES, 2, 2 * limit + 1))
        _count(symbols, which, some.start, some.stop, classes, class_shift, LOW_BITS, counts)
        return counts

    return sum(in_parts(counted, len(symbols)), np.zeros((N_CLASSES, 2, 2 * limit + 1)))


def fit_tables(counts: npt.NDArray[np.float64], *, merge: bool = True) -> ClassTables:
    """Tables for symbols, neighbouring classes merged where that makes the archive smaller.

    Args:
        counts: of the symbols, as `count_symbols` gives them.
        merge: look for classes to merge.
    """
    used = [c for c in range(N_CLASSES) if counts[c].any()]
    shared: list[list[int]] = []
    for cls in used:
        shared.append([cls])
        # Classes of different lower bits have symbols of different meaning and stay apart.
        while merge and len(shared) > 1 and LOW_BITS[shared[-2][-1]] == LOW_BITS[shared[-1][0]]:
            left, right = (counts[some].sum(0) for some in shared[-2:])
            if _cost(left + right) > _cost(left) + _cost(right) + 1:
                break
            shared[-2:] = [shared[-2] + shared[-1]]
    owner = [-1] * N_CLASSES
    for number, some in enumerate(shared):
        for cls in some:
            owner[cls] = number
    return ClassTables(tuple(owner), tuple(_pair(counts[some].sum(0)) for some in shared))


def symbol_bits(counts: npt.NDArray[np.float64], tables: ClassTables) -> float:
    """Ideal code length of symbols under tables that were fitted to them.

    Args:
        counts: as `count_symbols` gives them.
        tables: as `fit_tables` gave them for these counts.
    """
    total = 0.0
    limit = counts.shape[2] // 2
    for cls, owner in enumerate(tables.owner):
        if owner < 0:
            continue
        for row, table in zip(counts[cls], tables.pairs[owner], strict=True):
            inside = row[limit - table.limit : limit + table.limit + 1]
            total += float(inside @ table.bits) + int(LOW_BITS[cls]) * float(inside.sum())
    return total


@compiled()
def _largest(symbols: Ints, first: int, last: int, classes: Ints, class_shift: int, largest: Ints) -> None:
    for i in range(first, last):
        cls = classes[i >> class_shift]
        largest[cls] = max(largest[cls], abs(symbols[i]))


@compiled()
def _count(
    symbols: Ints,
    which: npt.NDArray[np.uint8],
    first: int,
    last: int,
    classes: Ints,
    class_shift: int,
    low_bits: Ints,
    counts: npt.NDArray[np.float64],
) -> None:
    limit = counts.shape[2] // 2
    for i in range(first, last):
        cls = classes[i >> class_shift]
        n_low = low_bits[cls]
        head = (symbols[i] + ((1 << n_low) >> 1)) >> n_low
        counts[cls, which[i], head + limit] += 1


def _pair(counts: npt.NDArray[np.float64]) -> tuple[FrequencyTable, FrequencyTable]:
    first = fit_table(counts[0]) if counts[0].any() else FrequencyTable((0,))
    second = fit_table(counts[1]) if counts[1].any() else FrequencyTable((0,))
    return first, second


def _cost(counts: npt.NDArray[np.float64]) -> float:
    # Bits of symbols and tables together.
    total = 0.0
    limit = counts.shape[1] // 2
    for row, table in zip(counts, _pair(counts), strict=True):
        total += float(row[limit - table.limit : limit + table.limit + 1] @ table.bits)
        total += table.n_bits
    return total


def encode_symbols(
    symbols: Ints,
    unit_starts: npt.NDArray[np.int64],
    classes: Ints,
    class_shift: int,
    machine: Trellis,
    tables: ClassTables,
) -> bytes:
    """The `symbols` section: for each unit a varint length and its stream.

    Args:
        symbols: int32 `[n]`.
        unit_starts: int64 `[n_units + 1]`; units start where a class does.
        classes, class_shift: as for `count_symbols`.
        machine: the trellis.
        tables: as `fit_tables` gave them for these symbols.
    """

    def grouped(unit: int) -> tuple[_Slots, npt.NDArray[np.int64], Ints]:
        start, end = int(unit_starts[unit]), int(unit_starts[unit + 1])
        slots = _Slots.of(classes, class_shift, start, end)
        if machine.n_states == 1 and len(slots.used) == 1:
            return slots, np.array([end - start, 0]), symbols[start:end]
        pool = np.empty(end - start, np.int32)
        return slots, group(symbols[start:end], slots.each, class_shift, len(slots.used), machine, pool), pool

    n_units = len(unit_starts) - 1

    def encoder_of(slots: _Slots, sizes: npt.NDArray[np.int64], pool: Ints) -> Encoder:
        encoder = Encoder()
        if machine.n_states > 1:
            for n_both, n_second in zip(slots.n_both, sizes[1::2], strict=True):
                encoder.add_uniform(*_split(int(n_second), int(n_both)))
        ends = np.cumsum(sizes)
        parts = [pool[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        for cls, first, second in zip(slots.used, parts[::2], parts[1::2], strict=True):
            n_low = int(LOW_BITS[cls])
            for values, table in zip((first, second), tables.pairs[tables.owner[cls]], strict=True):
                head = upper(values, n_low) if n_low else values
                encoder.add(head, table)
                if n_low:
                    encoder.add_bits(values - (head << n_low) + (1 << n_low >> 1), n_low)
        return encoder

    def coded(first: int) -> list[bytes]:
        units = range(first, min(first + _TOGETHER, n_units))
        return streams_of([encoder_of(*grouped(unit)) for unit in units])

    streams = itertools.chain.from_iterable(in_threads(coded, range(0, n_units, _TOGETHER)))
    return b"".join(encode_varint(len(data)) + data for data in streams)


@dataclass(frozen=True)
class _Slots:
    # The classes of a unit, ascending; which of them each sub-block has; how many symbols each has.
    used: Ints
    each: Ints
    n_both: npt.NDArray[np.int64]

    @classmethod
    def of(cls, of_all: Ints, class_shift: int, start: int, end: int) -> _Slots:
        classes = of_all[start >> class_shift : -(-end >> class_shift)]
        used = np.flatnonzero(np.bincount(classes, minlength=N_CLASSES))
        each = np.searchsorted(used, classes).astype(np.int32)
        n_both = np.bincount(each, minlength=len(used)) << class_shift
        n_both[each[-1]] -= (len(each) << class_shift) - (end - start)
        return cls(used.astype(np.int32), each, n_both)


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
    class_shift: int,
    machine: Trellis,
    tables: ClassTables,
    units: Sequence[int],
    use: Callable[[int, Ints], None],
) -> None:
    """Decode some units.

    Args:
        data: the whole `symbols` section.
        unit_starts: int64 `[n_units + 1]`.
        classes, class_shift: as for `count_symbols`.
        machine: the trellis.
        tables: as they were when encoding.
        units: those wanted.
        use: takes a unit's number and its symbols, int32; called from several threads.

    Raises:
        ArchiveError: the section is malformed.
    """
    cursor = ByteCursor(data, "symbols")
    streams = [cursor.take(cursor.varint()) for _ in range(len(unit_starts) - 1)]
    cursor.finish()

    def slots_of(unit: int) -> _Slots:
        return _Slots.of(classes, class_shift, int(unit_starts[unit]), int(unit_starts[unit + 1]))

    def decoded(some: Sequence[int]) -> None:
        slots = [slots_of(unit) for unit in some]
        first = slots[0]
        if machine.n_states == 1 and all(
            len(other.used) == 1 and other.used[0] == first.used[0] and other.n_both[0] == first.n_both[0]
            for other in slots
        ):
            found = _decode_alike([streams[unit] for unit in some], int(first.used[0]), int(first.n_both[0]), tables)
            for unit, symbols in zip(some, found, strict=True):
                use(unit, symbols)
            return
        for unit, own in zip(some, slots, strict=True):
            use(unit, _decode_unit(streams[unit], own, class_shift, machine, tables))

    in_threads(decoded, [units[first : first + _TOGETHER] for first in range(0, len(units), _TOGETHER)])


def _decode_alike(streams: Sequence[bytes], cls: int, n: int, tables: ClassTables) -> list[Ints]:
    """Units of one class and as many symbols each, under a trellis of one state."""
    owner = tables.owner[cls]
    if owner < 0:
        raise ArchiveError(f"symbols: class {cls} has no table; the archive is damaged")
    decoders = [Decoder(data, "symbols") for data in streams]
    found = Decoder.take_together(decoders, n, tables.pairs[owner][0])
    n_low = int(LOW_BITS[cls])
    if not n_low:
        return found
    lower = [decoder.take_bits(n, n_low) for decoder in decoders]
    return [(high << n_low) + low - np.int32(1 << n_low >> 1) for high, low in zip(found, lower, strict=True)]


def _decode_unit(data: bytes, slots: _Slots, class_shift: int, machine: Trellis, tables: ClassTables) -> Ints:
    decoder = Decoder(data, "symbols")
    n_second = [_take_split(decoder, int(n)) if machine.n_states > 1 else 0 for n in slots.n_both]
    pool: list[Ints] = []
    for cls, n, second in zip(slots.used, slots.n_both, n_second, strict=True):
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
    return interleave(np.concatenate(pool), sizes, slots.each, class_shift, machine)


def _take_split(decoder: Decoder, n_both: int) -> int:
    low, size = _about_half(n_both)
    if next(decoder.take_uniform([2])):
        return low + next(decoder.take_uniform([size]))
    high, rest = decoder.take_uniform([(n_both >> 12) + 1, 4096])
    n_second = (high << 12) + rest
    if n_second > n_both:
        raise ArchiveError(f"symbols: {n_second} of {n_both}; the archive is damaged")
    return n_second
