"""A scale of its own for a tensor's or a row's quantisation step, where one step for the whole model is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.codec.weights import Sequencing
from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError

Floats = npt.NDArray[np.float64]

QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
"""2^(i/4), part of the format."""

_MAX_EXPONENT = 1 << 11


def quarter_octaves(exponent: int) -> float:
    """2^(exponent/4) from constants alone, so that it is the same everywhere; inf beyond float64."""
    try:
        return math.ldexp(QUARTERS[exponent % 4], exponent // 4)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class OwnScales:
    """For each tensor the exponents of its scales, 2^(exponent/4): one for the tensor, or one for each row.

    Attributes:
        exponents: a tuple for each tensor, of length 1 or of the tensor's first dimension.
    """

    exponents: tuple[tuple[int, ...], ...]

    def write(self, out: BitWriter) -> None:
        """A bit that says whether there is any; then for each tensor whether by row, and differences."""
        plain = all(row == (0,) for row in self.exponents)
        out.write(not plain, 1)
        if plain:
            return
        before = 0
        for row in self.exponents:
            out.write(len(row) > 1, 1)
            costs = [sum(2 * ((code >> k) + 1).bit_length() - 1 + k for code in _codes(row, before)) for k in range(4)]
            k = costs.index(min(costs))
            out.write(k, 2)
            for code in _codes(row, before):
                out.write_exp_golomb(code, k)
            before = row[-1]

    @classmethod
    def read(cls, data: BitReader, sequencing: Sequencing) -> OwnScales:
        """Undo `write`.

        Raises:
            ArchiveError: it is malformed.
        """
        if not data.read(1):
            return cls(tuple((0,) for _ in sequencing.shapes))
        rows: list[tuple[int, ...]] = []
        before = 0
        for shape in sequencing.shapes:
            n_scales = shape[0] if data.read(1) and shape else 1
            k = data.read(2)
            row: list[int] = []
            for _ in range(n_scales):
                before += unzigzag(data.read_exp_golomb(k))
                if abs(before) > _MAX_EXPONENT:
                    raise ArchiveError(f"scales: an exponent of {before}; the archive is damaged")
                row.append(before)
            rows.append(tuple(row))
        return cls(tuple(rows))

    def multipliers(self, sequencing: Sequencing, first: int, last: int) -> Floats:
        """The scale of each weight from `first` to `last` of the sequence, float64; `[1]` where no tensor has any."""
        if all(row == (0,) for row in self.exponents):
            return np.ones(1)
        out = np.empty(last - first)
        index = max(0, int(np.searchsorted(sequencing.starts, first, side="right")) - 1)
        while index < len(self.exponents) and sequencing.starts[index] < last:
            start, end = (int(v) for v in sequencing.starts[index : index + 2])
            low, high = max(start, first), min(end, last)
            row = self.exponents[index]
            index += 1
            if low >= high:
                continue
            values = np.array([quarter_octaves(exponent) for exponent in row])
            rows = sequencing.first_index(index - 1, low - start, high - start) if len(row) > 1 else 0
            out[low - first : high - first] = values[rows]
        return out


def _codes(row: tuple[int, ...], before: int) -> list[int]:
    return [zigzag(b - a) for a, b in zip((before, *row[:-1]), row, strict=True)]
