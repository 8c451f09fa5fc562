"""How small the four baselines become when a user allows a drop: `--max-drop` with real MNIST.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.refine [--models DIR] [--only mnist-fnn] [--seeds 0,1,2]
    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.refine --max-drop 0.5,1.0
    python -m benchmarks.refine --figure-only

Each model is packed as a user would, with its task and a drop of so many points allowed on the validation split. The
drop on the test set is read once, from the archive that came out. Bytes are the file's. Writes
`benchmarks/results/refine.json`, a row at a time, so that a long run can be done in parts. At its end the table of all
rows is printed and the figure drawn, see `benchmarks.refine_figure`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wcompress
from benchmarks import refine_figure
from benchmarks.common import RESULTS, markdown_table, merge_result
from benchmarks.curves import means
from benchmarks.models import BASELINES, Tensors, add_model_arguments, argument_parser, baseline, integers, numbers


def measure(name: str, tensors: Tensors, seed: int, max_drop: float) -> dict[str, Any]:
    """One model, packed and scored."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = wcompress.pack(tensors, Path(folder) / "model.wcz", task=name, max_drop=max_drop)
    assert result.task is not None
    return {
        "model": name,
        "seed": seed,
        "max_drop": max_drop,
        "n_bytes": result.archive_bytes,
        "ratio": result.ratio,
        "score_before": result.task.score_before,
        "score_after": result.task.score_after,
        "drop": result.task.drop,
        "validation_drop": result.task.validation_drop,
        "validation_error": result.task.validation_error,
        "chosen": result.task.chosen,
        "seconds": time.perf_counter() - start,
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, by the drop allowed and the model; `NAME_spread` is the least and the most."""
    found = means(rows, ("max_drop", "model"), ("ratio", "drop", "seconds"))
    return sorted(found, key=lambda row: (row["max_drop"], BASELINES.index(row["model"])))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, as Markdown.

    Args:
        rows: of `refine.json`.
    """
    heading = ["model", "points allowed", "trainings", "ratio, mean (range)", "test points lost, mean (most)", "time"]
    cells = [
        [
            row["model"],
            f"{row['max_drop']:g}",
            str(row["n"]),
            f"**{row['ratio']:.0f}x** ({row['ratio_spread'][0]:.0f} – {row['ratio_spread'][1]:.0f})",
            f"{row['drop']:.2f} ({row['drop_spread'][1]:.2f})",
            f"≤ {row['seconds_spread'][1]:.0f} s",
        ]
        for row in summary(rows)
    ]
    return markdown_table(heading, cells)


def main() -> None:
    """Measure, print a table, write the result and the figure."""
    parser = argument_parser(__doc__, "python -m benchmarks.refine --only mnist-fnn --seeds 0 --max-drop 0.5,1.0")
    add_model_arguments(parser, BASELINES)
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2], help="of training (default: 0,1,2)")
    parser.add_argument(
        "--max-drop",
        type=numbers,
        default=[0.5],
        metavar="POINTS[,POINTS]",
        help="on validation, such as 0.5,1.0 (default: 0.5)",
    )
    parser.add_argument("--figure-only", action="store_true", help="measure nothing, draw what is committed")
    arguments: argparse.Namespace = parser.parse_args()
    jobs = [] if arguments.figure_only else [(name, seed) for name in arguments.only for seed in arguments.seeds]
    for name, seed in jobs:
        tensors = baseline(arguments.models, name, seed)
        for max_drop in arguments.max_drop:
            row = measure(name, tensors, seed, max_drop)
            print(
                f"{name:10} seed {seed}  {row['n_bytes']:7,} B  {row['ratio']:6.1f}x  {row['score_before']:.2f} →"
                f" {row['score_after']:.2f} %  drop {row['drop']:.2f} (allowed {max_drop:g}, on validation"
                f" {row['validation_drop']:.2f} ± {row['validation_error']:.2f})  {row['seconds']:.0f} s",
                flush=True,
            )
            merge_result("refine", [row], ["model", "seed", "max_drop"])
    committed = RESULTS / "refine.json"
    print(table(json.loads(committed.read_text())["rows"] if committed.exists() else []))
    print("\n" + "\n".join(f"written: {path.relative_to(RESULTS.parent)}" for path in refine_figure.write(RESULTS)))


if __name__ == "__main__":
    main()
