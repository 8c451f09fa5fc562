"""Arrays of words in their best form: stored, by zstd, by planes, under frequency tables, as a palette.

An *array* of n words of w bytes is a byte, its form, and:

    0 stored    n·w bytes, words little-endian
    1 zstd      varint length, a zstd frame of so many bytes that restores to the bytes of form 0; if the frame states
                its content's size, it states n·w; n·w is at most 32,768 times the length
    2 fill      one word, n times
    3 planes    w > 1: w arrays of n bytes, the words' lowest bytes first
    4 coded     w = 1: varint length; so many bytes: a table (no special symbol, octave 0) filled with zero bits to
                whole bytes, then a stream of the n symbols under it, each a byte's value
    5 palette   only where stated: u8 s, 0 or 1; varint m, 1 to 65,536 and at most n; array of m words of w bytes; array
                of n indices into the m words, of 1 byte if m ≤ 256 and of 2 otherwise; if s is 1, array of bits: the
                signs of the n words. A word is the one at its index, with its highest bit set if its sign is 1.

An *array of bits* is an array of ⌈n/8⌉ bytes: eight bits a byte, the highest bit first, filled with zeros. An *array of
numbers of v bits* is ⌊v/8⌋ arrays of n bytes, the numbers' lowest bytes first, and, unless 8 divides v, an array of
bits: the v mod 8 highest bits of each number, one number after the other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import zstandard

from wcompress.compiled import compiled
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.entropy.histogram import ArrayDecoder, Histogram, encode_arrays, entropy_bits, fit_histogram
from wcompress.errors import ArchiveError
from wcompress.wire import ByteCursor, encode_varint

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger]
Kind = np.dtype[np.unsignedinteger]

STORED, ZSTD, FILL, PLANES, CODED, PALETTE = range(6)
MAX_GROWTH = 32768  # a zstd block of at least 4 bytes restores at most 128 KiB
_MAX_PALETTE = 1 << 16
_THOROUGH_ZSTD = 1 << 16  # bytes up to which zstd may take its time
_PATIENT_ZSTD = 1 << 21  # and up to which it may where nothing else does
_PIECES, _PIECE = 16, 1 << 12
_RANDOM_LACKS = 300  # bits of the pieces
_HURRIED_LACKS = 0.16  # bits of a byte
_BYTE: Kind = np.dtype(np.uint8)


def pack_array(words: Words, *, hurried: bool = False) -> bytes:
    """Words as an array, in the smallest form.

    Args:
        words: little-endian uint8, uint16, uint32 or uint64 `[n]`.
        hurried: bytes that pieces of them show to take hardly less in another form may be stored.
    """
    size = words.itemsize
    if len(words) > 1 and words[0] == words[-1] and (words == words[0]).all():
        return bytes([FILL]) + words[:1].tobytes()
    data = words.tobytes()
    best = bytes([STORED]) + data
    if size == 1 and _looks_random(words, hurried):
        return best
    if size > 1:
        planes = np.frombuffer(data, np.uint8).reshape(-1, size)
        best = min(best, bytes([PLANES]) + b"".join(pack_array(planes[:, k].copy()) for k in range(size)), key=len)
    elif len(words):
        counts = np.bincount(words, minlength=256)
        if sum(entropy_bits(counts)) / 8 < len(words):
            table = fit_histogram(counts, 0)
            out = BitWriter()
            table.write(out)
            body = out.to_bytes() + encode_arrays([(words.astype(np.int32) - table.shift, table)])
            best = min(best, bytes([CODED]) + encode_varint(len(body)) + body, key=len)
    packed = pack_zstd(data, len(best), quick_zstd_bytes(data))
    return min(best, packed, key=len) if packed else best


def pack_zstd(data: bytes, limit: int, quick: int) -> bytes | None:
    """An array in form 1, or None where it is unlikely to be shorter than `limit` bytes.

    Args:
        data, limit, quick: the words' bytes; see above; what `quick_zstd_bytes` says of the data.
    """
    if len(data) > 4096 and (quick > 0.995 * len(data) or quick > 1.05 * limit):
        return None
    frame = _zstd(data, 19) if len(data) <= _THOROUGH_ZSTD else None
    if frame is None:
        middle = len(data) // 2
        piece = data[middle : middle + _THOROUGH_ZSTD]
        if quick * len(_zstd(piece, 12)) > limit * len(_zstd(piece, 3)):
            return None
        frame = _zstd(data, 12)
        if len(frame) < 0.95 * limit and len(data) <= _PATIENT_ZSTD:
            frame = min(frame, _zstd(data, 19), key=len)
    return bytes([ZSTD]) + encode_varint(len(frame)) + frame


def _zstd(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_content_size=False).compress(data)


def _looks_random(data: Bytes, hurried: bool) -> bool:
    """Whether pieces of much data show neither a value that is more frequent than others, nor anything to zstd."""
    if len(data) < 2 * _PIECES * _PIECE:
        return False
    some = pieces(data, hurried=hurried)
    lacks = len(some) * _HURRIED_LACKS if hurried else _RANDOM_LACKS
    counts = np.bincount(np.frombuffer(some, np.uint8), minlength=256)
    # Random bytes show about 128 · log₂ e bits less than there are.
    return entropy_bits(counts)[0] > 8 * len(some) - lacks and quick_zstd_bytes(some) >= len(some)


def pieces(words: Words, *, hurried: bool = False) -> bytes:
    """64 KiB, or 16 KiB, from all over words; all of them where they take no more."""
    size = _PIECE // words.itemsize // (4 if hurried else 1)
    if len(words) <= _PIECES * size:
        return words.tobytes()
    starts = (k * (len(words) - size) // (_PIECES - 1) for k in range(_PIECES))
    return b"".join(words[start : start + size].tobytes() for start in starts)


def quick_zstd_bytes(data: bytes) -> int:
    """Length of a zstd frame made in haste, 0 for little data."""
    return len(zstandard.ZstdCompressor(level=3).compress(data)) if len(data) > 4096 else 0


def unpack_array(cursor: ByteCursor, n_words: int, kind: Kind) -> Words:
    """Undo `pack_array`; the result may be read-only.

    Args:
        cursor: at the array.
        n_words: its words; memory for a few times as many is used, whatever the bytes say.
        kind: little-endian unsigned dtype of a word.

    Raises:
        ArchiveError: the bytes are malformed.
    """
    form, size = cursor.take(1)[0], kind.itemsize
    if form == STORED:
        return np.frombuffer(cursor.take(n_words * size), kind)
    if form == ZSTD:
        return np.frombuffer(_unpack_frame(cursor.take(cursor.varint()), n_words * size), kind)
    if form == FILL:
        return np.full(n_words, np.frombuffer(cursor.take(size), kind)[0], kind)
    if form == PLANES and size > 1:
        planes = np.empty((n_words, size), np.uint8)
        for k in range(size):
            planes[:, k] = unpack_array(cursor, n_words, _BYTE)
        return planes.reshape(-1).view(kind)
    if form == CODED and size == 1:
        body = cursor.take(cursor.varint())
        bits = BitReader(body, "array")
        table = Histogram.read(bits)
        if table.first < 0 or table.first + len(table.levels) > 256:
            raise ArchiveError(f"array: {len(table.levels)} values from {table.first}; the archive is damaged")
        decoder = ArrayDecoder(body[-(-bits.position // 8) :], "array")
        return (decoder.take(n_words, table) + table.shift).astype(np.uint8)
    raise ArchiveError(f"array: unknown form {form} of {size}-byte words; the archive is damaged")


def _unpack_frame(frame: bytes, n_bytes: int) -> bytes:
    try:
        # zstandard would allocate what the frame states, however much.
        stated = zstandard.frame_content_size(frame)
        if n_bytes > MAX_GROWTH * len(frame) or stated not in (-1, n_bytes):
            raise ArchiveError(f"array: {n_bytes} bytes cannot be restored; the archive is damaged")
        data = bytes(zstandard.ZstdDecompressor().decompress(frame, max_output_size=n_bytes)) if n_bytes else b""
    except zstandard.ZstdError as error:
        raise ArchiveError(f"array: {error}; the archive is damaged") from error
    if len(data) != n_bytes:
        raise ArchiveError(f"array: {n_bytes} bytes expected, {len(data)} found; the archive is damaged")
    return data


def pack_bits(bits: npt.NDArray[np.bool_]) -> bytes:
    """Booleans `[n]` as an array of bits."""
    return pack_array(np.packbits(bits))


def unpack_bits(cursor: ByteCursor, n_bits: int) -> Bytes:
    """Undo `pack_bits`: 0 or 1, uint8 `[n_bits]`; errors as for `unpack_array`."""
    return np.unpackbits(unpack_array(cursor, -(-n_bits // 8), _BYTE).astype(np.uint8, copy=False), count=n_bits)


def pack_numbers(values: Words, n_bits: int, *, hurried: bool = False) -> bytes:
    """The lowest `n_bits` bits of each word `[n]`, as an array of numbers; `hurried` as for `pack_array`."""
    raw = values.view(np.uint8).reshape(-1, values.itemsize)
    parts = [pack_array(raw[:, k].copy(), hurried=hurried) for k in range(n_bits // 8)]
    if n_bits % 8:
        bits = np.empty(-(-len(values) * (n_bits % 8) // 8), np.uint8)
        _join_bits(raw[:, n_bits // 8].copy(), n_bits % 8, bits)
        parts.append(pack_array(bits, hurried=hurried))
    return b"".join(parts)


def unpack_numbers(cursor: ByteCursor, n_words: int, n_bits: int, kind: Kind) -> Words:
    """Undo `pack_numbers`: words `[n_words]` of dtype `kind`; errors as for `unpack_array`."""
    words = np.zeros(n_words, kind)
    raw = words.view(np.uint8).reshape(n_words, kind.itemsize)
    for k in range(n_bits // 8):
        raw[:, k] = unpack_array(cursor, n_words, _BYTE)
    if n_bits % 8:
        packed = unpack_array(cursor, -(-n_words * (n_bits % 8) // 8), _BYTE)
        values = np.empty(n_words, np.uint8)
        _split_bits(packed.astype(np.uint8), n_bits % 8, values)
        raw[:, n_bits // 8] = values
    return words


@compiled()
def _join_bits(values: Bytes, n_bits: int, out: Bytes) -> None:
    # The lowest bits of each value, one after the other, the highest bit first; 1 to 7 each.
    mask = (1 << n_bits) - 1
    held, n_held, at = 0, 0, 0
    for i in range(len(values)):
        held = held << n_bits | (values[i] & mask)
        n_held += n_bits
        if n_held >= 8:
            n_held -= 8
            out[at] = held >> n_held & 0xFF
            held &= 0xFF
            at += 1
    if n_held:
        out[at] = held << (8 - n_held) & 0xFF


@compiled()
def _split_bits(packed: Bytes, n_bits: int, values: Bytes) -> None:
    # Undo `_join_bits`.
    mask = (1 << n_bits) - 1
    held, n_held, at = 0, 0, 0
    for i in range(len(values)):
        if n_held < n_bits:
            held = (held & 0xFF) << 8 | packed[at]
            n_held += 8
            at += 1
        n_held -= n_bits
        values[i] = held >> n_held & mask


def _n_distinct(values: Words) -> int:
    return 1 + int(np.count_nonzero(np.diff(np.sort(values))))


def runs_repeat(words: Words) -> bool:
    """Whether many runs of three magnitudes occur more than once in the words `[n]`."""
    some = words[: 1 << 17] & words.dtype.type((1 << (8 * words.itemsize - 1)) - 1)
    n_runs = len(some) - 2
    if n_runs <= 0:
        return False
    found = np.zeros(1 << (2 * len(some) - 1).bit_length(), np.uint32)
    return bool(_n_runs(some.astype(np.uint64), found) < 0.8 * n_runs)


@compiled()
def _n_runs(values: npt.NDArray[np.uint64], found: npt.NDArray[np.uint32]) -> int:
    # How many different runs of three there are, by their hashes, which go to one of so many places, a power of 2.
    n_places = len(found)
    n_distinct = 0
    for i in range(len(values) - 2):
        mixed = values[i] * np.uint64(0x9E3779B97F4A7C15)
        mixed = ((mixed ^ mixed >> np.uint64(29)) + values[i + 1]) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = ((mixed ^ mixed >> np.uint64(32)) + values[i + 2]) * np.uint64(0x94D049BB133111EB)
        mark = np.uint32(mixed >> np.uint64(32)) | np.uint32(1)
        place = np.int64(mixed ^ mixed >> np.uint64(40)) & (n_places - 1)
        while found[place] != 0 and found[place] != mark:
            place = (place + 1) & (n_places - 1)
        if found[place] == 0:
            found[place] = mark
            n_distinct += 1
    return n_distinct


def pack_palettes(words: Words) -> list[bytes]:
    """The words `[n]` in form 5, in none, one or several ways that look worth while."""
    size, most = words.itemsize, _MAX_PALETTE if words.itemsize > 2 else _MAX_PALETTE // 8
    sample = words[:: -(-len(words) // (1 << 15))]
    if size == 1 or len(words) < 16 or _n_distinct(sample) > min(0.6 * len(sample), most):
        return []
    sign = words >> (8 * size - 1) != 0
    magnitudes = words & words.dtype.type((1 << (8 * size - 1)) - 1)
    units: list[bytes] = []
    n_found = most + 1
    for signed, values in ((False, words), (True, magnitudes)):
        palette = np.unique(values)
        if len(palette) > min(most, 0.8 * len(words)) or len(palette) > 0.8 * n_found:
            continue
        n_found = len(palette)
        index = np.searchsorted(palette, values)
        orders = [np.arange(len(palette))]
        if len(palette) > 256:
            first = np.empty(len(palette), np.int64)
            first[index[::-1]] = np.arange(len(values) - 1, -1, -1)
            orders.append(np.argsort(first))  # repeated runs show better in order of first occurrence
        for order in orders:
            rank = np.empty(len(order), np.uint8 if len(order) <= 256 else "<u2")
            rank[order] = np.arange(len(order))
            head = bytes([PALETTE, signed]) + encode_varint(len(palette))
            tail = pack_bits(sign) if signed else b""
            units.append(head + pack_array(palette[order]) + pack_array(rank[index]) + tail)
    return units


def unpack_palette(cursor: ByteCursor, n_words: int, kind: Kind) -> Words:
    """Undo one of `pack_palettes`; arguments and errors as for `unpack_array`, but the form is behind the cursor."""
    signed, n_values = cursor.take(1)[0], cursor.varint()
    if signed > 1 or not 1 <= n_values <= min(_MAX_PALETTE, n_words):
        raise ArchiveError(f"palette: {n_values} values; the archive is damaged")
    values = unpack_array(cursor, n_values, kind)
    index = unpack_array(cursor, n_words, np.dtype(np.uint8 if n_values <= 256 else "<u2"))
    if index.max() >= n_values:
        raise ArchiveError(f"palette: an index beyond {n_values} values; the archive is damaged")
    words: Words = values[index]
    if signed:
        words |= unpack_bits(cursor, n_words).astype(kind) << kind.type(8 * kind.itemsize - 1)
    return words
