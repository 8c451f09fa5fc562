"""Bytes at an equal SQNR on three real networks: ours against NNCodec 2 and EntroPack.

    python -m benchmarks.real_peers --packages DIR [--only resemblyzer] [--peers nncodec,entropack] [--efforts 1,5]

`--packages` is the folder of wheels that `benchmarks.real_networks` describes; Resemblyzer, EfficientNet-Lite0, two
layers of MiniLM and all of it are taken, their float tensors alone. The quality is the peer's: the SQNR, pooled over
tensors of two or more dimensions, that it has in so many bits a weight. Ours is the archive of `pack(sqnr=…)` at that
figure, which it meets or exceeds by up to 0.15 dB; no correction is made for that. Whole files count on both sides.

NNCodec, 2, 3 and 4 bits: the level is what `BEST` reaches between its neighbouring `qp`; its bytes are then
interpolated at our SQNR between the `qp` on both sides, for each of `SQNR_SETTINGS`, and the least counts. `opt_qp` is
none of them: it moves bits from large tensors to small ones, which costs bytes at a pooled SQNR. Tensors of fewer than
two dimensions are kept to 1 %.

EntroPack, 3, 4 and 5 bits: its archive at two settings, and ours at the SQNR of the better one. `equal` gives every
matrix the same bits, which is how it is used; `shared` gives each the bits that one step for all would give it, which
is best for a pooled SQNR, and moves bits between rows. What is smaller in float16 is stored so, as are tensors of fewer
than two dimensions. It runs on the CPU, where it was not made for speed: no time is told.

Writes `benchmarks/results/real_peers.json`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import merge_result
from benchmarks.equal_sqnr import level_at
from benchmarks.models import (
    DEFAULT_EFFORT,
    Packed,
    Tensors,
    add_venv_argument,
    argument_parser,
    as_arrays,
    integers,
    n_params,
    names_from,
    numbers,
    pack_and_load,
)
from benchmarks.peers import (
    BEST,
    SQNR_SETTINGS,
    Arrays,
    NNCodec,
    interpolate_bytes,
    small_tensor_qps,
    sqnr_db,
    usual_qps,
)
from benchmarks.real_networks import PART, float_tensors

MODELS = ("resemblyzer", "efficientnet-lite0", PART, "minilm")
BITS = {"nncodec": (2.0, 3.0, 4.0), "entropack": (3.0, 4.0, 5.0)}
SAVINGS = {
    ("nncodec", DEFAULT_EFFORT): {2.0: 10.0, 3.0: 7.0, 4.0: 5.0},
    ("nncodec", 1): {2.0: 0.0, 3.0: 0.0, 4.0: 0.0},
    ("entropack", DEFAULT_EFFORT): {3.0: 5.0, 4.0: 5.0, 5.0: 5.0},
}
"""Per cent of a peer's bytes to save, by peer, effort and bits a weight."""

ENTROPACK = ("equal", "shared")
_BY_ROWS = {"row_rdo_iterations": 8}
_LEAST_BITS, _MOST_BITS = 0.25, 11.0
_QPS_PER_BIT, _DB_PER_BIT = 4, 6.0206


class Curve:
    """One setting of NNCodec on one model: points by `qp`, measured where they are asked for.

    Args:
        codec: running.
        arrays: the model.
        args: of NNCodec.
        start: the `qp` to begin at.
    """

    def __init__(self, codec: NNCodec, arrays: Arrays, args: dict[str, Any], start: int) -> None:
        self._codec, self._arrays, self._args, self._start = codec, arrays, args, start
        self._small = small_tensor_qps(codec, arrays, **args)
        self.known: dict[int, tuple[float, float]] = {}

    def at(self, qp: int) -> tuple[float, float]:
        """SQNR in dB and bytes."""
        if qp not in self.known:
            point = self._codec.encode_decode(self._arrays, qp=qp, qp_per_tensor=self._small, **self._args)
            found = sqnr_db(self._arrays, point.restored)
            self.known[qp] = (math.inf if found is None else found, float(point.n_bytes))
        return self.known[qp]

    def level(self, n_bytes: float) -> float:
        """The SQNR in dB that is reached in so many bytes."""
        n_weights = sum(array.size for array in self._arrays.values())
        for _ in range(3):
            self._start += round(_QPS_PER_BIT * 8 * (self.at(self._start)[1] - n_bytes) / n_weights)
        return level_at(self.at, n_bytes, self._start)

    def bytes_at(self, level_db: float) -> float:
        """The bytes for an SQNR, between the two `qp` on both sides of it."""
        qp = self._start
        for _ in range(4):
            qp += round(_QPS_PER_BIT * (self.at(qp)[0] - level_db) / _DB_PER_BIT)
        while self.at(qp)[0] < level_db:
            qp -= 1
        while self.at(qp + 1)[0] >= level_db:
            qp += 1
        self._start = qp
        found = interpolate_bytes(list(self.known.values()), level_db)
        assert found is not None, f"no points around {level_db:.2f} dB"
        return found


def shared_bits(arrays: Arrays, bits: float) -> dict[str, float]:
    """Bits for each matrix that one step for all would give it, of a mean over all weights, bits a weight.

    Args:
        arrays: name → array; those of two or more dimensions count.
        bits: the mean.
    """
    wide = {name: array for name, array in arrays.items() if array.ndim >= 2}
    octaves = {name: 0.5 * math.log2(float(np.square(a, dtype=np.float64).mean()) + 1e-30) for name, a in wide.items()}
    total = sum(a.size for a in wide.values())
    low, high = -64.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        found = {name: min(max(middle + octaves[name], _LEAST_BITS), _MOST_BITS) for name in wide}
        mean = sum(found[name] * a.size for name, a in wide.items()) / total
        low, high = (middle, high) if mean < bits else (low, middle)
    return found


