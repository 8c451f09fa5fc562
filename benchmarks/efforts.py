"""What each effort costs and gains: bytes, states of the trellis, seconds of the processor, memory.

    python -m benchmarks.efforts [--packages DIR] [--real DIR] [--only minilm,silero] [--efforts 1,2,3]

`minilm`, 22.7 million weights in groups, at efforts 1 to 7; `minilm-2-layers`, 3.5 million of them; `silero`, 0.3
million weights, at efforts 1 to 9: of the float tensors, at `--sqnr 22`. Each row is one `wcompress pack` in a process
of its own, after one that nobody counts, so that compiled code is there. Archives are compared at an equal SQNR: a
weight costs a bit more for every 6.02 dB. Run it on an idle machine. Writes `benchmarks/results/efforts.json`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import wcompress
from benchmarks.ablation import bytes_at_equal_sqnr
from benchmarks.common import merge_result
from benchmarks.models import argument_parser, integers, names_from, real_model
from benchmarks.real_networks import PART, float_tensors
from benchmarks.scale import run
from wcompress.checkpoint import write_checkpoint
from wcompress.codec.quantiser.trellis import N_STATES
from wcompress.entropy.bits import BitReader

SQNR_DB = 22.0
EFFORTS = {"minilm": range(1, 8), PART: range(1, 8), "silero": range(1, 10)}
_BITS_OF_STEP = 64  # before the trellis in the section `tables`, see docs/format.md


def n_states(archive: Path) -> int:
    """Of the trellis of an archive's first group."""
    with wcompress.open(archive) as opened:
        tables = BitReader(opened.section("tables"), "tables")
    for _ in range(_BITS_OF_STEP // 8):
        tables.read(8)
    return N_STATES[tables.read(4)]


def measure(name: str, checkpoint: Path, effort: int, archive: Path) -> dict[str, Any]:
    """One model at one effort."""
    packed, figures = run(
        ["pack", str(checkpoint), "-o", str(archive), "-f", "--sqnr", str(SQNR_DB), "--effort", str(effort)]
    )
    return {
        "model": name,
        "effort": effort,
        "n_params": packed["n_params"],
        "n_bytes": packed["archive_bytes"],
        "bytes_at_equal_sqnr": bytes_at_equal_sqnr(
            packed["archive_bytes"], packed["sqnr_db"], SQNR_DB, packed["n_params"]
        ),
        "sqnr_db": packed["sqnr_db"],
        "n_states": n_states(archive),
        **{f"pack_{key}": value for key, value in figures.items()},
    }


def _checkpoints(
    only: Sequence[str], packages: Path | None, real: Path | None, folder: Path
) -> Iterator[tuple[str, Path]]:
    for name in only:
        tensors = None
        if name == "silero":
            tensors = real_model(real, name)
        elif packages is not None:
            tensors = float_tensors(packages, name)
        if tensors is None:
            print(f"{name}: skipped; --{'real' if name == 'silero' else 'packages'} is not given")
            continue
        path = folder / f"{name}.safetensors"
        write_checkpoint(path, tensors, format="safetensors")
        yield name, path


def main() -> None:
    """Measure, print, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.efforts --packages wheels/ --real models/")
    parser.add_argument("--packages", type=Path, help="folder of the wheels")
    parser.add_argument("--real", type=Path, help="folder of Silero VAD's checkpoint")
    parser.add_argument(
        "--only", type=names_from(tuple(EFFORTS)), default=["silero", "minilm"], metavar="MODEL[,MODEL]"
    )
    parser.add_argument("--efforts", type=integers, help="instead of all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, path in _checkpoints(arguments.only, arguments.packages, arguments.real, folder):
            efforts = list(arguments.efforts or EFFORTS[model])
            measure(model, path, efforts[0], folder / "model.wcz")
            for effort in efforts:
                row = measure(model, path, effort, folder / "model.wcz")
                print(
                    f"{model:16} effort {effort}  {row['n_bytes']:,} B  {row['sqnr_db']:.2f} dB"
                    f"  {row['n_states']} states  {row['pack_cpu_s']:.1f} s of CPU  {row['pack_peak_mb']:.0f} MB",
                    flush=True,
                )
                merge_result("efforts", [row], ["model", "effort"])


if __name__ == "__main__":
    main()
