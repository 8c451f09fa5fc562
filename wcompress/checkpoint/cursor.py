"""Reading a pickle's bytes, none beyond its end."""

from __future__ import annotations

import mmap

_MAX_LINE_BYTES = 1 << 20


class PickleDamage(Exception):
    """A pickle contradicts the pickle format, or asks for more memory than a file of its size can need."""


class Cursor:
    """Reads bytes front to back; never more than there are."""

    def __init__(self, data: bytes | mmap.mmap, position: int = 0, end: int | None = None) -> None:
        self.data = data
        self.position = position
        self.end = len(data) if end is None else end

    def take(self, n: int) -> bytes:
        """Returns the next `n` bytes."""
        if not 0 <= n <= self.end - self.position:
            raise PickleDamage(f"it ends early: {n} bytes wanted at byte {self.position}, {self.end} are there")
        self.position += n
        return self.data[self.position - n : self.position]

    def unsigned(self, n: int) -> int:
        """Returns the next `n` bytes as a little-endian number."""
        return int.from_bytes(self.take(n), "little")

    def line(self) -> bytes:
        """Returns the bytes up to the next newline, without it."""
        stop = self.data.find(b"\n", self.position, min(self.end, self.position + _MAX_LINE_BYTES))
        if stop < 0:
            raise PickleDamage(f"a line that starts at byte {self.position} does not end")
        line = self.take(stop - self.position)
        self.position += 1
        return line
