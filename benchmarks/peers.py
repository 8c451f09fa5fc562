"""What this package is compared with, measured on this machine: NNCodec 2, EntroPack, ZipNN, zstd and number formats.

Every figure is the size of bytes that were decoded again. NNCodec, EntroPack and ZipNN run in an environment of their
own (`peers_setup.py`, `nncodec_worker.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
import torch
import zstandard
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from benchmarks.peers_setup import DEFAULT_VENV, ensure_nncodec
from wcompress.fidelity import compare
from wcompress.report.baselines import BASELINES, ZSTD_LEVEL, decode, encode

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


# What `nncodec.nn.encode` takes for granted and is kept: use_dq, param_opt, row_skipping.
BEST: dict[str, Any] = {"lambda_scale": 0.75, "cabac_unary_length_minus1": 4}
"""The one setting of NNCodec, without data, that needs fewest bytes at an equal pooled SQNR over many models."""

SQNR_SETTINGS: tuple[dict[str, Any], ...] = (
    BEST,
    {**BEST, "lambda_scale": 1.0},
    {**BEST, "param_opt": False},
    {**BEST, "lambda_scale": 1.0, "param_opt": False},
    {**BEST, "cabac_unary_length_minus1": 1, "row_skipping": False},
)
"""For comparisons at an equal SQNR: `BEST`, and what beats it by up to 1.5 % on large Gaussians or small tensors."""

_PLAIN = {"cabac_unary_length_minus1": 4}
ACCURACY_SETTINGS: tuple[dict[str, Any], ...] = (
    _PLAIN,
    {**_PLAIN, "lambda_scale": 0.25},
    BEST,
    {**_PLAIN, "use_dq": False},
    {**_PLAIN, "opt_qp": True},
    {**BEST, "opt_qp": True},
)
"""For comparisons at an equal accuracy, where no single setting wins."""


class PeerError(Exception):
    """A peer refused its input, or broke."""


@dataclass(frozen=True)
class PeerPoint:
    """A peer on one model, at one setting.

    Attributes:
        name: of the peer.
        n_bytes: everything that its decoder needs.
        encode_s, decode_s: seconds in the peer's own calls, in memory.
        restored: name → decoded array.
        args: the peer's settings.
    """

    name: str
    n_bytes: int
    encode_s: float
    decode_s: float
    restored: dict[str, np.ndarray] = field(repr=False)
    args: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All but the arrays."""
        figures = {"n_bytes": self.n_bytes, "encode_s": self.encode_s, "decode_s": self.decode_s}
        return {"name": self.name, "args": self.args, **figures}


