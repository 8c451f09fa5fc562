"""What symbols reconstruct to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.trellis import Trellis
from wcompress.compiled import compiled, part
from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError
from wcompress.fidelity import farthest
from wcompress.threads import in_parts

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Signs = npt.NDArray[np.int8]

LEVEL_UNITS = 64
"""Levels are stored in units of 1/64 step."""

N_RATIOS = 7
"""How strongly a sign is expected, from 1 to 7; see `wcompress.codec.models.context.model.Description`."""

_MAX_OFFSET = LEVEL_UNITS
_MAX_TABLE = 4096


@dataclass(frozen=True)
class Levels:
    """How much nearer to zero than nominal the magnitudes 1, 2 and ≥ 3 of both quantisers are reconstructed.

    Attributes:
        offsets: `[2][3]`, in units of 1/64 step, from −64 to 63.
        shifts: how much further towards the expected sign a zero, and any other symbol, is reconstructed, `[7][2]` by
            how strongly a sign is expected, same units; empty for not at all.
    """

    offsets: tuple[tuple[int, int, int], tuple[int, int, int]] = ((0, 0, 0), (0, 0, 0))
    shifts: tuple[tuple[int, int], ...] = ()

    def units(
        self, symbols: Ints, which: npt.NDArray[np.uint8], machine: Trellis, ratios: Signs | None = None
    ) -> Floats:
        """Reconstruction of symbols, in units of 1/64 step: whole numbers in float64."""
        out = np.empty(len(symbols))
        _restore(which, *self._arrays(symbols, machine, ratios), 1.0, np.ones(1), out)
        return out

    def restored(
        self,
        symbols: Ints,
        which: npt.NDArray[np.uint8],
        machine: Trellis,
        ratios: Signs | None,
        step: float,
        multipliers: Floats,
    ) -> Floats:
        """Symbols → weights, float64 `[n]`: whole units times the unit, times the own scale, each rounded once.

        Args:
            symbols, which: int32 and uint8 `[n]`.
            machine: the trellis.
            ratios: how signs are expected, int8 `[n]`; None for not at all.
            step: of the quantiser.
            multipliers: own scales, float64 `[n]`, or `[1]` for one of all.
        """
        out = np.empty(len(symbols))
        _restore(which, *self._arrays(symbols, machine, ratios), step / LEVEL_UNITS, multipliers, out)
        return out

    def table(self, machine: Trellis, limit: int, step: float, scales: Floats) -> Floats:
        """What each symbol + limit is restored to under a scalar quantiser at each scale, as `restored` has it.

        Args:
            machine: the trellis, of one state.
            limit: the largest magnitude.
            step: of the quantiser.
            scales: own scales, float64 `[n_scales]`.

        Returns:
            float64 `[n_scales, 2 · limit + 1]`.
        """
        units = self._table(machine, np.arange(-limit, limit + 1))[0].astype(np.float64)
        with np.errstate(over="ignore"):
            values: Floats = (units * (step / LEVEL_UNITS)) * scales[:, None]
        return values

    def squared_error(
        self,
        symbols: Ints,
        which: npt.NDArray[np.uint8],
        machine: Trellis,
        ratios: Signs | None,
        step: float,
        multipliers: Floats,
        weights: npt.NDArray[np.floating],
    ) -> float:
        """Σ (weight − restored)² for weights of any float dtype `[n]`; the rest as for `restored`."""
        index, offset, zero, table, ratios, shifts = self._arrays(symbols, machine, ratios)
        unit = step / LEVEL_UNITS

        def part(some: slice) -> float:
            own = multipliers[some] if len(multipliers) > 1 else multipliers
            told = ratios[some] if len(ratios) else ratios
            return float(
                _squared_error(which[some], index[some], offset, zero, table, told, shifts, unit, own, weights[some])
            )

        return math.fsum(in_parts(part, len(symbols)))

    def _arrays(
        self, symbols: Ints, machine: Trellis, ratios: Signs | None
    ) -> tuple[Ints, int, int, npt.NDArray[np.int64], Signs, npt.NDArray[np.int64]]:
        # What the compiled functions take: table[q, index + offset] is a symbol's level; that of 0 is at `zero`.
        limit = int(farthest(symbols))
        shifts = np.zeros((N_RATIOS + 1, 2), np.int64)
        if self.shifts and ratios is not None:
            shifts[1:] = self.shifts
        else:
            ratios = np.zeros(0, np.int8)
        if limit <= _MAX_TABLE:
            return symbols, limit, limit, self._table(machine, np.arange(-limit, limit + 1)), ratios, shifts
        # One symbol far out, which any archive may hold, is to cost no large table.
        used, index = np.unique(symbols, return_inverse=True)
        zeros = np.flatnonzero(used == 0)
        zero = int(zeros[0]) if len(zeros) else -1
        return index.astype(np.int32), 0, zero, self._table(machine, used.astype(np.int64)), ratios, shifts

    def _table(self, machine: Trellis, k: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # Of both quantisers, the levels of some symbols.
        magnitude = np.abs(k)
        rows = []
        for quantiser in (0, 1):
            nominal = machine.spacing * magnitude - ((quantiser == 1) & (magnitude > 0))
            offsets = np.array([0, *self.offsets[quantiser]], np.int64)
            rows.append(np.sign(k) * (LEVEL_UNITS * nominal - offsets[np.minimum(magnitude, 3)]))
        return np.stack(rows)

    def array(self, machine: Trellis, limit: int) -> npt.NDArray[np.float32]:
        """Levels float32 `[2, 2·limit + 1]` in steps, as the search wants them."""
        return (self._table(machine, np.arange(-limit, limit + 1)) / LEVEL_UNITS).astype(np.float32)

    def write(self, out: BitWriter) -> None:
        """Six offsets."""
        for row in self.offsets:
            for offset in row:
                out.write_exp_golomb(zigzag(offset), 3)

    def write_shifts(self, out: BitWriter) -> None:
        """Whether there are shifts, and which."""
        out.write(bool(self.shifts), 1)
        for row in self.shifts:
            for shift in row:
                out.write_exp_golomb(zigzag(shift), 2)

    @classmethod
    def read(cls, data: BitReader) -> Levels:
        """Undo `write`.

        Raises:
            ArchiveError: an offset is out of range.
        """
        values = [unzigzag(data.read_exp_golomb(3)) for _ in range(6)]
        if max(map(abs, values)) > _MAX_OFFSET:
            raise ArchiveError("levels: an offset is out of range; the archive is damaged")
        return cls((tuple(values[:3]), tuple(values[3:])))  # type: ignore[arg-type]

    def read_shifts(self, data: BitReader) -> Levels:
        """The same levels with the shifts that `write_shifts` wrote.

        Raises:
            ArchiveError: a shift is out of range.
        """
        if not data.read(1):
            return self
        values = [unzigzag(data.read_exp_golomb(2)) for _ in range(2 * N_RATIOS)]
        if max(map(abs, values)) > _MAX_OFFSET:
            raise ArchiveError("levels: a shift is out of range; the archive is damaged")
        return replace(self, shifts=tuple(zip(values[::2], values[1::2], strict=True)))


@part
def _unit(
    i: int,
    which: npt.NDArray[np.uint8],
    index: Ints,
    offset: int,
    zero: int,
    table: npt.NDArray[np.int64],
    ratios: Signs,
    shifts: npt.NDArray[np.int64],
) -> int:
    at = index[i] + offset
    unit = int(table[which[i], at])
    if len(ratios) and ratios[i] != 0:
        shift = int(shifts[abs(ratios[i]), 0 if at == zero else 1])
        unit += shift if ratios[i] > 0 else -shift
    return unit


@compiled()
def _restore(
    which: npt.NDArray[np.uint8],
    index: Ints,
    offset: int,
    zero: int,
    table: npt.NDArray[np.int64],
    ratios: Signs,
    shifts: npt.NDArray[np.int64],
    unit: float,
    multipliers: Floats,
    out: Floats,
) -> None:
    for i in range(len(index)):
        own = multipliers[i if len(multipliers) > 1 else 0]
        out[i] = (_unit(i, which, index, offset, zero, table, ratios, shifts) * unit) * own


@compiled()
def _squared_error(
    which: npt.NDArray[np.uint8],
    index: Ints,
    offset: int,
    zero: int,
    table: npt.NDArray[np.int64],
    ratios: Signs,
    shifts: npt.NDArray[np.int64],
    unit: float,
    multipliers: Floats,
    weights: npt.NDArray[np.floating],
) -> float:
    total = 0.0
    for i in range(len(index)):
        own = multipliers[i if len(multipliers) > 1 else 0]
        error = weights[i] - (_unit(i, which, index, offset, zero, table, ratios, shifts) * unit) * own
        total += error * error
    return total
