"""The container: sections, an index at the end, checksums. No torch, no codec logic.

`docs/format.md` is the norm. A file is a six-byte header, section payloads back to back, and a trailer that says what
they were, so that an archive is written in one pass. Every byte is under some CRC-32.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from wcompress.errors import ArchiveError, BadMagic, ChecksumMismatch, Truncated, UnsupportedVersion
from wcompress.wire import ByteCursor, encode_varint

MAGIC = b"\x89WCZ"
END_MAGIC = b"WCZ\n"
VERSION = 7

SECTION_IDS = {
    "manifest": 1,
    "decoder": 2,
    "latents": 3,
    "tables": 4,
    "symbols": 5,
    "raw": 6,
    "scales": 7,
    "fine": 8,
    "exceptions": 9,
}
"""Literal, append-only: a name never changes its number, a number is never used again."""

_GROUPED_VERSION, _GROUP_SHIFT = 6, 4
"""From this version on the number of a section's kind has that of its group above its lower bits."""

_SECTION_NAMES = {number: name for name, number in SECTION_IDS.items()}
_HEADER = struct.Struct("<4sBB")  # magic, version, flags
_TAIL = struct.Struct("<II4s")  # index length, CRC-32 of header + index + digest + index length, end magic
_DIGEST_BYTES = 32
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class SectionEntry:
    """One row of the index: `n_bytes` bytes of group `group` at `offset`, whose CRC-32 is `crc32`."""

    name: str
    group: int
    offset: int
    n_bytes: int
    crc32: int


def frame_bytes(section_bytes: Iterable[int]) -> int:
    """What header, index and trailer take for sections of these sizes in one group; empty ones are not written."""
    rows = [len(encode_varint(1)) + len(encode_varint(n)) + 4 for n in section_bytes if n]
    return _HEADER.size + len(encode_varint(len(rows))) + sum(rows) + _DIGEST_BYTES + _TAIL.size


class ArchiveWriter:
    """Writes an archive front to back, section by section.

    Args:
        path: a file that does not exist yet (see `wcompress.files.atomic_output`).
        version: the format version that the sections follow.
    """

    def __init__(self, path: Path, version: int = VERSION) -> None:
        self._file = path.open("xb")
        self._version, self._header = version, _HEADER.pack(MAGIC, version, 0)
        self._file.write(self._header)
        self._rows: list[bytes] = []
        self.section_bytes: dict[str, int] = {}

    def add(self, name: str, payload: bytes, group: int = 0) -> None:
        """Append a section. Sections of one name and group are read back as one, in the order they were added."""
        self._file.write(payload)
        self.section_bytes[name] = self.section_bytes.get(name, 0) + len(payload)
        number = SECTION_IDS[name]
        if self._version >= _GROUPED_VERSION:
            number += group << _GROUP_SHIFT
        row = encode_varint(number) + encode_varint(len(payload))
        self._rows.append(row + struct.pack("<I", zlib.crc32(payload)))

    def finish(self, digest: bytes) -> dict[str, int]:
        """Write index and trailer and close the file.

        Args:
            digest: SHA-256 of the restored tensors, 32 bytes.

        Returns:
            Bytes by section name; `header` is all that is no section. They add up to the file's size.
        """
        index = encode_varint(len(self._rows)) + b"".join(self._rows)
        checked = self._header + index + digest + struct.pack("<I", len(index))
        self._file.write(index + digest)
        self._file.write(_TAIL.pack(len(index), zlib.crc32(checked), END_MAGIC))
        header_bytes = self._file.tell() - sum(self.section_bytes.values())
        self._file.close()
        return {"header": header_bytes, **self.section_bytes}

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


