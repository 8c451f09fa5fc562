"""What the floors of each tensor, row and channel cost: archives at an equal SQNR with and without them.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.floors [--real DIR] [--only silero] [--sqnr 10,16,22]

Both are packed in one run with the same options but `floors`. Bytes are brought to the same SQNR, a bit a weight for
6.02 dB, since a target is met within 0.05 dB. Writes `benchmarks/results/floors.json`.
"""

from __future__ import annotations

from typing import Any

from benchmarks.ablation import bytes_at_equal_sqnr
from benchmarks.common import merge_result
from benchmarks.models import (
    BASELINES,
    DEFAULT_EFFORT,
    REAL,
    Packed,
    Tensors,
    add_model_arguments,
    argument_parser,
    chosen_models,
    n_params,
    numbers,
    pack_and_load,
)
from wcompress.fidelity import Worst, compare


def measure(name: str, tensors: Tensors, effort: int, sqnr_db: float) -> dict[str, Any]:
    """One model at one SQNR, with floors and without."""
    coded = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point() and tensor.ndim >= 2)
    kept, free = (pack_and_load(tensors, sqnr=sqnr_db, effort=effort, floors=floors) for floors in (True, False))
    assert kept.sqnr_db is not None
    assert free.sqnr_db is not None
    return {
        "model": name,
        "effort": effort,
        "asked_sqnr_db": sqnr_db,
        "n_params": n_params(tensors),
        "sqnr_db": kept.sqnr_db,
        "n_bytes": kept.n_bytes,
        "bytes_without": bytes_at_equal_sqnr(free.n_bytes, free.sqnr_db, kept.sqnr_db, coded),
        **_worst(tensors, kept, ""),
        **_worst(tensors, free, "_without"),
    }


def _worst(tensors: Tensors, packed: Packed, suffix: str) -> dict[str, float | None]:
    worst = compare(tensors, packed.restored).worst or Worst("", 0.0)
    return {f"worst_tensor_db{suffix}": worst.sqnr_db, f"worst_row_db{suffix}": worst.row_sqnr_db}


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.floors --only mnist-fnn,silero --real models/")
    add_model_arguments(parser, (*BASELINES, *REAL))
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="1 to 9 (default: %(default)s)")
    parser.add_argument("--sqnr", type=numbers, default=[10.0, 16.0, 22.0], metavar="DB[,DB]", help="targets")
    arguments = parser.parse_args()
    for name, tensors in chosen_models(arguments):
        for sqnr_db in arguments.sqnr:
            row = measure(name, tensors, arguments.effort, sqnr_db)
            more = 100 * (row["n_bytes"] / row["bytes_without"] - 1)
            print(
                f"{name:10} {row['sqnr_db']:6.2f} dB  {row['n_bytes']:,} B ({more:+.1f} %)"
                f"  worst tensor {row['worst_tensor_db']:.1f} dB (without {row['worst_tensor_db_without']:.1f})"
                f"  worst row {row['worst_row_db']:.1f} dB (without {row['worst_row_db_without']:.1f})",
                flush=True,
            )
            merge_result("floors", [row], ["model", "effort", "asked_sqnr_db"])


if __name__ == "__main__":
    main()
