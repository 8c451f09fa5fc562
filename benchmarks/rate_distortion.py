"""How far method `vae` is from the Shannon bound R(D) on synthetic sources.

    python -m benchmarks.rate_distortion [--weights 1000000] [--efforts 1,5,9]

Independent Gaussian and Laplacian weights are packed at several SQNRs, every byte of the archive counted. For the
Gaussian R(D) = ½ log₂(σ²/D); for the Laplacian the Shannon lower bound ½ log₂(2e²b² / (2πe D)) with σ² = 2b², which is
R(D) but for low rates. Writes `benchmarks/results/rate_distortion.json`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wcompress
from benchmarks.common import write_result

GAP_WANTED = 0.11
"""Bits a weight above R(D), at most, of the Gaussian at the highest effort."""

_SOURCES = ("gaussian", "laplacian")
_SQNR_DB = (7.0, 12.5, 18.5)


def bound_bits(source: str, sqnr_db: float) -> float:
    """Bits a weight that no code can do with less of (for the Laplacian: no code at high rate), at this SQNR."""
    gaussian = sqnr_db / (20 * math.log10(2))
    # The Laplacian's entropy power is e/π of its variance.
    return gaussian if source == "gaussian" else gaussian + 0.5 * math.log2(math.e / math.pi)


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=int, default=1_000_000)
    parser.add_argument("--efforts", default="1,5,9")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    n_rows = max(1, arguments.weights // 1000)
    with tempfile.TemporaryDirectory() as folder:
        for source in _SOURCES:
            rng = np.random.default_rng(0)
            draw = rng.normal if source == "gaussian" else rng.laplace
            weights = torch.from_numpy(draw(size=(n_rows, 1000))).float()
            for effort in map(int, arguments.efforts.split(",")):
                for sqnr_db in _SQNR_DB:
                    start = time.perf_counter()
                    result = wcompress.pack(
                        {"w": weights},
                        Path(folder) / "w.wcz",
                        method="vae",
                        sqnr=sqnr_db,
                        effort=effort,
                        force=True,
                    )
                    assert result.sqnr_db is not None
                    assert result.bits_per_param is not None
                    bound = bound_bits(source, result.sqnr_db)
                    row = {
                        "source": source,
                        "n_weights": weights.numel(),
                        "effort": effort,
                        "sqnr_db": result.sqnr_db,
                        "bits_per_param": result.bits_per_param,
                        "bound_bits": bound,
                        "gap_bits": result.bits_per_param - bound,
                        "seconds": time.perf_counter() - start,
                    }
                    rows.append(row)
                    print(
                        f"{source:9} effort {effort}  {row['sqnr_db']:6.2f} dB  {row['bits_per_param']:.4f} bits"
                        f"  bound {bound:.4f}  gap {row['gap_bits']:.4f}  {row['seconds']:.1f} s",
                        flush=True,
                    )
    write_result("rate_distortion", {"points": rows})


if __name__ == "__main__":
    main()
