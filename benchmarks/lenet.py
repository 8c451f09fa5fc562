"""The two LeNets beside the literature: bytes of the whole archive at the test error that papers report.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.lenet [--models DIR] [--only NAME] [--seeds 0,1]

Each network is packed as a user would, with its task and `--max-drop`. The drop allowed is what is left between its
own error on the validation images and the error that papers report on the test set; the test images are scored once,
from the archive that came out. Bytes are the file's. Writes `benchmarks/results/lenet.json`, a row at a time, so that a
long run can be done in parts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wcompress
from benchmarks.common import markdown_table, merge_result
from benchmarks.curves import means
from benchmarks.models import (
    DEFAULT_EFFORT,
    LENETS,
    Tensors,
    add_model_arguments,
    argument_parser,
    baseline,
    baseline_task,
    integers,
)
from wcompress.evaluate import build_model

ERRORS = {"lenet-300-100": 1.9, "lenet-5-caffe": 1.0}
"""Percent of the test images, at which the smallest networks of the literature are reported."""
LITERATURE = (
    ("lenet-300-100", "Deep Compression, Han et al., arXiv 1510.00149", "27 KB", 40, "1.58 %", "1.64 %"),
    ("lenet-300-100", "Oktay et al., arXiv 1906.06624", "8.56 KB", 124, "1.9 %", "1.6 %"),
    ("lenet-5-caffe", "Deep Compression, Han et al., arXiv 1510.00149", "44 KB", 39, "0.74 %", "0.80 %"),
    ("lenet-5-caffe", "Oktay et al., arXiv 1906.06624", "2.84 KB", 606, "1.0 %", "0.7 %"),
    ("lenet-5-caffe", "MIRACLE, Havasi et al., arXiv 1810.00440", "1.52 KB", 1110, "0.96 %", "–"),
)
"""Network, source, size as its authors count it, ratio against float32, test error, that of the original."""


def measure(name: str, tensors: Tensors, seed: int, effort: int) -> dict[str, Any]:
    """One network, packed and scored."""
    task = baseline_task(name)
    validation_error = 100.0 - task.validate(build_model(task, tensors))
    max_drop = ERRORS[name] - validation_error
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = wcompress.pack(tensors, Path(folder) / "model.wcz", task=task, max_drop=max_drop, effort=effort)
    assert result.task is not None
    return {
        "model": name,
        "seed": seed,
        "effort": effort,
        "max_drop": max_drop,
        "n_bytes": result.archive_bytes,
        "sections": result.sections,
        "ratio": result.ratio,
        "error_before": 100.0 - result.task.score_before,
        "error": 100.0 - result.task.score_after,
        "validation_error_before": validation_error,
        "validation_drop": result.task.validation_drop,
        "chosen": result.task.chosen,
        "seconds": time.perf_counter() - start,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ours and the literature's, as Markdown.

    Args:
        rows: of `lenet.json`.
    """
    heading = ["network", "", "bytes", "ratio", "test error", "that of the original"]
    ours = means(rows, ("model", "effort"), ("n_bytes", "ratio", "error", "error_before"))
    cells: list[Sequence[str]] = []
    for model in LENETS:
        cells += [
            (name, source, size, f"{ratio:,}x", error, before)
            for name, source, size, ratio, error, before in LITERATURE
            if name == model
        ]
        cells += [_row(row) for row in ours if row["model"] == model]
    return markdown_table(heading, cells)


def _row(row: Mapping[str, Any]) -> Sequence[str]:
    sizes, errors = row["n_bytes_spread"], row["error_spread"]
    trainings = f"{row['n']} training" + ("s" if row["n"] > 1 else "")
    return (
        row["model"],
        f"wcompress, effort {row['effort']}, {trainings}",
        f"**{row['n_bytes']:,.0f} B**" + (f" ({sizes[0]:,} – {sizes[1]:,})" if row["n"] > 1 else ""),
        f"{row['ratio']:,.0f}x",
        f"{row['error']:.2f} %" + (f" ({errors[0]:.2f} – {errors[1]:.2f})" if row["n"] > 1 else ""),
        f"{row['error_before']:.2f} %",
    )


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.lenet --only lenet-5-caffe --seeds 0")
    add_model_arguments(parser, LENETS)
    parser.add_argument("--seeds", type=integers, default=[0], help="of training (default: 0)")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="of packing (default: %(default)s)")
    arguments: argparse.Namespace = parser.parse_args()
    rows = []
    for name in arguments.only:
        for seed in arguments.seeds:
            row = measure(name, baseline(arguments.models, name, seed), seed, arguments.effort)
            print(
                f"{name} seed {seed}  {row['n_bytes']:,} B  {row['ratio']:.0f}x  test error {row['error_before']:.2f} →"
                f" {row['error']:.2f} %  drop on validation {row['validation_drop']:.2f} of {row['max_drop']:.2f}"
                f"  {row['seconds']:.0f} s",
                flush=True,
            )
            rows.append(row)
            merge_result("lenet", [row], ["model", "seed", "effort"])
    print(table(rows))


if __name__ == "__main__":
    main()
