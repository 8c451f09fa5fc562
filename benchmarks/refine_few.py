"""How small a baseline becomes with few data: 2,000 of MNIST's training images, without labels, and a drop of a point.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.refine_few [--models DIR] [--seeds 0,1,2]

Refinement is given the first 2,000 training images as calibration inputs and no other image to train on. The drop that
is allowed is measured as always, on the task's validation split: 5,000 labelled images of the training side, which are
in no calibration. So few data here means few to distil on; whoever names a drop has labelled images to measure it on.
They decide among at most six candidates, and how dear a bit is. For comparison the same model is packed without data
(`--refine off`), with the same drop allowed on the same validation split. The test set is read once for each archive,
after it is written. Bytes are the file's. Writes `benchmarks/results/refine_few.json`, a row at a time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import wcompress
from benchmarks.common import merge_result
from benchmarks.models import BASELINES, Tensors, add_model_arguments, argument_parser, baseline, integers, mnist
from wcompress.evaluate import build_model
from wcompress.tasks import BaselineTask

MAX_DROP = 1.0


@dataclass(frozen=True)
class FewInputs(BaselineTask):
    """A baseline's task that gives few calibration inputs.

    Attributes:
        n_calibration: the first so many training images are all there are.
    """

    n_calibration: int = 2000

    def calibration(self) -> Iterator[Tensor]:
        """Gives float32 [<= 128, 28, 28] in [0, 1]."""
        yield from self.data.train_images[: self.n_calibration].split(128)


def measure(task: FewInputs, tensors: Tensors, seed: int, refine: str) -> dict[str, Any]:
    """One model, packed and scored; `refine` is "on" or "off"."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = wcompress.pack(
            tensors, Path(folder) / "model.wcz", task=task, refine=refine, calibrate="off", max_drop=MAX_DROP
        )
        seconds = time.perf_counter() - start
        restored = wcompress.load(result.archive)
    before, after = (task.validate(build_model(task, found)) for found in (tensors, restored))
    assert result.task is not None
    return {
        "model": task.name,
        "seed": seed,
        "refine": refine,
        "n_calibration": task.n_calibration if refine == "on" else 0,
        "max_drop": MAX_DROP,
        "n_bytes": result.archive_bytes,
        "ratio": result.ratio,
        "validation_drop": before - after,
        "score_before": result.task.score_before,
        "score_after": result.task.score_after,
        "drop": result.task.drop,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, by model and number of calibration inputs, each beside packing without data."""
    found = []
    for name, n_inputs in dict.fromkeys((row["model"], row["n_calibration"]) for row in rows if row["n_calibration"]):
        some = [row for row in rows if (row["model"], row["n_calibration"]) == (name, n_inputs)]
        plain = [row["ratio"] for row in rows if row["model"] == name and not row["n_calibration"]]
        ratios, drops = [row["ratio"] for row in some], [row["drop"] for row in some]
        found.append(
            {
                "model": name,
                "n_calibration": n_inputs,
                "n_seeds": len(some),
                "ratio": statistics.mean(ratios),
                "least_ratio": min(ratios),
                "most_ratio": max(ratios),
                "ratio_without_data": statistics.mean(plain) if plain else None,
                "drop": statistics.mean(drops),
                "most_drop": max(drops),
                "seconds": max(row["seconds"] for row in some),
            }
        )
    return found


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.refine_few --seeds 0")
    add_model_arguments(parser, BASELINES)
    parser.set_defaults(only=["mnist-fnn"])
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2], help="of training (default: 0,1,2)")
    parser.add_argument("--n-calibration", type=int, default=2000, help="images without labels (default: %(default)s)")
    parser.add_argument("--refine", choices=["on", "off"], help="one of the two (default: both)")
    arguments: argparse.Namespace = parser.parse_args()
    for name in arguments.only:
        task = FewInputs(name, mnist(), n_calibration=arguments.n_calibration)
        for seed in arguments.seeds:
            for refine in [arguments.refine] if arguments.refine else ["on", "off"]:
                row = measure(task, baseline(arguments.models, name, seed), seed, refine)
                print(
                    f"{name:10} seed {seed}  refine {refine:3}  {row['n_bytes']:7,} B  {row['ratio']:6.1f}x  drop on"
                    f" validation {row['validation_drop']:.2f}, on test {row['drop']:.2f}  {row['seconds']:.0f} s",
                    flush=True,
                )
                merge_result("refine_few", [row], ["model", "seed", "refine", "n_calibration", "max_drop"])


if __name__ == "__main__":
    main()
