"""Exact compression of a large bfloat16 model: time, memory and ratio of whole commands, ours beside ZipNN and zstd.

    python -m benchmarks.large_lossless --packages DIR [--gigabytes 2] [--only wcompress,zipnn] [--nncodec-venv DIR]

The model is generated, see `benchmarks.generated`. Each row packs and unpacks all of its shards, each time in a process
of its own: wall time, time of all processors together and the most memory resident, as the system tells when it ends.
Ours checks what its archive restores to before it is done, and each side is compared with the model afterwards. ZipNN
and `zstd -3` compress one shard after another in memory; what they import counts, as it does for ours. BigSmall and
z4ai are measured where their packages lie in the environment that `--peers-python` names. What cannot be measured, or
takes longer than `--limit-s`, is a row that says why. Ours compiles its loops when it is run for the first time, so
that an uncounted run comes first. Run it on an idle machine.
"""

from __future__ import annotations

import filecmp
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import merge_result
from benchmarks.generated import generate
from benchmarks.models import add_venv_argument, argument_parser, names_from
from benchmarks.peers_setup import ensure_nncodec

OURS = {"wcompress": 5, "wcompress --effort 1": 1}
"""Efforts, by the name of the row."""

_PREAMBLE = "import sys\nfrom pathlib import Path\nread, write, paths = sys.argv[1], sys.argv[2], sys.argv[3:]\n"
_LOOP = """
for path in paths:
    data = Path(read, path).read_bytes()
    Path(write, path).write_bytes(CALL)
"""
_CODE = {
    "zipnn": (
        "from zipnn import ZipNN",
        "bytes(ZipNN(input_format='byte', bytearray_dtype='bfloat16').compress(bytearray(data)))",
        "ZipNN(input_format='byte').decompress(data)",
    ),
    "zstd -3": (
        "import zstandard",
        "zstandard.ZstdCompressor(level=3).compress(data)",
        "zstandard.ZstdDecompressor().decompress(data)",
    ),
    "z4ai": ("import z4ai", "z4ai.compress(data)", "z4ai.decompress(data)"),
    "bigsmall": (
        "import bigsmall",
        "bigsmall.compress(str(Path(read, path)), str(Path(write, path))) and Path(write, path).read_bytes()",
        "bigsmall.decompress(str(Path(read, path)), str(Path(write, path))) and Path(write, path).read_bytes()",
    ),
}
"""What other codecs import, and how they compress and decompress `data`."""


def measured(command: Sequence[str], limit_s: float | None = None) -> dict[str, float]:
    """One process: `s`, `cpu_s` and `peak_mb` of it.

    Args:
        command: to run.
        limit_s: seconds after which it is ended.

    Raises:
        RuntimeError: it was ended, or failed; then the last line of what it wrote on the standard error.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        # With its workers, if it has any.
        timer = threading.Timer(limit_s or threading.TIMEOUT_MAX, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if limit_s is not None and seconds >= limit_s:
            raise RuntimeError(f"had not ended after {limit_s:.0f} s")
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit {process.returncode}")
    return {"s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1e3}


def same_files(folder: Path, other: Path) -> bool:
    """Whether the second folder holds the first one's shards, byte for byte."""
    return all(filecmp.cmp(path, other / path.name, shallow=False) for path in folder.glob("*.safetensors"))


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def commands(name: str, python: Path | str, model: Path, packed: Path, restored: Path) -> list[list[str]]:
    """How to pack and how to unpack."""
    if name in OURS:
        ours = [str(python), "-m", "wcompress"]
        pack = [*ours, "pack", str(model), "-o", str(packed), "-f", "--method", "lossless", "-q"]
        return [[*pack, "--effort", str(OURS[name])], [*ours, "unpack", str(packed), "-o", str(restored), "-f", "-q"]]
    names = sorted(path.name for path in model.glob("*.safetensors"))
    imports, *calls = _CODE[name]
    places = ((model, packed), (packed, restored))
    for _, write in places:
        write.mkdir(exist_ok=True)
    return [
        [str(python), "-c", f"{_PREAMBLE}{imports}{_LOOP.replace('CALL', call)}", str(read), str(write), *names]
        for call, (read, write) in zip(calls, places, strict=True)
    ]


def measure(name: str, python: Path | str, model: Path, folder: Path, limit_s: float | None) -> dict[str, Any]:
    """One codec on the model; only `unavailable` says why where it cannot be measured."""
    packed, restored = folder / "packed", folder / "restored"
    row: dict[str, Any] = {"name": name, "unavailable": None}
    try:
        pack, unpack = commands(name, python, model, packed, restored)
        packing = measured(pack, limit_s)
        unpacking = measured(unpack, limit_s)
    except RuntimeError as error:
        if name in OURS:
            raise
        return {**row, "unavailable": str(error)[:120]}
    if not same_files(model, restored):
        return {**row, "unavailable": "gave back other bytes"}
    row |= {"original_bytes": size_of(model), "n_bytes": size_of(packed)}
    row["ratio"] = row["original_bytes"] / row["n_bytes"]
    row |= {f"pack_{key}": value for key, value in packing.items()}
    return row | {f"unpack_{key}": value for key, value in unpacking.items()}


def main() -> None:
    """Measure, print, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.large_lossless --packages wheels/")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the wheels")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the model (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=8, help="its files (default: %(default)s)")
    parser.add_argument("--peers-python", type=Path, help="Python that has z4ai and bigsmall")
    parser.add_argument("--only", type=names_from((*OURS, *_CODE)), default=[*OURS, *_CODE], metavar="NAME[,NAME]")
    parser.add_argument("--limit-s", type=float, default=300.0, help="for each command (default: %(default)s)")
    add_venv_argument(parser)
    arguments = parser.parse_args()
    pythons: dict[str, Path | str] = dict.fromkeys((*OURS, "zstd -3"), sys.executable)
    if "zipnn" in arguments.only:
        pythons["zipnn"] = ensure_nncodec(arguments.nncodec_venv)
    pythons |= dict.fromkeys(("z4ai", "bigsmall"), arguments.peers_python or sys.executable)
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        if any(name in OURS for name in arguments.only):
            generate(model, 60_000_000, 1, arguments.packages)
            for name in OURS:
                for command in commands(name, sys.executable, model, Path(place) / "first", Path(place) / "again"):
                    measured(command)
            (model / "model-00001-of-00001.safetensors").unlink()
        n_bytes = generate(model, round(1e9 * arguments.gigabytes), arguments.shards, arguments.packages)
        for name in arguments.only:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(name, pythons[name], model, Path(folder), arguments.limit_s)
            row |= {"tensor_bytes": n_bytes}
            merge_result("large_lossless", [row], ["name"])
            if row["unavailable"]:
                print(f"{name:22} unavailable: {row['unavailable']}", flush=True)
                continue
            print(
                f"{name:22} {row['ratio']:.4f}x  pack {row['pack_cpu_s']:.1f} s of CPU, {row['pack_s']:.1f} s,"
                f" {row['pack_peak_mb']:.0f} MB  unpack {row['unpack_cpu_s']:.1f} s of CPU, {row['unpack_s']:.1f} s,"
                f" {row['unpack_peak_mb']:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
