"""What symbols reconstruct to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError
from wcompress.quantize.trellis import Trellis

Ints = npt.NDArray[np.int32]

LEVEL_UNITS = 64
"""Levels are stored in units of 1/64 step."""

_MAX_OFFSET = LEVEL_UNITS


@dataclass(frozen=True)
class Levels:
    """How much nearer to zero than nominal the magnitudes 1, 2 and ≥ 3 of both quantisers are reconstructed.

    Attributes:
        offsets: `[2][3]`, in units of 1/64 step, from −64 to 63.
    """

    offsets: tuple[tuple[int, int, int], tuple[int, int, int]] = ((0, 0, 0), (0, 0, 0))

    def units(self, symbols: Ints, which: npt.NDArray[np.uint8], machine: Trellis) -> npt.NDArray[np.int64]:
        """Reconstruction of symbols, in units of 1/64 step."""
        magnitude = np.abs(symbols).astype(np.int64)
        nominal = machine.spacing * magnitude - ((which == 1) & (magnitude > 0))
        offsets = np.zeros((2, 4), np.int64)
        offsets[:, 1:] = self.offsets
        units = LEVEL_UNITS * nominal - offsets[which, np.minimum(magnitude, 3)]
        result: npt.NDArray[np.int64] = np.sign(symbols) * units
        return result

    def array(self, machine: Trellis, limit: int) -> npt.NDArray[np.float32]:
        """Levels float32 `[2, 2·limit + 1]` in steps, as the search wants them."""
        k = np.arange(-limit, limit + 1, dtype=np.int32)
        rows = [self.units(k, np.full(len(k), q, np.uint8), machine) / LEVEL_UNITS for q in (0, 1)]
        return np.stack(rows).astype(np.float32)

    def write(self, out: BitWriter) -> None:
        """Six offsets."""
        for row in self.offsets:
            for offset in row:
                out.write_exp_golomb(zigzag(offset), 3)

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
