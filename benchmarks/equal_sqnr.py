"""Bytes at an equal SQNR: method `vae` against NNCodec 2, beside plain number formats, zstd and ZipNN.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.equal_sqnr [--real DIR] [--only silero] [--effort 5]

For 1, 2 and 3 bits a weight: the SQNR that NNCodec reaches in that many bits, with `BEST` and between its neighbouring
`qp`, is what both are then asked for, so that it changes with nothing of ours. Ours is the archive of `pack(sqnr=…)`.
NNCodec's bytes are interpolated at the SQNR which that archive has for each of `SQNR_SETTINGS`; the least counts.
NNCodec keeps tensors of fewer than two dimensions to 1 %, which costs it fewer bytes than its default. Writes
`benchmarks/results/equal_sqnr.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.common import merge_result
from benchmarks.models import (
    DEFAULT_EFFORT,
    Tensors,
    add_model_arguments,
    add_venv_argument,
    argument_parser,
    as_arrays,
    chosen_models,
    n_params,
    n_tensor_bytes,
    numbers,
    pack_and_load,
)
from benchmarks.peers import (
    BEST,
    SQNR_SETTINGS,
    Arrays,
    NNCodec,
    PeerPoint,
    best_curves,
    least_bytes,
    small_tensor_qps,
    sqnr_db,
    usual_qps,
    zstd_peers,
)

BITS = (1.0, 2.0, 3.0)
SAVINGS = {1.0: 10.0, 2.0: 6.0, 3.0: 3.0}
SAVINGS_OF = {"silero": {1.0: 15.0, 2.0: 12.0, 3.0: 8.0}}
"""Per cent of NNCodec's bytes to save, by bits a weight."""

_QP_DB = 6.02 / 4  # four `qp` to an octave
_AROUND = 2


def wanted_saving(model: str, bits: float) -> float | None:
    """The saving aimed at, in per cent; None at bits that no target is set for."""
    return SAVINGS_OF.get(model, SAVINGS).get(bits)


def bracketing_qps(sqnr_at: Callable[[int], float], levels: Iterable[float], start: int) -> list[int]:
    """The `qp` on both sides of each level, and two beyond on each side.

    Args:
        sqnr_at: SQNR in dB, which falls by about 1.5 dB a `qp`.
        levels: in dB.
        start: where to look first.
    """
    found: set[int] = set()
    qp = start
    for level in levels:
        # The estimate may circle where the curve is not smooth: a few jumps, then steps.
        for _ in range(4):
            qp += round((sqnr_at(qp) - level) / _QP_DB)
        while sqnr_at(qp) < level:
            qp -= 1
        while sqnr_at(qp + 1) >= level:
            qp += 1
        found |= set(range(qp - _AROUND, qp + 2 + _AROUND))
    return sorted(found)


def level_at(point_at: Callable[[int], tuple[float, float]], n_bytes: float, start: int) -> float:
    """The SQNR in dB that is reached in so many bytes, between two neighbouring `qp`.

    Args:
        point_at: SQNR in dB and bytes, both of which fall with `qp`.
        n_bytes: how many.
        start: where to look first.
    """
    qp = start
    while point_at(qp)[1] < n_bytes:
        qp -= 1
    while point_at(qp + 1)[1] >= n_bytes:
        qp += 1
    (finer_db, most), (coarser_db, least) = point_at(qp), point_at(qp + 1)
    return coarser_db + (n_bytes - least) / (most - least) * (finer_db - coarser_db)


class Reference:
    """NNCodec with `BEST` on one model.

    Args:
        codec: NNCodec.
        arrays: the model.
    """

    def __init__(self, codec: NNCodec, arrays: Arrays) -> None:
        self._codec, self._arrays = codec, arrays
        self._small = small_tensor_qps(codec, arrays, **BEST)
        self._known: dict[int, tuple[float, float]] = {}
        self._start = usual_qps(arrays, 0.9, 0.9)[0]

    def _point_at(self, qp: int) -> tuple[float, float]:
        if qp not in self._known:
            point = self._codec.encode_decode(self._arrays, qp=qp, qp_per_tensor=self._small, **BEST)
            found = sqnr_db(self._arrays, point.restored)
            self._known[qp] = (math.inf if found is None else found, float(point.n_bytes))
        return self._known[qp]

    def level(self, n_bytes: float) -> float:
        """The SQNR in dB that it reaches in so many bytes."""
        return level_at(self._point_at, n_bytes, self._start)

    def qps(self, levels: Iterable[float]) -> list[int]:
        """The `qp` whose curves hold every level."""
        return bracketing_qps(lambda qp: self._point_at(qp)[0], levels, self._start)