def ours(tensors: Tensors, level_db: float, effort: int) -> Packed:
    """Our archive of at least this SQNR, which is told to two digits."""
    packed = pack_and_load(tensors, sqnr=math.ceil(100 * level_db) / 100, effort=effort, threads=1)
    assert packed.sqnr_db is not None
    assert packed.sqnr_db >= level_db
    return packed


def row_of(model: str, peer: str, effort: int, bits: float, packed: Packed, n_bytes: float, n: int) -> dict[str, Any]:
    """One row of the result."""
    saving = 100 * (1 - packed.n_bytes / n_bytes)
    wanted = SAVINGS.get((peer, effort), {}).get(bits)
    return {
        "model": model,
        "peer": peer,
        "bits": bits,
        "effort": effort,
        "n_params": n,
        "sqnr_db": packed.sqnr_db,
        "n_bytes": packed.n_bytes,
        "peer_bytes": n_bytes,
        "saving_percent": saving,
        "wanted_percent": wanted,
        "met": None if wanted is None else saving >= wanted,
    }


def against_nncodec(
    codec: NNCodec, model: str, tensors: Tensors, bits: Sequence[float], efforts: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """One model at each number of bits and each effort."""
    arrays = as_arrays(tensors)
    start = usual_qps(arrays, 0.5, 0.5)[0]
    curves = [Curve(codec, arrays, args, start) for args in SQNR_SETTINGS]
    assert SQNR_SETTINGS[0] is BEST
    for budget in bits:
        level = curves[0].level(budget * n_params(tensors) / 8)
        for effort in efforts:
            packed = ours(tensors, level, effort)
            assert packed.sqnr_db is not None
            sizes = [curve.bytes_at(packed.sqnr_db) for curve in curves]
            best = min(range(len(sizes)), key=sizes.__getitem__)
            row = row_of(model, "nncodec", effort, budget, packed, sizes[best], n_params(tensors))
            yield {**row, "setting": str(SQNR_SETTINGS[best])}


def against_entropack(
    codec: NNCodec,
    model: str,
    tensors: Tensors,
    bits: Sequence[float],
    efforts: Sequence[int],
    settings: Sequence[str] = ENTROPACK,
) -> Iterator[dict[str, Any]]:
    """One model at each number of bits and each effort, against the better of some of the settings in `ENTROPACK`."""
    arrays = as_arrays(tensors)
    for budget in bits:
        points = {}
        for name in settings:
            equal = {name: budget for name, array in arrays.items() if array.ndim >= 2}
            shares, args = (shared_bits(arrays, budget), _BY_ROWS) if name == "shared" else (equal, {})
            point = codec.entropack(arrays, shares, **args)
            level = sqnr_db(arrays, point.restored)
            assert level is not None
            points[name] = (level, point.n_bytes)
        # At an equal pooled SQNR, by the rate of a fine quantiser: the fewest bytes.
        name = min(points, key=lambda one: points[one][1] - points[one][0] / _DB_PER_BIT * n_params(tensors) / 8)
        for effort in efforts:
            packed = ours(tensors, points[name][0], effort)
            row = row_of(model, "entropack", effort, budget, packed, points[name][1], n_params(tensors))
            yield {**row, "setting": name, "settings": points}


def line(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    verdict = "" if row["met"] is None else f"  wanted {row['wanted_percent']:.0f} %: {_MET[row['met']]}"
    return (
        f"{row['model']:18}  {row['peer']:9} at {row['bits']:.0f} bits  {row['sqnr_db']:6.2f} dB"
        f"  effort {row['effort']} {row['n_bytes']:10,} B  peer {row['peer_bytes']:12,.0f} B"
        f"  saving {row['saving_percent']:6.2f} %{verdict}  ({row['setting']})"
    )


_MET = {True: "met", False: "missed"}
_PEERS = ("nncodec", "entropack")


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.real_peers --packages wheels/ --only resemblyzer")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the wheels")
    parser.add_argument("--only", type=names_from(MODELS), default=list(MODELS), metavar="MODEL[,MODEL]")
    parser.add_argument("--peers", type=names_from(_PEERS), default=list(_PEERS), metavar="PEER[,PEER]")
    parser.add_argument("--bits", type=numbers, help="bits a weight (default: 2,3,4 and 3,4,5)")
    parser.add_argument(
        "--efforts", type=integers, default=[1, DEFAULT_EFFORT], help=f"of ours (default: 1,{DEFAULT_EFFORT})"
    )
    parser.add_argument("--settings", type=names_from(ENTROPACK), default=list(ENTROPACK), help="of EntroPack")
    add_venv_argument(parser)
    arguments = parser.parse_args()
    with NNCodec(arguments.nncodec_venv) as codec:
        for peer in arguments.peers:
            for name in arguments.only:
                tensors = float_tensors(arguments.packages, name)
                against = against_nncodec
                if peer == "entropack":
                    against = functools.partial(against_entropack, settings=arguments.settings)
                for row in against(codec, name, tensors, arguments.bits or BITS[peer], arguments.efforts):
                    print(line(row), flush=True)
                    merge_result("real_peers", [row], ["model", "peer", "bits", "effort"])


if __name__ == "__main__":
    main()
