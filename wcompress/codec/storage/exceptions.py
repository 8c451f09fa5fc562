"""Single elements kept exactly beside a tensor that is coded with loss: NaN, infinities, outliers.

Positions and values are units (`codec.units`); where the positions are, is written in the shortest of three ways.
docs/format.md, "Exceptions", is the norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.storage.dtypes import entry_dtype, tensor_from_bytes
from wcompress.codec.storage.fields import words_of
from wcompress.codec.storage.units import MAX_GROWTH, pack_words, unpack_words
from wcompress.entropy.arrays import Kind, Words, pack_bits, unpack_bits
from wcompress.errors import ArchiveError
from wcompress.fidelity import as_bytes
from wcompress.wire import ByteCursor, encode_varint

Positions = npt.NDArray[np.int64]

_GAPS, _BITMAP, _RUNS = range(3)
_POSITION_BYTES = 8


def without_exceptions(tensor: torch.Tensor, places: Positions) -> torch.Tensor:
    """A copy of a contiguous CPU tensor with zeros at flat positions, int64 `[k]`."""
    cleaned = tensor.clone()
    as_bytes(cleaned).numpy().reshape(-1, tensor.element_size())[places] = 0
    return cleaned


def with_exceptions(tensor: torch.Tensor, places: Positions, values: torch.Tensor) -> torch.Tensor:
    """The tensor with these elements in their places; changes it.

    Args:
        tensor: contiguous, on the CPU.
        places: flat positions, int64 `[k]`.
        values: of the tensor's dtype `[k]`.
    """
    size = tensor.element_size()
    as_bytes(tensor).numpy().reshape(-1, size)[places] = as_bytes(values.contiguous()).numpy().reshape(-1, size)
    return tensor


def encode_exceptions(rows: Sequence[tuple[int, Positions, torch.Tensor]]) -> bytes:
    """The `exceptions` section.

    Args:
        rows: for each tensor that has any: its index in the manifest, in ascending order; ascending flat positions
            `[k]`, k at least 1; and the values `[k]` of the tensor's own dtype, on the CPU.
    """
    parts: list[bytes] = []
    following = 0
    for index, positions, values in rows:
        kind, layout = words_of(values.dtype)
        words = as_bytes(values.contiguous()).numpy().view(kind)
        body = min(_placed(positions), key=len) + pack_words(words, layout, (len(positions),))
        n_bytes = len(positions) * (_POSITION_BYTES + values.element_size())
        body += bytes(max(0, -(-n_bytes // MAX_GROWTH) - len(body)))
        parts += [encode_varint(index - following), encode_varint(len(positions)), encode_varint(len(body)), body]
        following = index + 1
    return b"".join(parts)


def decode_exceptions(
    data: bytes, entries: Sequence[TensorEntry], version: int = 5
) -> dict[int, tuple[Positions, torch.Tensor]]:
    """Undo `encode_exceptions`.

    Args:
        data: the section.
        entries: all of the manifest.
        version: of the archive's format.

    Returns:
        Index in the manifest → positions int64 `[k]`, values `[k]` of the entry's dtype.

    Raises:
        ArchiveError: the section does not hold what the entries say.
    """
    if version < 5 and data:
        raise ArchiveError(f"exceptions: none in archives of version {version}; the archive is damaged")
    cursor = ByteCursor(data, "exceptions")
    found: dict[int, tuple[Positions, torch.Tensor]] = {}
    following = 0
    while cursor.remaining:
        index = following + cursor.varint()
        if index >= len(entries) or entries[index].kind != "coded":
            raise ArchiveError(f"exceptions: of tensor {index}, which can have none; the archive is damaged")
        n_values, body = cursor.varint(), cursor.take(cursor.varint())
        found[index] = _decode(entries[index], n_values, body)
        following = index + 1
    return found


def _placed(positions: Positions) -> Iterator[bytes]:
    # The ways of writing the positions that are not plainly too long.
    yield bytes([_GAPS]) + _pack_gaps(np.diff(positions, prepend=-1) - 1)
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    if len(starts) <= len(positions) // 2:
        ends = np.append(starts[1:], len(positions))
        after = np.append(0, positions[starts[1:] - 1] + 1)
        gaps, lengths = positions[starts] - after, ends - starts
        yield bytes([_RUNS]) + encode_varint(len(starts)) + _pack_gaps(gaps) + _pack_gaps(lengths)
    if positions[-1] < 64 * len(positions):
        bitmap = np.zeros(int(positions[-1]) + 1, np.bool_)
        bitmap[positions] = True
        yield bytes([_BITMAP]) + encode_varint(len(bitmap)) + pack_bits(bitmap)


def _pack_gaps(gaps: Positions) -> bytes:
    # A byte: how many each takes; a unit.
    size = next(size for size in (1, 2, 4, 8) if int(gaps.max()) < 1 << 8 * size)
    return bytes([size]) + pack_words(gaps.astype(f"<u{size}"), None, (len(gaps),))


def _unpack_gaps(cursor: ByteCursor, n_gaps: int) -> Positions:
    size = cursor.take(1)[0]
    if size not in (1, 2, 4, 8):
        raise ArchiveError(f"exceptions: gaps of {size} bytes; the archive is damaged")
    kind: Kind = np.dtype(f"<u{size}")
    gaps: Words = unpack_words(cursor, n_gaps, kind, None)
    if int(gaps.max()) >= 1 << 62:
        raise ArchiveError("exceptions: a gap is too large; the archive is damaged")
    return gaps.astype(np.int64)


def _decode(entry: TensorEntry, n_values: int, body: bytes) -> tuple[Positions, torch.Tensor]:
    dtype = entry_dtype(entry)
    if not 1 <= n_values <= entry.numel or n_values * (_POSITION_BYTES + dtype.itemsize) > MAX_GROWTH * len(body):
        raise ArchiveError(f"tensor {entry.name!r}: {n_values} exceptions; the archive is damaged")
    cursor = ByteCursor(body, f"exceptions of tensor {entry.name!r}")
    positions = _read_positions(cursor, n_values, entry)
    kind, layout = words_of(dtype)
    words = unpack_words(cursor, n_values * dtype.itemsize // kind.itemsize, kind, layout)
    if cursor.take(cursor.remaining).strip(b"\0"):
        raise ArchiveError(f"tensor {entry.name!r}: bytes behind its last exception; the archive is damaged")
    return positions, tensor_from_bytes(words.tobytes(), dtype, (n_values,))


def _read_positions(cursor: ByteCursor, n_values: int, entry: TensorEntry) -> Positions:
    form = cursor.take(1)[0]
    if form == _GAPS:
        gaps = _unpack_gaps(cursor, n_values)
        # In float64 first: what does not fit int64 is far beyond any tensor.
        if gaps.sum(dtype=np.float64) + n_values < 2.0**62:
            positions = np.cumsum(gaps + 1) - 1
        else:
            positions = np.array([entry.numel])
    elif form == _RUNS:
        n_runs = cursor.varint()
        if not 1 <= n_runs <= n_values:
            raise ArchiveError(f"tensor {entry.name!r}: {n_runs} runs of exceptions; the archive is damaged")
        gaps, lengths = _unpack_gaps(cursor, n_runs), _unpack_gaps(cursor, n_runs)
        if lengths.min() < 1 or lengths.sum(dtype=np.float64) != n_values or gaps.sum(dtype=np.float64) > entry.numel:
            raise ArchiveError(f"tensor {entry.name!r}: impossible runs of exceptions; the archive is damaged")
        positions = np.arange(n_values) + np.repeat(np.cumsum(gaps), lengths)
    elif form == _BITMAP:
        n_bits = cursor.varint()
        if not n_values <= n_bits <= min(64 * n_values, entry.numel):
            raise ArchiveError(f"tensor {entry.name!r}: a map of {n_bits} exceptions; the archive is damaged")
        positions = np.flatnonzero(unpack_bits(cursor, n_bits))
    else:
        raise ArchiveError(f"tensor {entry.name!r}: exceptions of unknown form {form}; the archive is damaged")
    if len(positions) != n_values or positions[-1] >= entry.numel or (np.diff(positions) < 1).any():
        raise ArchiveError(f"tensor {entry.name!r}: exceptions in impossible places; the archive is damaged")
    return positions.astype(np.int64)
