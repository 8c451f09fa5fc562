"""Small and sensitive tensors, biases, norms and their statistics: kept so precisely that they never ruin a model.

Each tensor is a row of whole numbers under a Rice or an Exp-Golomb code: multiples of a step about a centre, or, for
statistics that are all positive and may span decades, 32nds of an octave. What is too small or too odd for either is
stored as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.elements import entry_dtype, round_to_dtype, tensor_bytes, tensor_from_bytes
from wcompress.codec.manifest import TensorEntry
from wcompress.codec.own_scales import quarter_octaves
from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError

Floats = npt.NDArray[np.float64]

_VERBATIM, _UNIFORM, _LOGARITHMIC = 0, 1, 2
_LOG_STEPS = 32
_FRACTION_BITS = 30
# round(2^30 · 2^(f/32)), f = 0 … 31; part of the format.
_OCTAVE = (
    1073741824, 1097253708, 1121280436, 1145833280, 1170923762, 1196563654, 1222764986, 1249540052,
    1276901417, 1304861917, 1333434672, 1362633090, 1392470869, 1422962010, 1454120821, 1485961921,
    1518500250, 1551751076, 1585730000, 1620452965, 1655936265, 1692196547, 1729250827, 1767116489,
    1805811301, 1845353420, 1885761398, 1927054196, 1969251188, 2012372174, 2056437387, 2101467502,
)  # fmt: skip
_MAX_CODE = 1 << 30


def encode_fine(tensors: Mapping[str, torch.Tensor], sqnr_db: float) -> bytes:
    """The `fine` section.

    Args:
        tensors: finite float tensors, contiguous, on the CPU.
        sqnr_db: the least ratio of a tensor's variance to its error's.
    """
    out = BitWriter()
    for name, tensor in tensors.items():
        _encode_tensor(out, name, tensor, sqnr_db)
    return out.to_bytes()


def decode_fine(data: bytes, entries: Sequence[TensorEntry]) -> dict[str, torch.Tensor]:
    """Undo `encode_fine`.

    Raises:
        ArchiveError: the section does not hold what the entries say.
    """
    reader = BitReader(data, "fine")
    tensors: dict[str, torch.Tensor] = {}
    for entry in entries:
        # An element takes at least a bit, so the section's length bounds what is allocated.
        if entry.numel > 8 * len(data):
            raise ArchiveError(f"tensor {entry.name!r}: more elements than bits; the archive is damaged")
        tensors[entry.name] = _decode_tensor(reader, entry)
    reader.finish()
    return tensors


def _encode_tensor(out: BitWriter, name: str, tensor: torch.Tensor, sqnr_db: float) -> None:
    data = tensor_bytes(tensor)
    best = BitWriter()
    best.write(_VERBATIM, 2)
    for byte in data:
        best.write(byte, 8)
    values = tensor.double().numpy().reshape(-1)
    if tensor.numel() > 2:
        lossy = _logarithmic(values) if _is_statistic(name, values) else _uniform(values, sqnr_db)
        if lossy is not None and lossy.n_bits < best.n_bits:
            best = lossy
    out.extend(best)


def _is_statistic(name: str, values: Floats) -> bool:
    # Variances act through their root's inverse, whatever their size: only their relative error counts.
    if values.min() <= 0:
        return False
    return "var" in name.rsplit(".", 1)[-1] or values.max() > 64 * values.min()


def _uniform(values: Floats, sqnr_db: float) -> BitWriter | None:
    largest = float(np.abs(values).max())
    if largest and not 1e-100 < largest < 1e100:
        return None
    spread = max(float(values.std()), largest / 256) or 1.0  # all zero: any step will do
    # Uniform error of a step has variance step²/12; the step is a power of 2^(1/4).
    exponent = math.floor(4 * math.log2(spread * math.sqrt(12) * 10 ** (-sqnr_db / 20)))
    codes = np.rint(values / quarter_octaves(exponent))
    if np.abs(codes).max() >= _MAX_CODE:
        return None
    centre = int(np.rint(np.median(codes)))
    out = BitWriter()
    out.write(_UNIFORM, 2)
    out.write_exp_golomb(zigzag(exponent), 4)
    out.write_exp_golomb(zigzag(centre), 2)
    _write_codes(out, [zigzag(int(code) - centre) for code in codes])
    return out


def _logarithmic(values: Floats) -> BitWriter:
    codes = np.rint(_LOG_STEPS * np.log2(values)).astype(np.int64)
    lowest = int(codes.min())
    out = BitWriter()
    out.write(_LOGARITHMIC, 2)
    out.write_exp_golomb(zigzag(lowest), 6)
    _write_codes(out, [int(code) - lowest for code in codes])
    return out


def _write_codes(out: BitWriter, codes: list[int]) -> None:
    # The cheapest of the two codes and their parameters, named in five bits.
    largest = max(codes)
    costs: dict[tuple[int, int], int] = {}
    for k in range(16):
        if largest >> k < 32:
            costs[0, k] = sum((code >> k) + 1 + k for code in codes)
        costs[1, k] = sum(2 * ((code >> k) + 1).bit_length() - 1 + k for code in codes)
    kind, k = min(costs, key=lambda choice: costs[choice])
    out.write(kind, 1)
    out.write(k, 4)
    for code in codes:
        if kind:
            out.write_exp_golomb(code, k)
        else:
            out.write_rice(code, k)


def _decode_tensor(data: BitReader, entry: TensorEntry) -> torch.Tensor:
    dtype = entry_dtype(entry)
    kind = data.read(2)
    if kind == _VERBATIM:
        content = bytes(data.read(8) for _ in range(entry.numel * dtype.itemsize))
        return tensor_from_bytes(content, dtype, entry.shape)
    if kind not in (_UNIFORM, _LOGARITHMIC):
        raise ArchiveError(f"tensor {entry.name!r}: unknown kind {kind}; the archive is damaged")
    exponent = unzigzag(data.read_exp_golomb(4 if kind == _UNIFORM else 6))
    centre = unzigzag(data.read_exp_golomb(2)) if kind == _UNIFORM else 0
    if abs(exponent) > 1 << 16 or abs(centre) > 2 * _MAX_CODE:
        raise ArchiveError(f"tensor {entry.name!r}: a number is out of range; the archive is damaged")
    exp_golomb, k = data.read(1), data.read(4)
    codes = [data.read_exp_golomb(k) if exp_golomb else data.read_rice(k) for _ in range(entry.numel)]
    if max(codes, default=0) > 2 * _MAX_CODE:
        raise ArchiveError(f"tensor {entry.name!r}: a number is out of range; the archive is damaged")
    if kind == _UNIFORM:
        values = np.array([unzigzag(code) + centre for code in codes], np.float64) * quarter_octaves(exponent)
    else:
        values = np.array([_power(exponent + code) for code in codes], np.float64)
    return round_to_dtype(values.reshape(entry.shape), dtype)


def _power(code: int) -> float:
    """2^(code/32) from constants alone, so that it is the same everywhere; inf beyond float64."""
    try:
        return math.ldexp(float(_OCTAVE[code % _LOG_STEPS]), code // _LOG_STEPS - _FRACTION_BITS)
    except OverflowError:
        return math.inf