def others(codec: NNCodec, arrays: Arrays) -> list[dict[str, Any]]:
    """Formats that nobody has to choose a quality for: bytes and SQNR."""
    points: list[PeerPoint] = [*zstd_peers(arrays), codec.zipnn(arrays)]
    return [{"name": p.name, "n_bytes": p.n_bytes, "sqnr_db": sqnr_db(arrays, p.restored)} for p in points]


def compare_model(codec: NNCodec, name: str, tensors: Tensors, bits: Iterable[float], effort: int) -> dict[str, Any]:
    """One model at every number of bits."""
    points: list[dict[str, Any]] = []
    arrays = as_arrays(tensors)
    reference = Reference(codec, arrays)
    for budget in bits:
        level = reference.level(budget * n_params(tensors) / 8)
        ours = pack_and_load(tensors, sqnr=round(level, 2), effort=effort)
        assert ours.sqnr_db is not None
        points.append(
            {
                "bits": budget,
                "sqnr_db": ours.sqnr_db,
                "n_bytes": ours.n_bytes,
                "bits_per_param": 8 * ours.n_bytes / n_params(tensors),
                "pack_s": ours.seconds["pack"],
                "load_s": ours.seconds["load"],
            }
        )
    qps = reference.qps([point["sqnr_db"] for point in points])
    measured = best_curves(codec, arrays, qps, SQNR_SETTINGS)
    curves = [[(sqnr_db(arrays, p.restored) or math.inf, float(p.n_bytes)) for p in curve] for curve in measured]
    for point in points:
        theirs = least_bytes(curves, point["sqnr_db"])
        assert theirs is not None, f"{name}: no curve of NNCodec's holds {point['sqnr_db']:.2f} dB"
        saving = 100 * (1 - point["n_bytes"] / theirs)
        wanted = wanted_saving(name, point["bits"])
        met = None if wanted is None else saving >= wanted
        point |= {"nncodec_bytes": theirs, "saving_percent": saving, "wanted_percent": wanted, "met": met}
    return {
        "model": name,
        "effort": effort,
        "n_params": n_params(tensors),
        "original_bytes": n_tensor_bytes(tensors),
        "points": points,
        "others": others(codec, arrays),
        "nncodec_curves": [{"args": args, "points": curve} for args, curve in zip(SQNR_SETTINGS, curves, strict=True)],
    }


def lines(row: dict[str, Any]) -> list[str]:
    """A model's rows of the printed table."""
    result = []
    for point in row["points"]:
        wanted, met = point["wanted_percent"], point["met"]
        verdict = "" if wanted is None else f"  wanted {wanted:4.1f} %: {'met' if met else 'missed'}"
        result.append(
            f"{row['model']:10}  {point['sqnr_db']:6.2f} dB  ours {point['n_bytes']:9,} B"
            f" ({point['bits_per_param']:.3f} bits)  NNCodec {point['nncodec_bytes']:11,.0f} B"
            f"  saving {point['saving_percent']:6.2f} %{verdict}  {point['pack_s']:.1f} s"
        )
    for other in row["others"]:
        quality = "  exact  " if other["sqnr_db"] is None else f"{other['sqnr_db']:6.2f} dB"
        result.append(f"{row['model']:10}  {quality}  {other['name']:>9} {other['n_bytes']:9,} B")
    return result


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.equal_sqnr --only mnist-rnn,silero --real models/")
    add_model_arguments(parser)
    parser.add_argument("--bits", type=numbers, default=list(BITS), help="bits a weight (default: 1,2,3)")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="of ours (default: %(default)s)")
    add_venv_argument(parser)
    arguments = parser.parse_args()
    with NNCodec(arguments.nncodec_venv) as codec:
        for name, tensors in chosen_models(arguments):
            row = compare_model(codec, name, tensors, arguments.bits, arguments.effort)
            print("\n".join(lines(row)), flush=True)
            merge_result("equal_sqnr", [row], ["model", "effort"])


if __name__ == "__main__":
    main()