class NNCodec:
    """A running worker that encodes and decodes with NNCodec, EntroPack and ZipNN; used in a `with` statement.

    Args:
        venv: the environment's folder, made where there is none.
    """

    def __init__(self, venv: Path = DEFAULT_VENV) -> None:
        self._venv = venv

    def __enter__(self) -> Self:
        python = ensure_nncodec(self._venv)
        self._folder = tempfile.TemporaryDirectory()
        self._stderr: BinaryIO = (Path(self._folder.name) / "stderr").open("w+b")
        worker = Path(__file__).with_name("nncodec_worker.py")
        # -I: neither this folder's modules nor the environment variables of this Python reach the other one.
        self._process = subprocess.Popen(
            [python, "-I", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        # A worker that has died leaves a broken pipe.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._stderr.close()
        self._folder.cleanup()

    def encode_decode(self, tensors: Arrays, *, repeats: int = 1, **args: Any) -> PeerPoint:
        """NNCodec's archive of all tensors together, decoded again.

        Args:
            tensors: name → finite float32 array with elements. The names are in the bitstream and cost their bytes.
            repeats: how often to encode and decode; the least times count.
            **args: of `nncodec.nnc.compress`, over `nncodec.nn.encode`'s defaults; `BEST` holds good ones.

        Raises:
            PeerError: NNCodec refuses the tensors or the arguments.
        """
        folder = Path(self._folder.name)
        npz, out = folder / "in.npz", folder / "out.npz"
        keys = [f"{i:04d}" for i in range(len(tensors))]
        np.savez(npz, **dict(zip(keys, tensors.values(), strict=True)))
        request = {"kind": "nncodec", "npz": str(npz), "names": list(tensors), "args": args, "repeats": repeats}
        answer = self._ask({**request, "out": str(out)})
        with np.load(out) as file:
            restored = {name: file[key] for name, key in zip(tensors, keys, strict=True)}
        return PeerPoint("nncodec", answer["n_bytes"], answer["encode_s"], answer["decode_s"], restored, args)

    def entropack(self, tensors: Arrays, bits: Mapping[str, float], **args: Any) -> PeerPoint:
        """EntroPack's archive of all tensors in one safetensors file, encoded and decoded again on the CPU.

        Args:
            tensors: name → finite float32 array with elements.
            bits: the target of some tensors of two or more dimensions, bits a weight, 0.001 to 11. Others, and what
                comes out larger, are stored in float16.
            **args: of `entropack.EntroPackLossyConfig`.

        Raises:
            PeerError: EntroPack refuses a tensor or an argument.
        """
        folder = Path(self._folder.name)
        npz, out = folder / "in.npz", folder / "out.npz"
        keys = [f"{i:04d}" for i in range(len(tensors))]
        np.savez(npz, **dict(zip(keys, tensors.values(), strict=True)))
        request = {"kind": "entropack", "npz": str(npz), "names": list(tensors), "args": args, "out": str(out)}
        file = str(folder / "model.safetensors")
        answer = self._ask({**request, "bits": [bits.get(name) for name in tensors], "file": file})
        with np.load(out) as stored:
            restored = {name: stored[key] for name, key in zip(tensors, keys, strict=True)}
        return PeerPoint("entropack", answer["n_bytes"], answer["encode_s"], answer["decode_s"], restored, args)

    def zipnn(self, tensors: Arrays, *, repeats: int = 1) -> PeerPoint:
        """ZipNN's archive of the safetensors file, whose bytes it takes as numbers of the first tensor's dtype.

        Raises:
            PeerError: ZipNN refuses the dtype, or gave back something else.
        """
        data = save_safetensors(_to_torch(tensors))
        point = self.zipnn_file(data, str(next(iter(tensors.values())).dtype), repeats=repeats)
        restored = load_safetensors(data)
        return replace(point, restored={name: restored[name].numpy() for name in tensors})

    def zipnn_file(self, data: bytes, dtype: str, *, repeats: int = 1) -> PeerPoint:
        """ZipNN's archive of a file, taken as numbers of a dtype such as `bfloat16`; `restored` is empty.

        Raises:
            PeerError: ZipNN refuses the dtype, or gave back something else.
        """
        folder = Path(self._folder.name)
        path, out = folder / "in.safetensors", folder / "out.safetensors"
        path.write_bytes(data)
        request = {"kind": "zipnn", "file": str(path), "dtype": dtype, "repeats": repeats, "out": str(out)}
        answer = self._ask(request)
        if out.read_bytes() != data:
            raise PeerError("ZipNN gave back other bytes than it got")
        return PeerPoint("zipnn", answer["n_bytes"], answer["encode_s"], answer["decode_s"], {})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._stderr.seek(0)
            tail = self._stderr.read()[-2000:].decode(errors="replace")
            raise PeerError(f"the worker ended with status {self._process.wait()}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer


def nncodec_curve(codec: NNCodec, tensors: Arrays, qps: Iterable[int], **args: Any) -> list[PeerPoint]:
    """NNCodec at several quantisation parameters, other arguments the same; a larger one is coarser.

    Args:
        codec: running.
        tensors: see `NNCodec.encode_decode`.
        qps: integers, such as `usual_qps` gives; with `qp_density` d, from −2^(d+5) to 2^(d+5) − 1.
        **args: see `NNCodec.encode_decode`.
    """
    return [codec.encode_decode(tensors, qp=qp, **args) for qp in qps]


def best_curves(
    codec: NNCodec,
    tensors: Arrays,
    qps: Iterable[int],
    settings: Iterable[Mapping[str, Any]] = SQNR_SETTINGS,
    relative_error: float | None = 0.01,
) -> list[list[PeerPoint]]:
    """A curve for each of several settings; `least_bytes` lets the best of them count.

    Args:
        codec, tensors, qps: see `nncodec_curve`.
        settings: `SQNR_SETTINGS` or `ACCURACY_SETTINGS`.
        relative_error: see `small_tensor_qps`; None for NNCodec's default step there.
    """
    qps = list(qps)
    curves: list[list[PeerPoint]] = []
    for args in settings:
        small = None if relative_error is None else small_tensor_qps(codec, tensors, relative_error, **args)
        curves.append(nncodec_curve(codec, tensors, qps, **args, qp_per_tensor=small))
    return curves


def usual_qps(tensors: Arrays, finest: float = 0.15, coarsest: float = 2.5, qp_density: int = 2) -> range:
    """Quantisation parameters for steps between two multiples of the pooled root mean square.

    The defaults span 0.7 to 3.8 bits a weight on Gaussian weights. `opt_qp` makes tensors coarser, the more so the
    larger they are: with it, start finer.

    Args:
        tensors: name → array; those of two or more dimensions count.
        finest, coarsest: the multiples.
        qp_density: as it will be passed to NNCodec.
    """
    wide = [array for array in tensors.values() if array.ndim >= 2]
    energy = sum(array.size * _rms(array) ** 2 for array in wide)
    scale = math.sqrt(energy / sum(array.size for array in wide))
    return range(qp_of_step(finest * scale, qp_density), qp_of_step(coarsest * scale, qp_density) + 1)


def step_size(qp: int, qp_density: int = 2) -> float:
    """The quantisation step that a `qp` means to NNCodec: (2^d + qp mod 2^d) × 2^(⌊qp/2^d⌋ − d)."""
    per_octave = 1 << qp_density
    return float((per_octave + qp % per_octave) * 2.0 ** (qp // per_octave - qp_density))


def qp_of_step(step: float, qp_density: int = 2) -> int:
    """The largest `qp` whose step is no larger."""
    lowest = -(1 << (5 + qp_density))
    highest = -lowest - 1
    return max((qp for qp in range(lowest, highest + 1) if step_size(qp, qp_density) <= step), default=lowest)


def small_tensor_qps(codec: NNCodec, tensors: Arrays, relative_error: float = 0.01, **args: Any) -> dict[str, int]:
    """A `qp` for each tensor of fewer than two dimensions, for `qp_per_tensor`: the coarsest that is good enough.

    NNCodec's default, `nonweight_qp` −75, is a step of 2.4e-6 for all of them whatever their scale: about sixteen bits
    a number at a scale of 0.1.

    Args:
        codec: running.
        tensors: all or only the small ones; others are passed over.
        relative_error: the most that ‖w−ŵ‖ / ‖w‖ may be in any of them, measured at the `qp` chosen.
        **args: those that the model will be encoded with.
    """
    density = args.get("qp_density", 2)
    # This one is for tensors of two or more dimensions, and fails without.
    args.pop("opt_qp", None)
    small = {name: np.atleast_1d(array) for name, array in tensors.items() if array.ndim < 2}
    lowest, highest = -(1 << (5 + density)), (1 << (5 + density)) - 1
    if not small:
        return {}
    # A step of twice the error: dependent quantisation keeps a half of its step.
    guess = {name: qp_of_step(2 * relative_error * _rms(array), density) for name, array in small.items()}
    chosen = dict.fromkeys(small, lowest)
    for offset in range(-2 << density, (1 << density) + 1):
        qps = {name: min(max(qp + offset, lowest), highest) for name, qp in guess.items()}
        restored = codec.encode_decode(small, **{**args, "qp_per_tensor": qps}).restored
        for name, array in small.items():
            if float(np.linalg.norm(restored[name] - array)) <= relative_error * float(np.linalg.norm(array)):
                chosen[name] = max(chosen[name], qps[name])
    return chosen


def relative_qps(tensors: Arrays, relative_step: float, qp_density: int = 2) -> dict[str, int]:
    """A `qp` for each tensor of two or more dimensions, for `qp_per_tensor`: a step in proportion to its scale.

    For networks with BatchNorm, where a tensor's scale means nothing and one step for all is wrong. Where scales do
    mean something, one step (`qp`) needs fewer bytes at an equal pooled SQNR.

    Args:
        tensors: name → array.
        relative_step: step / root mean square, before rounding down to a step that NNCodec has.
        qp_density: as it will be passed to NNCodec.
    """
    return {
        name: qp_of_step(relative_step * _rms(array), qp_density) for name, array in tensors.items() if array.ndim >= 2
    }


def zstd_peers(tensors: Arrays, *, repeats: int = 1) -> list[PeerPoint]:
    """safetensors files in fp16, int8, int4 and as they are, plain and under zstd; see `wcompress.report.baselines`."""
    originals = _to_torch(tensors)
    points: list[PeerPoint] = []
    for name in [*BASELINES, "fp16+zstd"]:
        data, encode_s = _timed(lambda name=name: _encode(name, originals), repeats)
        decoded, decode_s = _timed(lambda name=name, data=data: _decode(name, data), repeats)
        arrays = {key: decoded[key].numpy() for key in tensors}
        points.append(PeerPoint(name, len(data), encode_s, decode_s, arrays))
    return points


def sqnr_db(original: Arrays, restored: Arrays) -> float | None:
    """`wcompress.fidelity.compare`'s figure: dB, pooled over tensors of two or more dimensions; None where exact."""
    return compare(_to_torch(original), _to_torch(restored)).sqnr_db


def interpolate_bytes(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Bytes that a peer needs for a quality between two that it was measured at.

    A peer's settings are steps, so its measured points never have just the quality of ours. First the points that
    another one beats (at least its quality in no more bytes) are dropped; what is left rises in both. Between two
    neighbours log(bytes) is linear in x. For an SQNR in dB that is all but exact: at high rates bytes are linear in it.
    For an accuracy it lets the peer have the best of its points, noise included.

    Args:
        points: (quality, bytes) pairs in any order; a quality is an SQNR in dB or an accuracy.
        x: the quality wanted.

    Returns:
        Bytes, not rounded; None outside the qualities measured, above or below: nothing is extrapolated.
    """
    front: list[tuple[float, float]] = []
    for quality, n_bytes in sorted(points, key=lambda point: (point[1], -point[0])):
        if not front or quality > front[-1][0]:
            front.append((quality, n_bytes))
    for (x0, b0), (x1, b1) in itertools.pairwise(front):
        if x0 <= x <= x1:
            return math.exp(math.log(b0) + (math.log(b1) - math.log(b0)) * (x - x0) / (x1 - x0))
    if front and min(quality for quality, _ in points) <= x <= front[0][0]:
        return front[0][1]
    return None


def least_bytes(curves: Iterable[Sequence[tuple[float, float]]], x: float) -> float | None:
    """The least of `interpolate_bytes` over a peer's settings, each with its own curve; None where none reaches x.

    Not one curve through all their points: a point of one setting that no other beats can still lie above the line
    between its neighbours of another.
    """
    return min((n_bytes for curve in curves if (n_bytes := interpolate_bytes(curve, x)) is not None), default=None)


def _encode(name: str, tensors: dict[str, torch.Tensor]) -> bytes:
    if name == "fp16+zstd":
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(encode("fp16", tensors))
    return encode(name, tensors)


def _decode(name: str, data: bytes) -> dict[str, torch.Tensor]:
    if name == "fp16+zstd":
        return decode("fp16", zstandard.ZstdDecompressor().decompress(data))
    return decode(name, data)


def _to_torch(tensors: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in tensors.items()}


def _rms(array: np.ndarray) -> float:
    return math.sqrt(float(np.square(array, dtype=np.float64).mean()))


def _timed(call: Callable[[], T], repeats: int) -> tuple[T, float]:
    """What the call returns, and the least of its times in seconds."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return result, best
