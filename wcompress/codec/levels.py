"""What symbols reconstruct to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numba
import numpy as np
import numpy.typing as npt

from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError
from wcompress.quantize.trellis import Trellis

Ints = npt.NDArray[np.int32]

Signs = npt.NDArray[np.int8]

LEVEL_UNITS = 64
"""Levels are stored in units of 1/64 step."""

N_RATIOS = 7
"""How strongly a sign is expected, from 1 to 7; see `wcompress.codec.context_model.Description`."""

_MAX_OFFSET = LEVEL_UNITS


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
    ) -> npt.NDArray[np.int64]:
        """Reconstruction of symbols, in units of 1/64 step."""
        limit = int(np.abs(symbols).max(initial=0))
        shifts = np.zeros((N_RATIOS + 1, 2), np.int64)
        if self.shifts and ratios is not None:
            shifts[1:] = self.shifts
        else:
            ratios = np.zeros(0, np.int8)
        out = np.empty(len(symbols), np.int64)
        _look_up(symbols, which, self._table(machine, limit), ratios, shifts, out)
        return out

    def _table(self, machine: Trellis, limit: int) -> npt.NDArray[np.int64]:
        # Of both quantisers, from −limit to limit.
        k = np.arange(-limit, limit + 1)
        magnitude = np.abs(k)
        rows = []
        for quantiser in (0, 1):
            nominal = machine.spacing * magnitude - ((quantiser == 1) & (magnitude > 0))
            offsets = np.array([0, *self.offsets[quantiser]], np.int64)
            rows.append(np.sign(k) * (LEVEL_UNITS * nominal - offsets[np.minimum(magnitude, 3)]))
        return np.stack(rows)

    def array(self, machine: Trellis, limit: int) -> npt.NDArray[np.float32]:
        """Levels float32 `[2, 2·limit + 1]` in steps, as the search wants them."""
        return (self._table(machine, limit) / LEVEL_UNITS).astype(np.float32)

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


@numba.njit(cache=True, nogil=True)
def _look_up(
    symbols: Ints,
    which: npt.NDArray[np.uint8],
    table: npt.NDArray[np.int64],
    ratios: Signs,
    shifts: npt.NDArray[np.int64],
    out: npt.NDArray[np.int64],
) -> None:
    limit = table.shape[1] // 2
    for i in range(len(symbols)):
        out[i] = table[which[i], symbols[i] + limit]
        if len(ratios) and ratios[i] != 0:
            shift = shifts[abs(ratios[i]), 0 if symbols[i] == 0 else 1]
            out[i] += shift if ratios[i] > 0 else -shift
