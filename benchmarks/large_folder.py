"""Whole commands on a large bfloat16 model in shards: speed and memory, one tensor of it, and dry runs.

    python -m benchmarks.large_folder --packages DIR [--gigabytes 2] [--shards 8] [--efforts 1] [--sparse-gigabytes 16]

The model is generated, see `benchmarks.generated`. For each effort: a dry run of the folder, packing it, unpacking it,
each in a process of its own as in `benchmarks.large_lossless`; then one tensor out of the archives, in a process that
has read another one before: the time of opening and reading, and how many bytes were read. At last a dry run of one
sparse file of zeros, which tells whether time and memory grow with a file's size. Speeds are bytes of the model by wall
time. Ours compiles its loops when it is run for the first time, so that an uncounted run comes first. Run it on an idle
machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import wcompress
from benchmarks.common import merge_result
from benchmarks.generated import generate, write_sparse
from benchmarks.large_lossless import measured, size_of
from benchmarks.models import argument_parser, integers

_TENSORS = "embeddings.position_embeddings.weight", "encoder.layer.3.attention.self.query.weight"
_REPEATS = 5


def read_bytes() -> int:
    """Bytes that this process has read so far, from wherever."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def one_tensor(archive: Path) -> dict[str, Any]:
    """Opening an archive and reading a tensor of it, in this process: median time, and bytes read."""
    name, other = _TENSORS
    with wcompress.open(archive) as opened:
        opened.get_tensor(other)
    seconds, n_read = [], []
    for _ in range(_REPEATS):
        before, start = read_bytes(), time.perf_counter()
        with wcompress.open(archive) as opened:
            tensor = opened.get_tensor(name)
        seconds.append(time.perf_counter() - start)
        n_read.append(read_bytes() - before)
    return {
        "tensor_bytes": tensor.numel() * tensor.element_size(),
        "s": statistics.median(seconds),
        "read_bytes": max(n_read),
        "read_share": max(n_read) / size_of(archive),
    }


def command(*arguments: object) -> list[str]:
    """Of ours."""
    return [sys.executable, "-m", "wcompress", *map(str, arguments), "--no-progress"]


def told(*arguments: object) -> dict[str, Any]:
    """What a command prints with `--json`."""
    printed = subprocess.run([*command(*arguments), "--json"], stdout=subprocess.PIPE, check=True).stdout
    return json.loads(printed)  # type: ignore[no-any-return]


def dry_run(source: Path, effort: int) -> dict[str, Any]:
    """Its time and memory, and what it tells."""
    arguments = ("pack", source, "-o", source.with_name("dry.wcz"), "--effort", effort, "--dry-run")
    figures = measured(command(*arguments))
    found = told(*arguments)
    return {**figures, "archive_bytes": found["archive_bytes"], **found["estimate"]}


def measure(model: Path, effort: int, folder: Path) -> dict[str, Any]:
    """One effort on the folder."""
    packed, restored = folder / "packed", folder / "restored"
    n_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    dry = dry_run(model, effort)
    packing = measured(command("pack", model, "-o", packed, "--effort", effort, "-f"))
    tensor = one_tensor(packed)
    unpacking = measured(command("unpack", packed, "-o", restored, "-f"))
    inspected = told("inspect", packed)
    return {
        "model": "generated",
        "effort": effort,
        "original_bytes": n_bytes,
        "n_bytes": size_of(packed),
        "bits_per_param": inspected["bits_per_param"],
        "sqnr_db": inspected["sqnr_db"],
        **{f"pack_{key}": value for key, value in packing.items()},
        "pack_mb_s": n_bytes / 1e6 / packing["s"],
        **{f"unpack_{key}": value for key, value in unpacking.items()},
        "unpack_mb_s": n_bytes / 1e6 / unpacking["s"],
        "one_tensor": tensor,
        "dry_run": dry,
    }


def main() -> None:
    """Measure, print, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.large_folder --packages wheels/")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the wheels")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the model (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=8, help="its files (default: %(default)s)")
    parser.add_argument("--efforts", type=integers, default=[1], help="of ours (default: 1)")
    parser.add_argument("--sparse-gigabytes", type=int, default=16, help="of the sparse file (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        generate(model, 60_000_000, 1, arguments.packages)
        for effort in arguments.efforts:
            measured(command("pack", model, "-o", Path(place) / "first", "-f", "--effort", effort))
        (model / "model-00001-of-00001.safetensors").unlink()
        generate(model, round(1e9 * arguments.gigabytes), arguments.shards, arguments.packages)
        for effort in arguments.efforts:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(model, effort, Path(folder))
            one, dry = row["one_tensor"], row["dry_run"]
            print(
                f"effort {effort}: {row['n_bytes']:,} B, {row['bits_per_param']:.3f} bits"
                f"  pack {row['pack_mb_s']:.1f} MB/s, {row['pack_cpu_s']:.0f} s of CPU, {row['pack_peak_mb']:.0f} MB"
                f"  unpack {row['unpack_mb_s']:.1f} MB/s, {row['unpack_cpu_s']:.0f} s, {row['unpack_peak_mb']:.0f} MB"
                f"  {one['tensor_bytes']:,} B in {1000 * one['s']:.0f} ms, {100 * one['read_share']:.2f} % read"
                f"  dry run {dry['s']:.1f} s, {dry['peak_mb']:.0f} MB: {dry['archive_bytes']:,} B,"
                f" {dry['seconds']:.0f} s, {dry['peak_bytes'] / 1e6:.0f} MB",
                flush=True,
            )
            merge_result("large_folder", [row], ["model", "effort"])
        sparse = Path(place) / "sparse.safetensors"
        n_layers = arguments.sparse_gigabytes * 4
        write_sparse(sparse, {f"layer.{i}.weight": (8192, 16384) for i in range(n_layers)})
        dry = dry_run(sparse, 5)
        row = {"model": "sparse", "effort": 5, "original_bytes": sparse.stat().st_size, "dry_run": dry}
        print(f"sparse file of {sparse.stat().st_size:,} B: dry run {dry['s']:.1f} s, {dry['peak_mb']:.0f} MB")
        merge_result("large_folder", [row], ["model", "effort"])


if __name__ == "__main__":
    main()
