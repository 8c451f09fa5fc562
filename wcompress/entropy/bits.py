"""Single bits, Rice and Exp-Golomb codes, most significant bit first."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from wcompress.errors import ArchiveError

_MAX_PREFIX = 40
_WINDOW_BYTES = 8
_WINDOW_MASK = (1 << 8 * _WINDOW_BYTES) - 1


def zigzag(value: int) -> int:
    """0, −1, 1, −2, 2, … → 0, 1, 2, 3, 4, …"""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """Undo `zigzag`."""
    return value >> 1 if value % 2 == 0 else -(value + 1) >> 1


@functools.lru_cache(1 << 12)
def _exp_golomb(value: int, k: int) -> str:
    head = (value >> k) + 1
    n_bits = head.bit_length() - 1
    low = format(value & ((1 << k) - 1), f"0{k}b") if k else ""
    return "1" * n_bits + "0" + bin(head)[3:] + low


def exp_golomb_bits(value: int, k: int = 0) -> int:
    """How many bits `BitWriter.write_exp_golomb` writes."""
    return 2 * ((value >> k) + 1).bit_length() - 1 + k


class BitWriter:
    """Collects bits."""

    def __init__(self) -> None:
        self._bits: list[str] = []

    def write(self, value: int, n_bits: int) -> None:
        """The lowest `n_bits` bits of a non-negative number."""
        if n_bits:
            self._bits.append(format(value & ((1 << n_bits) - 1), f"0{n_bits}b"))

    def write_rice(self, value: int, k: int) -> None:
        """A non-negative number: its part above 2^k in unary, then k bits. Above 2^(40+k) it is refused."""
        if value >> k >= _MAX_PREFIX:
            raise ValueError(f"{value} is too large for a Rice code of parameter {k}")
        self._bits.append("1" * (value >> k) + "0")
        self.write(value, k)

    def write_exp_golomb(self, value: int, k: int = 0) -> None:
        """A non-negative number: the bit length of (value ≫ k) + 1 in unary, then its bits, then k bits."""
        self._bits.append(_exp_golomb(value, k))

    def write_exp_golombs(self, values: Iterable[int]) -> None:
        """Non-negative numbers one after the other, k = 0."""
        self._bits += [_exp_golomb(value, 0) for value in values]

    def extend(self, other: BitWriter) -> None:
        """All bits of another writer."""
        self._bits += other._bits

    @property
    def n_bits(self) -> int:
        """Bits so far."""
        return sum(map(len, self._bits))

    def to_bytes(self) -> bytes:
        """All bits, filled with zeros to whole bytes."""
        text = "".join(self._bits)
        text += "0" * (-len(text) % 8)
        return int("1" + text, 2).to_bytes(len(text) // 8 + 1, "big")[1:] if text else b""


class BitReader:
    """Reads what a `BitWriter` wrote.

    Args:
        data: the bytes.
        place: what they are, for error messages.

    Attributes:
        data: as given.
        position: of the next bit.
    """

    def __init__(self, data: bytes, place: str) -> None:
        self.data = data
        self._place = place
        self.position = 0

    def read(self, n_bits: int) -> int:
        """The next bits as a number.

        Raises:
            ArchiveError: fewer are left.
        """
        if not n_bits:
            return 0
        end = self.position + n_bits
        if end > 8 * len(self.data):
            raise ArchiveError(f"{self._place}: ends at bit {self.position}; the archive is damaged")
        first, last = self.position >> 3, (end + 7) >> 3
        window = int.from_bytes(self.data[first:last], "big") >> (8 * last - end)
        self.position = end
        return window & ((1 << n_bits) - 1)

    def _ones(self) -> int:
        # Of a window of whole bytes; what is missing at the end counts as 0, and is missed when that 0 is read.
        first, skipped = self.position >> 3, self.position & 7
        window = int.from_bytes(self.data[first : first + _WINDOW_BYTES].ljust(_WINDOW_BYTES, b"\0"), "big")
        zeros = ~window & _WINDOW_MASK >> skipped
        n_ones = 8 * _WINDOW_BYTES - skipped - zeros.bit_length()
        if n_ones > _MAX_PREFIX and self.position + n_ones <= 8 * len(self.data):
            raise ArchiveError(f"{self._place}: a number is too long; the archive is damaged")
        self.position += n_ones
        self.read(1)
        return n_ones

    def read_rice(self, k: int) -> int:
        """Undo `write_rice`."""
        return (self._ones() << k) | self.read(k)

    def read_exp_golomb(self, k: int = 0) -> int:
        """Undo `write_exp_golomb`."""
        n_bits = self._ones()
        head = 1 << n_bits | self.read(n_bits)
        return (head - 1) << k | self.read(k)

    def finish(self) -> None:
        """Say that only the filling of the last byte should be left.

        Raises:
            ArchiveError: more is left, or the filling is not zero.
        """
        n_left = 8 * len(self.data) - self.position
        if n_left >= 8 or self.read(n_left):
            raise ArchiveError(f"{self._place}: {n_left} bits too many; the archive is damaged")
