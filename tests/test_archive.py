"""The container: what is written is read, and nothing else is."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcompress.archive import END_MAGIC, MAGIC, SECTION_IDS, ArchiveReader, ArchiveWriter
from wcompress.errors import ArchiveError, BadMagic, ChecksumMismatch, Truncated, UnsupportedVersion
from wcompress.wire import ByteCursor, encode_varint

DIGEST = bytes(range(32))


def write(path: Path, sections: list[tuple[str, bytes]], version: int = 1) -> dict[str, int]:
    with ArchiveWriter(path, version) as writer:
        for name, payload in sections:
            writer.add(name, payload)
        return writer.finish(DIGEST)


def test_literal_bytes(tmp_path: Path) -> None:
    """docs/format.md, byte by byte."""
    path = tmp_path / "a.wcz"
    write(path, [("manifest", b"ab"), ("raw", b"")])
    index = b"\x02" + b"\x01\x02" + struct.pack("<I", zlib.crc32(b"ab")) + b"\x06\x00" + bytes(4)
    header = b"\x89WCZ\x01\x00"
    length = struct.pack("<I", len(index))
    crc = struct.pack("<I", zlib.crc32(header + index + DIGEST + length))
    assert path.read_bytes() == header + b"ab" + index + DIGEST + length + crc + b"WCZ\n"


def test_section_ids_never_change() -> None:
    expected = {"manifest": 1, "decoder": 2, "latents": 3, "tables": 4, "symbols": 5, "raw": 6, "scales": 7}
    assert {name: SECTION_IDS[name] for name in expected} == expected


def test_round_trip_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.wcz"
    sizes = write(path, [("manifest", b"m" * 300), ("raw", b"one"), ("latents", b""), ("raw", b"two")])
    assert sum(sizes.values()) == path.stat().st_size
    with ArchiveReader(path) as reader:
        assert reader.section_bytes == sizes
        assert reader.section("manifest") == b"m" * 300
        assert reader.section("raw") == b"onetwo"
        assert reader.section("tables") == b""
        assert reader.digest == DIGEST


def test_fixed_overhead(tmp_path: Path) -> None:
    sizes = write(tmp_path / "a.wcz", [(name, b"x" * 9999) for name in ("manifest", "decoder", "latents", "scales")])
    assert sizes["header"] <= 96


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.wcz"
    write(path, [("manifest", b"some text"), ("raw", bytes(20))])
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ArchiveError), ArchiveReader(path) as reader:
                reader.check()


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.wcz"
    write(path, [("manifest", b"some text"), ("raw", bytes(20))])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises((Truncated, BadMagic)):
            ArchiveReader(path)


def test_extra_bytes_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.wcz"
    write(path, [("manifest", b"text")])
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ArchiveError):
        ArchiveReader(path)


def test_newer_version_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.wcz", [], version=200)
    with pytest.raises(UnsupportedVersion, match="version 200"):
        ArchiveReader(tmp_path / "a.wcz")


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wcz"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(BadMagic, match="504b0304"):
        ArchiveReader(path)


@pytest.mark.parametrize(
    "index",
    [
        b"\x01\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(4),  # a section of 2^63 bytes
        b"\x01\x63\x00" + bytes(4),  # an unknown section
        b"\xff\xff\xff\xff\x7f",  # billions of sections
        b"\x00\x00",  # a byte too many
        b"\x01\x01\x05" + bytes(4),  # more bytes than there are
    ],
)
def test_hostile_index_with_a_right_checksum(tmp_path: Path, index: bytes) -> None:
    header = MAGIC + b"\x01\x00"
    length = struct.pack("<I", len(index))
    crc = struct.pack("<I", zlib.crc32(header + index + DIGEST + length))
    path = tmp_path / "a.wcz"
    path.write_bytes(header + index + DIGEST + length + crc + END_MAGIC)
    with pytest.raises(ArchiveError):
        ArchiveReader(path)


def test_damage_names_the_section(tmp_path: Path) -> None:
    path = tmp_path / "a.wcz"
    write(path, [("manifest", b"some text")])
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)
    with ArchiveReader(path) as reader, pytest.raises(ChecksumMismatch, match="section manifest"):
        reader.section("manifest")


@given(st.integers(0, 2**63 - 1))
def test_varints(value: int) -> None:
    cursor = ByteCursor(encode_varint(value), "test")
    assert cursor.varint() == value
    cursor.finish()


def test_varints_are_bounded() -> None:
    with pytest.raises(ArchiveError, match="too long"):
        ByteCursor(b"\xff" * 12, "test").varint()
    with pytest.raises(ValueError, match="negative"):
        encode_varint(-1)
