"""Small and sensitive tensors, biases, norms and their statistics: kept so precisely that they never ruin a model.

Each tensor is a row of whole numbers: multiples of a step about a centre; 32nds of an octave; or floats rounded to a
few mantissa bits. Short tensors' numbers are under a Rice or an Exp-Golomb code, long ones' are a unit
(`codec.units`). What is too small or too odd for any is stored as it is. docs/format.md, "fine", is the norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.quantiser.step_scales import quarter_octaves
from wcompress.codec.storage.dtypes import entry_dtype, round_to_dtype, tensor_bytes, tensor_from_bytes
from wcompress.codec.storage.fields import words_of
from wcompress.codec.storage.units import MAX_GROWTH, pack_words, unpack_words
from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError
from wcompress.fidelity import as_bytes
from wcompress.wire import ByteCursor, encode_varint

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

_VERBATIM, _UNIFORM, _LOGARITHMIC, _EXTENDED = range(4)
_EXACT, _STEPS, _HALF_STEPS = range(3)  # contents of a block
_FIRST_EXTENDED_VERSION = 5
_LOG_STEPS = 32
_MANTISSA, _BIAS = 23, 127  # of float32
_NO_MANTISSA = 31  # in place of a number of mantissa bits: multiples of a step plus half a step
_FRACTION_BITS = 30
# round(2^30 · 2^(f/32)), f = 0 … 31; part of the format.
_OCTAVE = (
    1073741824, 1097253708, 1121280436, 1145833280, 1170923762, 1196563654, 1222764986, 1249540052,
    1276901417, 1304861917, 1333434672, 1362633090, 1392470869, 1422962010, 1454120821, 1485961921,
    1518500250, 1551751076, 1585730000, 1620452965, 1655936265, 1692196547, 1729250827, 1767116489,
    1805811301, 1845353420, 1885761398, 1927054196, 1969251188, 2012372174, 2056437387, 2101467502,
)  # fmt: skip
_MAX_CODE = 1 << 30
_MAX_EXPONENT = 1 << 16
_LONGEST_IN_BITS = 4096  # elements
_SHORTEST_BLOCK = 2048
_FINER_STEPS = 60  # quarter octaves below the step that should do
_RELATIVE_BITS = 5  # mantissa bits that what acts relatively keeps at least
_GAINS = ("weight", "gamma", "gain", "scale", "g")


class _Way(NamedTuple):
    # A way of coding a tensor: what it takes in bits, and how to write that; a block goes behind all bits.
    n_bits: int
    write: Callable[[BitWriter], None]
    block: bytes = b""


def encode_fine(tensors: Mapping[str, torch.Tensor], sqnr_db: float) -> bytes:
    """The `fine` section.

    The sign of every element is kept, and what is not zero does not become zero. Of tensors that act by their relative
    size (variances and other statistics, gains: none negative, and named so, or with zeros, or of a wide range), each
    element is within 1/64 of itself, and the error's energy at least `sqnr_db` below the tensor's. Of others it is as
    far below that of the deviations from the mean.

    Args:
        tensors: finite float tensors, contiguous, on the CPU.
        sqnr_db: see above, dB, up to about 90; what cannot be kept so by rounding is kept exactly.
    """
    out = BitWriter()
    blocks: list[bytes] = []
    for name, tensor in tensors.items():
        way = min(_ways(name, tensor, sqnr_db), key=lambda way: way.n_bits)
        way.write(out)
        blocks.append(way.block)
    bits = out.to_bytes()
    return b"".join([encode_varint(len(bits)), bits, *blocks]) if tensors else b""


def decode_fine(data: bytes, entries: Sequence[TensorEntry], version: int = 5) -> dict[str, torch.Tensor]:
    """Undo `encode_fine`.

    Args:
        data: the section.
        entries: the fine tensors, in order.
        version: of the archive's format.

    Raises:
        ArchiveError: the section does not hold what the entries say.
    """
    extended = version >= _FIRST_EXTENDED_VERSION
    if extended and not entries:
        if data:
            raise ArchiveError(f"fine: {len(data)} bytes for no tensors; the archive is damaged")
        return {}
    cursor = ByteCursor(data, "fine")
    bits = cursor.take(cursor.varint()) if extended else cursor.take(len(data))
    reader = BitReader(bits, "fine")
    tensors: dict[str, torch.Tensor] = {}
    for entry in entries:
        tensors[entry.name] = _decode_tensor(reader, 8 * len(bits), cursor if extended else None, entry)
    reader.finish()
    cursor.finish()
    return tensors


def _ways(name: str, tensor: torch.Tensor, sqnr_db: float) -> Iterator[_Way]:
    data = tensor_bytes(tensor)
    n = tensor.numel()
    if n <= _LONGEST_IN_BITS:
        yield _Way(2 + 8 * len(data), lambda out: _write_verbatim(out, data))
    if n <= 2:
        return
    values = tensor.double().numpy().reshape(-1)
    goal = _Goal(tensor, values, sqnr_db, _acts_relatively(name, values))
    lossy: list[_Way] = []
    if not goal.relative:
        lossy += _uniform(goal, 0.0)
    elif n <= _LONGEST_IN_BITS and values.min() > 0:
        lossy += _logarithmic(goal)
    if n <= _LONGEST_IN_BITS and not goal.relative and (values != 0).all():
        lossy += _uniform(goal, 0.5)
    if n <= _LONGEST_IN_BITS or not lossy:
        lossy += _rounded(goal)
    yield from lossy
    few = len(np.unique(values[:: -(-n // _LONGEST_IN_BITS)])) <= min(n, _LONGEST_IN_BITS) // 2
    if few or (n > _LONGEST_IN_BITS and not lossy):
        yield _block(_EXACT, _exact(tensor), n)


def _acts_relatively(name: str, values: Floats) -> bool:
    # Variances act through their root's inverse, whatever their size, and gains as factors.
    if values.min() < 0 or values.max() == 0:
        return False
    last = name.rsplit(".", 1)[-1]
    return "var" in last or last in _GAINS or values.max() > 64 * values.min()


class _Goal:
    # A tensor, and how near to it a restored one must be.
    def __init__(self, tensor: torch.Tensor, values: Floats, sqnr_db: float, relative: bool) -> None:
        self.dtype = tensor.dtype
        self.values = values
        self.relative = relative
        self.sqnr_db = sqnr_db
        self.largest = float(np.abs(values).max())
        # Scaled, so that squares exist.
        self._unit = self.largest or 1.0
        scaled = values / self._unit
        size = math.sqrt(float(np.mean(scaled**2)))
        # Largest elements count, however many others there are, but an error never exceeds what is there.
        spread = size if relative else max(float(scaled.std()), min(1 / 256, size))
        self.spread = spread * self._unit
        self.allowed = len(values) * spread**2 * 10 ** (-sqnr_db / 10)

    def noise(self, restored: torch.Tensor) -> float:
        """Energy of the error, in the units of `allowed`."""
        return float((((restored.double().numpy() - self.values) / self._unit) ** 2).sum())

    def met_by(self, restored: torch.Tensor) -> bool:
        """Whether signs, zeros and energy are kept."""
        other = restored.double().numpy()
        kept = np.array_equal(np.signbit(other), np.signbit(self.values))
        return kept and np.array_equal(other != 0, self.values != 0) and self.noise(restored) <= self.allowed


def _exact(tensor: torch.Tensor) -> bytes:
    kind, layout = words_of(tensor.dtype)
    return pack_words(as_bytes(tensor.contiguous()).numpy().view(kind), layout, tuple(tensor.shape))


def _block(content: int, body: bytes, n_elements: int) -> _Way:
    body = bytes([content]) + body
    body += bytes(max(0, -(-8 * n_elements // MAX_GROWTH) - len(body)))
    block = encode_varint(len(body)) + body
    return _Way(3 + 8 * len(block), lambda out: out.write(_EXTENDED << 1 | 1, 3), block)


def _write_verbatim(out: BitWriter, data: bytes) -> None:
    out.write(_VERBATIM, 2)
    for byte in data:
        out.write(byte, 8)


def _uniform(goal: _Goal, half: float) -> Iterator[_Way]:
    """Multiples of a step; or, if half is 0.5, halfway between them, where nothing is 0."""
    values = goal.values
    if goal.largest and not 1e-100 < goal.largest < 1e100:
        return
    # Uniform error of a step has variance step²/12; the step is a power of 2^(1/4).
    step = (goal.spread or 1.0) * math.sqrt(12) * 10 ** (-goal.sqnr_db / 20)  # all zero: any step will do
    coarsest = math.floor(4 * math.log2(step)) + 2
    for exponent in range(coarsest, coarsest - _FINER_STEPS, -1):
        steps = values / quarter_octaves(exponent)
        if np.abs(steps).max() >= _MAX_CODE:
            return
        nearest = np.floor(steps) if half else np.rint(steps)
        codes = np.where((nearest == 0) & (values != 0) & (not half), np.sign(values), nearest).astype(np.int64)
        if goal.met_by(round_to_dtype(_multiples(codes, half, exponent), goal.dtype)):
            break
    else:
        return
    if len(values) >= _SHORTEST_BLOCK:
        lowest = int(codes.min())
        head = encode_varint(zigzag(exponent)) + encode_varint(zigzag(lowest))
        body = head + pack_words((codes - lowest).astype("<u4"), None, (len(codes),))
        yield _block(_HALF_STEPS if half else _STEPS, body, len(codes))
    if len(values) <= _LONGEST_IN_BITS:
        centre = int(np.rint(np.median(codes)))
        bits = BitWriter()
        bits.write(_EXTENDED << 6 | _NO_MANTISSA if half else _UNIFORM, 8 if half else 2)
        bits.write_exp_golomb(zigzag(exponent), 4)
        bits.write_exp_golomb(zigzag(centre), 2)
        yield _coded(bits, _zigzags(codes - centre))


def _logarithmic(goal: _Goal) -> Iterator[_Way]:
    codes = np.rint(_LOG_STEPS * np.log2(goal.values)).astype(np.int64)
    lowest = int(codes.min())
    if not goal.met_by(round_to_dtype(_powers(codes), goal.dtype)):
        return
    head = BitWriter()
    head.write(_LOGARITHMIC, 2)
    head.write_exp_golomb(zigzag(lowest), 6)
    yield _coded(head, codes - lowest)


def _rounded(goal: _Goal) -> Iterator[_Way]:
    """Floats of the fewest mantissa bits that do."""
    sizes = np.abs(goal.values[goal.values != 0])
    if len(sizes) and not (sizes.min() >= 2.0**-126 and sizes.max() <= float(np.finfo(np.float32).max)):
        return
    # Floats of m mantissa bits are about 13.6 + 6.02·m dB from what they round.
    energy = float(np.sum((sizes / (goal.largest or 1.0)) ** 2))
    wanted_db = 10 * math.log10(energy / goal.allowed) if goal.allowed else 0.0
    lowest = _RELATIVE_BITS if goal.relative else 0
    for n_kept in range(min(max(lowest, math.floor((wanted_db - 16) / 6.02)), _MANTISSA), _MANTISSA + 1):
        patterns = _round_patterns(goal.values.astype(np.float32), n_kept)
        restored = round_to_dtype(_from_patterns(patterns, n_kept), goal.dtype)
        if goal.met_by(restored):
            break
    else:
        return
    if len(patterns) >= _SHORTEST_BLOCK:
        yield _block(_EXACT, _exact(restored), len(patterns))
    if len(patterns) <= _LONGEST_IN_BITS:
        yield from _rounded_in_bits(patterns, n_kept)


def _rounded_in_bits(patterns: Longs, n_kept: int) -> Iterator[_Way]:
    signs, places = patterns >> (8 + n_kept), patterns & ((1 << (8 + n_kept)) - 1)
    zero = places == 0
    if zero.all():
        return
    for folded in (False, True):
        centre = int(np.rint(np.median(places[~zero]))) if folded else int(places[~zero].min())
        codes = np.where(zero, centre, places) - centre
        codes = _zigzags(codes) if folded else codes
        if zero.any():
            codes = np.where(zero, 0, codes + 1)
        head = BitWriter()
        head.write(_EXTENDED << 1, 3)
        head.write(n_kept, 5)
        head.write(bool(signs.any()), 1)
        head.write(bool(zero.any()), 1)
        head.write(folded, 1)
        head.write_exp_golomb(zigzag(centre - (_BIAS << n_kept)), 6)
        yield _coded(head, codes, signs if signs.any() else signs[:0])


def _round_patterns(values: npt.NDArray[np.float32], n_kept: int) -> Longs:
    """Sign, exponent and `n_kept` mantissa bits of float32s, rounded to nearest, ties to even, as integers."""
    n_cut = _MANTISSA - n_kept
    patterns = values.view(np.uint32).astype(np.int64)
    if n_cut == 0:
        return patterns
    # The sign stays: no finite number's magnitude rounds beyond that of infinity.
    return patterns + (1 << (n_cut - 1)) - 1 + (patterns >> n_cut & 1) >> n_cut


def _from_patterns(patterns: Longs, n_kept: int) -> Floats:
    return (patterns << (_MANTISSA - n_kept)).astype(np.uint32).view(np.float32).astype(np.float64)


def _zigzags(codes: Longs) -> Longs:
    return np.where(codes < 0, -2 * codes - 1, 2 * codes)


def _unzigzags(codes: Longs) -> Longs:
    return np.where(codes & 1, -(codes + 1) >> 1, codes >> 1)


def _coded(head: BitWriter, codes: Longs, signs: Longs | None = None) -> _Way:
    # The cheapest of the two codes and their parameters, named in five bits; then a bit for each sign.
    largest = int(codes.max())
    costs: dict[tuple[int, int], int] = {}
    for k in range(16):
        upper = codes >> k
        if largest >> k < 32:
            costs[0, k] = int(upper.sum()) + len(codes) * (1 + k)
        # Of a float64 the exponent is the bit length.
        costs[1, k] = int((2 * np.frexp((upper + 1).astype(np.float64))[1].astype(np.int64) - 1 + k).sum())
    kind, k = min(costs, key=lambda choice: costs[choice])

    def write(out: BitWriter) -> None:
        out.extend(head)
        out.write(kind, 1)
        out.write(k, 4)
        for code in codes.tolist():
            if kind:
                out.write_exp_golomb(code, k)
            else:
                out.write_rice(code, k)
        for sign in () if signs is None else signs.tolist():
            out.write(sign, 1)

    return _Way(head.n_bits + 5 + costs[kind, k] + (0 if signs is None else len(signs)), write)


def _decode_tensor(data: BitReader, n_bits: int, blocks: ByteCursor | None, entry: TensorEntry) -> torch.Tensor:
    dtype = entry_dtype(entry)
    kind = data.read(2)
    if kind == _EXTENDED and blocks is None:
        raise ArchiveError(f"tensor {entry.name!r}: unknown kind {kind}; the archive is damaged")
    if kind == _EXTENDED and data.read(1) and blocks is not None:
        return _decode_block(blocks, entry)
    # An element takes at least a bit, so the section's length bounds what is allocated.
    if entry.numel > n_bits:
        raise ArchiveError(f"tensor {entry.name!r}: more elements than bits; the archive is damaged")
    if kind == _VERBATIM:
        content = bytes(data.read(8) for _ in range(entry.numel * dtype.itemsize))
        return tensor_from_bytes(content, dtype, entry.shape)
    n_kept = data.read(5) if kind == _EXTENDED else 0
    if kind == _UNIFORM or n_kept == _NO_MANTISSA:
        exponent = _checked(unzigzag(data.read_exp_golomb(4)), _MAX_EXPONENT, entry)
        centre = _checked(unzigzag(data.read_exp_golomb(2)), 2 * _MAX_CODE, entry)
        half = 0.5 if n_kept else 0.0
        values = _multiples(_unzigzags(_read_codes(data, entry)) + centre, half, exponent)
    elif kind == _LOGARITHMIC:
        lowest = _checked(unzigzag(data.read_exp_golomb(6)), _MAX_EXPONENT, entry)
        values = _powers(_read_codes(data, entry) + lowest)
    else:
        values = _read_rounded(data, n_kept, entry)
    return round_to_dtype(values.reshape(entry.shape), dtype)


def _decode_block(blocks: ByteCursor, entry: TensorEntry) -> torch.Tensor:
    dtype = entry_dtype(entry)
    body = blocks.take(blocks.varint())
    if not 8 * entry.numel <= MAX_GROWTH * len(body) or entry.numel == 0:
        raise ArchiveError(f"tensor {entry.name!r}: {len(body)} bytes are too few; the archive is damaged")
    cursor = ByteCursor(body, f"tensor {entry.name!r}")
    content = cursor.take(1)[0]
    if content == _EXACT:
        kind, layout = words_of(dtype)
        words = unpack_words(cursor, entry.numel, kind, layout)
        restored = tensor_from_bytes(words.tobytes(), dtype, entry.shape)
    elif content in (_STEPS, _HALF_STEPS):
        exponent = _checked(unzigzag(cursor.varint()), _MAX_EXPONENT, entry)
        lowest = _checked(unzigzag(cursor.varint()), 2 * _MAX_CODE, entry)
        codes = unpack_words(cursor, entry.numel, np.dtype("<u4"), None).astype(np.int64) + lowest
        half = 0.5 if content == _HALF_STEPS else 0.0
        restored = round_to_dtype(_multiples(codes, half, exponent).reshape(entry.shape), dtype)
    else:
        raise ArchiveError(f"tensor {entry.name!r}: a block of unknown content {content}; the archive is damaged")
    if cursor.take(cursor.remaining).strip(b"\0"):
        raise ArchiveError(f"tensor {entry.name!r}: bytes behind its last; the archive is damaged")
    return restored


def _read_rounded(data: BitReader, n_kept: int, entry: TensorEntry) -> Floats:
    signed, has_zeros, folded = data.read(1), data.read(1), data.read(1)
    if n_kept > _MANTISSA:
        raise ArchiveError(f"tensor {entry.name!r}: {n_kept} mantissa bits; the archive is damaged")
    centre = unzigzag(data.read_exp_golomb(6)) + (_BIAS << n_kept)
    codes = _read_codes(data, entry)
    zero = codes == 0 if has_zeros else np.zeros(len(codes), np.bool_)
    codes = codes - has_zeros
    # Before it is a pattern: a number that no tensor has may be too large for one.
    places = np.where(zero, 0, (_unzigzags(codes) if folded else codes) + _checked(centre, 1 << 32, entry))
    if len(places) and not 0 <= places.min() <= places.max() <= 255 << n_kept:
        raise ArchiveError(f"tensor {entry.name!r}: a number is out of range; the archive is damaged")
    signs = [data.read(1) for _ in range(entry.numel)] if signed else []
    return _from_patterns(places | (np.array(signs, np.int64) << (8 + n_kept) if signed else 0), n_kept)


def _read_codes(data: BitReader, entry: TensorEntry) -> Longs:
    exp_golomb, k = data.read(1), data.read(4)
    codes = [data.read_exp_golomb(k) if exp_golomb else data.read_rice(k) for _ in range(entry.numel)]
    _checked(max(codes, default=0), 2 * _MAX_CODE, entry)
    return np.array(codes, np.int64)


def _checked(number: int, most: int, entry: TensorEntry) -> int:
    if abs(number) > most:
        raise ArchiveError(f"tensor {entry.name!r}: a number is out of range; the archive is damaged")
    return number


def _multiples(codes: Longs, half: float, exponent: int) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return (codes.astype(np.float64) + half) * quarter_octaves(exponent)


def _powers(codes: Longs) -> Floats:
    """2^(code/32) from constants alone, so that it is the same everywhere; inf beyond float64."""
    with np.errstate(over="ignore"):
        octaves = np.array(_OCTAVE, np.float64)[codes % _LOG_STEPS]
        powers: Floats = np.ldexp(octaves, codes // _LOG_STEPS - _FRACTION_BITS)
    return powers
