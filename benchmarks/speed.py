"""Seconds to encode and to decode, against NNCodec 2, and of the commands from start to end.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.speed [--only library] [--efforts 1,5] [--real DIR]

`library`: Gaussian weights in tensors of 1000×1000, at about 2 bits each. Ours are `wcompress.pack` and `load` in this
process: from tensors to a file that met its size and was decoded as a check, and back. NNCodec's are its own calls in
memory at the one `qp` that comes closest to our bits, with its defaults and with `BEST`; the faster of the two counts.
All take turns, and everything has run once before. `commands`: `python -m wcompress pack` and `unpack` of small models'
checkpoints, each from a copy of the package without anything compiled, as on a first run, and again.

Writes `benchmarks/results/speed.json`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import merge_result
from benchmarks.models import (
    BASELINES,
    DEFAULT_CACHE,
    DEFAULT_EFFORT,
    REAL,
    Tensors,
    add_venv_argument,
    argument_parser,
    as_arrays,
    baseline,
    baseline_path,
    integers,
    n_params,
    names_from,
    pack_and_load,
    synthetic,
)
from benchmarks.peers import BEST, NNCodec, usual_qps

ROOT = Path(__file__).resolve().parent.parent
BITS = 2.0
NNCODEC_SETTINGS: dict[str, dict[str, Any]] = {"NNCodec": {}, "NNCodec best": BEST}
FIRST_LIMITS = {"pack": 10.0, "unpack": 10.0}
"""Seconds that the first run of a command may take at the default effort."""
LIMITS = {"pack": 6.0, "unpack": 3.0}
"""Seconds that later runs may take."""

_PARTS = ("library", "commands")


def several(n_weights: int) -> Tensors:
    """Gaussian weights in tensors of 1000×1000."""
    rows = synthetic("gaussian", max(1, n_weights // 1000))["w"]
    return {f"layer{i}.weight": part.contiguous() for i, part in enumerate(rows.split(1000))}


def least_and_median(seconds: Sequence[float]) -> dict[str, float]:
    """What is told of repeated measurements."""
    return {"least": min(seconds), "median": statistics.median(seconds)}


def against(
    ours: dict[str, Any], theirs: Sequence[dict[str, Any]], default_effort: int = DEFAULT_EFFORT
) -> dict[str, Any]:
    """Our median seconds against NNCodec's of the same run, of which the faster setting's count.

    Args:
        ours: with `effort`, `encode_s` and `decode_s`.
        theirs: with `encode_s` and `decode_s`.
        default_effort: which effort the second target is for.

    Returns:
        How many times as fast ours encodes and decodes, and which of the targets are met: to encode 5 times as fast at
        effort 1 and a third as fast at the default, to decode twice as fast at both.
    """
    encodes, decodes = (
        min(row[name]["median"] for row in theirs) / ours[name]["median"] for name in ("encode_s", "decode_s")
    )
    wanted = {default_effort: 1 / 3, 1: 5.0}.get(ours["effort"])
    return {
        "encodes_times_as_fast": encodes,
        "decodes_times_as_fast": decodes,
        "encode_met": None if wanted is None else encodes >= wanted,
        "decode_met": None if wanted is None else decodes >= 2,
    }


def measure_library(codec: NNCodec, n_weights: int, efforts: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Ours at each effort, and NNCodec; one row for each."""
    warm_up = several(2000)
    for effort in efforts:
        pack_and_load(warm_up, bits_per_weight=BITS + 1, effort=effort)
    tensors = several(n_weights)
    arrays = as_arrays(tensors)
    one = dict(list(arrays.items())[:1])
    names = [f"effort {effort}" for effort in efforts]
    qps: dict[str, int] = {}
    for name, settings in NNCODEC_SETTINGS.items():
        budget = BITS * next(iter(one.values())).size / 8
        # All tensors are alike: the `qp` is found on the first.
        qps[name] = min(
            usual_qps(one, 0.4, 1.6),
            key=lambda qp, settings=settings: abs(codec.encode_decode(one, qp=qp, **settings).n_bytes - budget),
        )
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*names, *NNCODEC_SETTINGS)}
    n_bytes: dict[str, int] = {}
    for _ in range(repeats):
        for name, effort in zip(names, efforts, strict=True):
            ours = pack_and_load(tensors, bits_per_weight=BITS, effort=effort)
            seconds[name].append((ours.seconds["pack"], ours.seconds["load"]))
            n_bytes[name] = ours.n_bytes
        for name, settings in NNCODEC_SETTINGS.items():
            theirs = codec.encode_decode(arrays, qp=qps[name], **settings)
            seconds[name].append((theirs.encode_s, theirs.decode_s))
            n_bytes[name] = theirs.n_bytes
    rows: list[dict[str, Any]] = [
        {
            "what": "library",
            "name": name,
            "effort": dict(zip(names, efforts, strict=True)).get(name),
            "n_params": n_params(tensors),
            "repeats": repeats,
            "bits_per_param": 8 * n_bytes[name] / n_params(tensors),
            "encode_s": least_and_median([encode for encode, _ in found]),
            "decode_s": least_and_median([decode for _, decode in found]),
        }
        for name, found in seconds.items()
    ]
    theirs = [row for row in rows if row["effort"] is None]
    return [row if row["effort"] is None else {**row, **against(row, theirs)} for row in rows]