class ArchiveReader:
    """Opens an archive, checks its frame, and reads its sections.

    Attributes:
        path: the file.
        n_bytes: its size.
        version: the format version it follows.
        entries: the index, in file order.
        digest: SHA-256 of the restored tensors, 32 bytes.

    Raises:
        BadMagic, UnsupportedVersion, Truncated, ChecksumMismatch, ArchiveError: see `wcompress.errors`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file: BinaryIO = self.path.open("rb")
        except OSError as error:
            failure = ArchiveError(f"{path}: cannot be opened ({error.strerror}); check the path")
            failure.exit_code = 2
            raise failure from error
        try:
            self._read_frame()
        except BaseException:
            self._file.close()
            raise

    def _read_frame(self) -> None:
        self.n_bytes = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        header = self._file.read(_HEADER.size)
        if len(header) < _HEADER.size and MAGIC.startswith(header[:4]) and header:
            raise Truncated(f"{self.path}: only {self.n_bytes} bytes long; get a fresh copy")
        if header[:4] != MAGIC:
            raise BadMagic(
                f"{self.path}: not a wcompress archive (starts with {header[:4].hex() or 'nothing'},"
                f" expected {MAGIC.hex()}); archives are made with `wcompress pack`"
            )
        _, self.version, flags = _HEADER.unpack(header)
        fixed_bytes = _DIGEST_BYTES + _TAIL.size
        if self.n_bytes < _HEADER.size + 1 + fixed_bytes:
            raise Truncated(f"{self.path}: only {self.n_bytes} bytes long; get a fresh copy")
        self._file.seek(self.n_bytes - fixed_bytes)
        tail = self._file.read(fixed_bytes)
        self.digest = tail[:_DIGEST_BYTES]
        n_index_bytes, crc32, end_magic = _TAIL.unpack(tail[_DIGEST_BYTES:])
        if end_magic != END_MAGIC:
            raise Truncated(f"{self.path}: its end is missing or damaged ({self.n_bytes} bytes); get a fresh copy")
        index_offset = self.n_bytes - fixed_bytes - n_index_bytes
        if index_offset < _HEADER.size:
            raise ChecksumMismatch(f"{self.path}: index of {n_index_bytes} bytes does not fit; get a fresh copy")
        self._file.seek(index_offset)
        index = self._file.read(n_index_bytes)
        if zlib.crc32(header + index + self.digest + struct.pack("<I", n_index_bytes)) != crc32:
            raise ChecksumMismatch(f"{self.path}: header or index is damaged; get a fresh copy")
        # Checked after the CRC: a flipped bit here is damage, not a newer version.
        if self.version > VERSION or self.version < 1:
            raise UnsupportedVersion(
                f"{self.path}: format version {self.version}, this wcompress reads up to {VERSION}; update wcompress"
            )
        if flags:
            raise UnsupportedVersion(f"{self.path}: unknown flags {flags:#04x}; update wcompress")
        self.entries = tuple(self._parse_index(index, index_offset))
        self._of: dict[tuple[str, int], list[SectionEntry]] = {}
        for entry in self.entries:
            self._of.setdefault((entry.name, entry.group), []).append(entry)

    def _parse_index(self, index: bytes, index_offset: int) -> Iterator[SectionEntry]:
        cursor = ByteCursor(index, f"{self.path}: index")
        offset = _HEADER.size
        for _ in range(cursor.varint()):
            number, n_bytes = cursor.varint(), cursor.varint()
            group = 0
            if self.version >= _GROUPED_VERSION:
                group, number = number >> _GROUP_SHIFT, number & ((1 << _GROUP_SHIFT) - 1)
            (crc32,) = struct.unpack("<I", cursor.take(4))
            if number not in _SECTION_NAMES:
                raise ArchiveError(f"{self.path}: unknown section {number}; update wcompress")
            yield SectionEntry(_SECTION_NAMES[number], group, offset, n_bytes, crc32)
            offset += n_bytes
        cursor.finish()
        if offset != index_offset:
            raise ArchiveError(
                f"{self.path}: sections end at byte {offset}, the index is at {index_offset}; the archive is damaged"
            )

    @property
    def section_bytes(self) -> dict[str, int]:
        """Bytes by section name; `header` is all that is no section. They add up to `n_bytes`."""
        sizes: dict[str, int] = {}
        for entry in self.entries:
            sizes[entry.name] = sizes.get(entry.name, 0) + entry.n_bytes
        return {"header": self.n_bytes - sum(sizes.values()), **sizes}

    def section(self, name: str, group: int = 0) -> bytes:
        """The payload of a group's section, its checksum compared; empty when the archive has none of that name.

        Raises:
            ChecksumMismatch: its bytes have changed.
        """
        return b"".join(b"".join(self._chunks(entry)) for entry in self._of.get((name, group), ()))

    def check(self) -> None:
        """Compare the checksum of every section, a megabyte at a time.

        Raises:
            ChecksumMismatch: bytes of a section have changed.
        """
        for entry in self.entries:
            for _ in self._chunks(entry):
                pass

    def _chunks(self, entry: SectionEntry) -> Iterator[bytes]:
        self._file.seek(entry.offset)
        crc32, left = 0, entry.n_bytes
        while left:
            chunk = self._file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise Truncated(f"{self.path}: the file became shorter while it was read; get a fresh copy")
            crc32 = zlib.crc32(chunk, crc32)
            left -= len(chunk)
            yield chunk
        if crc32 != entry.crc32:
            raise ChecksumMismatch(
                f"{self.path}: section {entry.name} ({entry.n_bytes} bytes at offset {entry.offset}) is damaged;"
                " get a fresh copy"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> ArchiveReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
