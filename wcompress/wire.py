"""Numbers and slices in bytes, as every part of the format writes them (docs/format.md, "Numbers")."""

from __future__ import annotations

from wcompress.errors import ArchiveError


def encode_varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, least significant first, the high bit set on all but the last."""
    if value < 0:
        raise ValueError(f"varint {value}: must not be negative")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class ByteCursor:
    """Reads numbers and slices from bytes, and says where it stopped when they run out.

    Args:
        data: the bytes.
        place: what they are, for error messages.
    """

    def __init__(self, data: bytes, place: str) -> None:
        self._data = data
        self._place = place
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self.position

    def take(self, n_bytes: int) -> bytes:
        """The next `n_bytes` bytes.

        Raises:
            ArchiveError: fewer are left.
        """
        if n_bytes > self.remaining:
            raise ArchiveError(
                f"{self._place}: {n_bytes} bytes expected at offset {self.position}, {self.remaining} are left;"
                " the archive is damaged, get a fresh copy"
            )
        self.position += n_bytes
        return self._data[self.position - n_bytes : self.position]

    def varint(self) -> int:
        """The next unsigned LEB128 number, below 2^63.

        Raises:
            ArchiveError: it is cut off or too long.
        """
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ArchiveError(f"{self._place}: a number at offset {self.position} is too long; the archive is damaged")

    def finish(self) -> None:
        """Say that everything should have been read.

        Raises:
            ArchiveError: bytes are left over.
        """
        if self.remaining:
            raise ArchiveError(f"{self._place}: {self.remaining} bytes too many; the archive is damaged")