def run_command(arguments: Sequence[str], place: Path) -> float:
    """Seconds that a command of wcompress takes.

    Args:
        arguments: of the command.
        place: holds the package, and nothing compiled of it at first.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache"), "TMPDIR": str(place)}
    environment.pop("NUMBA_CACHE_DIR", None)
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "wcompress", *arguments]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=place, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def checkpoint_of(model: str, baselines: Path, real: Path | None) -> Path | None:
    """A small model's file; None of a real one that is not there."""
    if model in BASELINES:
        baseline(baselines, model)
        return baseline_path(baselines, model)
    found = sorted(real.glob(REAL[model])) if real is not None else []
    return found[0] if found else None


def measure_commands(checkpoint: Path, model: str, repeats: int) -> list[dict[str, Any]]:
    """`pack` and `unpack`; one row for each."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive, restored = folder / "model.wcz", folder / "model.safetensors"
        commands = {
            "pack": ["pack", str(checkpoint.resolve()), "-o", str(archive), "--method", "vae", "-f", "-q"],
            "unpack": ["unpack", str(archive), "-o", str(restored), "-f", "-q"],
        }
        for command, arguments in commands.items():
            # The second command may not profit from what the first compiled.
            place = folder / command
            shutil.copytree(ROOT / "wcompress", place / "wcompress", ignore=shutil.ignore_patterns("__pycache__"))
            first = run_command(arguments, place)
            again = [run_command(arguments, place) for _ in range(repeats)]
            rows.append(
                {
                    "what": "command",
                    "name": command,
                    "model": model,
                    "repeats": repeats,
                    "first_s": first,
                    "again_s": least_and_median(again),
                    "first_limit_s": FIRST_LIMITS[command],
                    "limit_s": LIMITS[command],
                    "first_met": first <= FIRST_LIMITS[command],
                    "again_met": statistics.median(again) <= LIMITS[command],
                }
            )
    return rows


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.speed --only library --weights 1000000 --repeats 1")
    parser.add_argument("--only", type=names_from(_PARTS), default=list(_PARTS), metavar="PART[,PART]")
    parser.add_argument("--weights", type=int, default=10_000_000, help="of the library's test (default: %(default)s)")
    parser.add_argument(
        "--efforts", type=integers, default=[1, DEFAULT_EFFORT], help=f"of ours (default: 1,{DEFAULT_EFFORT})"
    )
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--models", type=Path, default=DEFAULT_CACHE, help="folder of the baselines' checkpoints")
    parser.add_argument("--real", type=Path, help="folder of BlazeFace's and Silero VAD's checkpoints")
    parser.add_argument(
        "--command-models",
        type=names_from((*BASELINES, *REAL)),
        default=[*BASELINES, *REAL],
        metavar="MODEL[,MODEL]",
        help="for the commands (default: all that are there)",
    )
    add_venv_argument(parser)
    arguments = parser.parse_args()
    key = ["what", "name"]
    if "library" in arguments.only:
        with NNCodec(arguments.nncodec_venv) as codec:
            rows = measure_library(codec, arguments.weights, arguments.efforts, arguments.repeats)
        for row in rows:
            print(
                f"{row['name']:12} {row['bits_per_param']:.3f} bits"
                f"  encode {row['encode_s']['least']:7.2f} s, median {row['encode_s']['median']:7.2f} s"
                f"  decode {row['decode_s']['least']:6.2f} s, median {row['decode_s']['median']:6.2f} s"
            )
        met = {True: "met", False: "missed", None: "no target"}
        for row in rows:
            if row["effort"] is not None:
                print(
                    f"{row['name']}: encodes {row['encodes_times_as_fast']:.2f} times as fast"
                    f" ({met[row['encode_met']]}), decodes {row['decodes_times_as_fast']:.2f} times as fast"
                    f" ({met[row['decode_met']]})",
                    flush=True,
                )
        merge_result("speed", rows, [*key, "model"])
    if "commands" in arguments.only:
        for model in arguments.command_models:
            path = checkpoint_of(model, arguments.models, arguments.real)
            if path is None:
                print(f"{model}: skipped; its checkpoint is not in --real")
                continue
            rows = measure_commands(path, model, arguments.repeats)
            for row in rows:
                print(
                    f"wcompress {row['name']} {model}: {row['first_s']:.1f} s at first"
                    f" ({'met' if row['first_met'] else 'missed'}: {row['first_limit_s']:.0f} s),"
                    f" {row['again_s']['least']:.1f} s, median {row['again_s']['median']:.1f} s"
                    f" ({'met' if row['again_met'] else 'missed'}: {row['limit_s']:.0f} s)",
                    flush=True,
                )
            merge_result("speed", rows, [*key, "model"])


if __name__ == "__main__":
    main()
