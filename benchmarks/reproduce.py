"""The paper's tables and figures on MNIST, and which scales its method needs.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.reproduce

Writes `benchmarks/results/reproduce/` (what `wcompress reproduce` writes, without models and archives), and
`benchmarks/results/reproduce.json`: accuracies, both ratios, times, and accuracy with one scale for the whole model
instead of one a tensor (docs/decisions/0002). About eight minutes on two cores.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, write_result
from wcompress.blocks import from_blocks, to_blocks
from wcompress.checkpoint import read_checkpoint
from wcompress.codec.methods.paper import coarsest_decoder, root_mean_square
from wcompress.codec.storage.dtypes import round_to_dtype
from wcompress.evaluate import score
from wcompress.report.reproduce import reproduce
from wcompress.tasks import load_mnist, load_task
from wcompress.vae.training import TrainingConfig, train_vae


def drop_with_one_scale(model: Path, name: str, score_before: float) -> float:
    """Points lost when the whole model shares one scale, as in the paper."""
    tensors = read_checkpoint(model).tensors
    blocks, layout = to_blocks({key: tensor.double().numpy() for key, tensor in tensors.items()})
    scale = root_mean_square(blocks[blocks != 0])
    trained = train_vae(blocks / scale, TrainingConfig())
    decoder, latents = coarsest_decoder(trained.layers, trained.latents, blocks / scale)
    arrays = from_blocks(decoder(latents) * scale, layout)
    restored = {key: round_to_dtype(np.asarray(array), torch.float32) for key, array in arrays.items()}
    return score_before - score(load_task(name), restored)


def main() -> None:
    """Run everything and write the results."""
    if "WCOMPRESS_DATA" in os.environ:
        os.environ["WCOMPRESS_DATA"] = str(Path(os.environ["WCOMPRESS_DATA"]).resolve())
    data = load_mnist()
    if data.dataset != "mnist":
        sys.exit("real MNIST is needed: set WCOMPRESS_DATA to the folder that holds the folder `mnist`")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path("reproduction")  # a relative path, since results tell it
        start = time.perf_counter()
        made = reproduce(
            folder, progress=lambda done, _, figures: print(f"{figures['stage']} {done}", end="\r", file=sys.stderr)
        )
        seconds = time.perf_counter() - start
        target = RESULTS / "reproduce"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for path in folder.iterdir():
            if path.suffix in {".json", ".csv", ".md", ".html", ".png"}:
                shutil.copy(path, target)
        for run in made.runs:
            drop = drop_with_one_scale(folder / f"{run.name}.pt", run.name, run.score_before)
            row = {
                "model": run.name,
                "n_params": run.pack.n_params,
                "score_before": run.score_before,
                "score_after": run.score_after,
                "drop": run.drop,
                "drop_with_one_scale": drop,
                "latent_ratio": run.pack.latent_ratio,
                "ratio": run.pack.ratio,
                "archive_bytes": run.pack.archive_bytes,
                "sqnr_db": run.pack.sqnr_db,
                "train_seconds": run.train_seconds,
                "pack_seconds": run.pack_seconds,
                "unpack_seconds": run.unpack_seconds,
            }
            rows.append(row)
            print(row)
    print(f"wcompress reproduce took {seconds:.0f} s")
    write_result("reproduce", {"dataset": data.dataset, "seed": 0, "reproduce_seconds": seconds, "models": rows})


if __name__ == "__main__":
    main()
