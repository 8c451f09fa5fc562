"""Bytes at an equal loss of accuracy: method `vae` against NNCodec 2, neither of them given data.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.equal_accuracy [--only mnist-rnn] [--seeds 0,1,2]

Four baselines, each trained with several seeds. NNCodec is encoded at every `qp`, a step of which is worth 0.25 bits,
with each of `ACCURACY_SETTINGS`, which makes six points for every 0.25 bits. Ours has one curve; so that its best is
of as many, it is packed to bits a weight that lie 0.25 apart and, where accuracy is being lost, to five more between
each two. Each curve goes on until accuracy is lost and until it is not. Every decoded model is scored on the test
images: a curve's points are measured, none is chosen. The bytes at a loss are those of `peers.interpolate_bytes`: of
a curve's points those that no smaller one equals or beats in accuracy are kept, and between the two on either side of
the loss log(bytes) is linear in accuracy; of NNCodec's curves the one with the fewest bytes counts. So both have the
best of their points, noise included. Writes `benchmarks/results/equal_accuracy.json`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.common import merge_result
from benchmarks.curves import Point, Span, accuracy_means, number, saving_percent, walk
from benchmarks.models import (
    BASELINES,
    DEFAULT_EFFORT,
    Tensors,
    add_model_arguments,
    add_venv_argument,
    argument_parser,
    as_arrays,
    baseline,
    baseline_task,
    integers,
    mnist,
    n_tensor_bytes,
    pack_and_load,
)
from benchmarks.peers import ACCURACY_SETTINGS, NNCodec, least_bytes, small_tensor_qps, usual_qps
from wcompress.evaluate import score
from wcompress.tasks import Task

DROPS = (0.5, 1.0)
"""Points of accuracy lost, at which bytes are compared."""
WANTED_PERCENT = 10.0
"""To save on average over the models at a drop of 1.0, on none of them needing more."""

_FINEST_DROP, _COARSEST_DROP = 0.25, 1.75
_BITS_APART = 0.25
_BETWEEN = len(ACCURACY_SETTINGS)
_MOST_BITS = 6.0


def bits_at(index: float) -> float:
    """Bits a weight of the point; a larger index has fewer, and between whole ones lie those of the finer grid."""
    return _MOST_BITS - _BITS_APART * index


def our_curve(tensors: Tensors, task: Task, span: Span, effort: int) -> list[Point]:
    """(accuracy, bytes) of method `vae`."""
    found: dict[int, Point] = {}

    def measure(index: int) -> Point:
        packed = pack_and_load(tensors, bits_per_weight=bits_at(index / _BETWEEN), effort=effort)
        found[index] = score(task, packed.restored), float(packed.n_bytes)
        return found[index]

    last = round((_MOST_BITS - 2 * _BITS_APART) / _BITS_APART)
    walk(lambda index: measure(index * _BETWEEN), round((_MOST_BITS - 2.0) / _BITS_APART), (0, last), span)
    # From the last point before accuracy is lost to the first where too much is.
    first = max((index for index, (accuracy, _) in found.items() if accuracy >= span.high), default=min(found))
    end = min((index for index, (accuracy, _) in found.items() if accuracy < span.low), default=max(found))
    for index in range(min(first, end), max(first, end)):
        if index not in found:
            measure(index)
    return [found[index] for index in sorted(found)]


def nncodec_curve(codec: NNCodec, tensors: Tensors, task: Task, span: Span, settings: Mapping[str, Any]) -> list[Point]:
    """(accuracy, bytes) of NNCodec with one of its settings."""
    arrays = as_arrays(tensors)
    small = small_tensor_qps(codec, arrays, **settings)

    def measure(qp: int) -> Point:
        point = codec.encode_decode(arrays, qp=qp, qp_per_tensor=small, **settings)
        restored = {name: torch.from_numpy(np.array(array)) for name, array in point.restored.items()}
        return score(task, restored), float(point.n_bytes)

    reach = usual_qps(arrays, finest=0.02, coarsest=4.0)
    return walk(measure, usual_qps(arrays, 1.0, 1.0)[0], (reach[0], reach[-1]), span)


def compare_seed(codec: NNCodec, name: str, seed: int, tensors: Tensors, effort: int) -> dict[str, Any]:
    """One model, trained with one seed."""
    task = baseline_task(name)
    before = score(task, tensors)
    span = Span(low=before - _COARSEST_DROP, high=before - _FINEST_DROP)
    ours = our_curve(tensors, task, span, effort)
    theirs = [nncodec_curve(codec, tensors, task, span, settings) for settings in ACCURACY_SETTINGS]
    at: list[dict[str, Any]] = []
    for drop in DROPS:
        n_bytes, peer_bytes = least_bytes([ours], before - drop), least_bytes(theirs, before - drop)
        at.append(
            {
                "drop": drop,
                "n_bytes": n_bytes,
                "nncodec_bytes": peer_bytes,
                "ratio": None if n_bytes is None else n_tensor_bytes(tensors) / n_bytes,
                "nncodec_ratio": None if peer_bytes is None else n_tensor_bytes(tensors) / peer_bytes,
                "saving_percent": saving_percent(n_bytes, peer_bytes),
            }
        )
    return {
        "model": name,
        "seed": seed,
        "effort": effort,
        "score_before": before,
        "at": at,
        "curve": ours,
        "nncodec_curves": [
            {"args": args, "points": curve} for args, curve in zip(ACCURACY_SETTINGS, theirs, strict=True)
        ],
    }


def verdict(summary: Sequence[Mapping[str, Any]], drop: float = 1.0) -> str:
    """Whether the target holds at a drop, in a line; `summary` is what `accuracy_means` gives."""
    savings = [row["saving_percent"] for row in summary if row["drop"] == drop]
    if not savings or None in savings:
        return f"at a drop of {drop}: not all measured"
    average = statistics.fmean(savings)
    met = average >= WANTED_PERCENT and min(savings) >= 0
    return (
        f"at a drop of {drop}: {average:.1f} % saved on average over {len(savings)} models, {min(savings):.1f} % at"
        f" least; wanted {WANTED_PERCENT:.0f} % and none more bytes: {'met' if met else 'missed'}"
    )


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.equal_accuracy --only mnist-fnn --seeds 0")
    add_model_arguments(parser, BASELINES)
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2], help="of the training (default: 0,1,2)")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="of ours (default: %(default)s)")
    add_venv_argument(parser)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with NNCodec(arguments.nncodec_venv) as codec:
        for name in arguments.only:
            for seed in arguments.seeds:
                tensors = baseline(arguments.models, name, seed)
                row = compare_seed(codec, name, seed, tensors, arguments.effort)
                rows.append(row)
                for point in row["at"]:
                    print(
                        f"{name:10} seed {seed} {row['score_before']:.2f} %  drop {point['drop']}"
                        f"  ours {number(point['n_bytes'], '8,.0f')} B ({number(point['ratio'], '.1f')}x)"
                        f"  NNCodec {number(point['nncodec_bytes'], '8,.0f')} B"
                        f" ({number(point['nncodec_ratio'], '.1f')}x)"
                        f"  saving {number(point['saving_percent'], '.1f')} %",
                        flush=True,
                    )
                merge_result("equal_accuracy", [row], ["model", "seed", "effort"], dataset=mnist().dataset)
    summary = accuracy_means(rows)
    for row in summary:
        low_high = row["saving_percent_spread"]
        print(
            f"{row['model']:10} drop {row['drop']}, mean of {row['n']}:  ours {number(row['n_bytes'], ',.0f')} B"
            f"  NNCodec {number(row['nncodec_bytes'], ',.0f')} B  saving {number(row['saving_percent'], '.1f')} %"
            + ("" if low_high is None else f" ({low_high[0]:.1f} to {low_high[1]:.1f})")
        )
    print("\n".join(verdict(summary, drop) for drop in DROPS))


if __name__ == "__main__":
    main()
