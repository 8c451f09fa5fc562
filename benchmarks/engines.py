"""A model folder packed by each engine: the same bytes, workers killed or not, and how long each takes.

    python -m benchmarks.engines --packages DIR [--megabytes 200] [--shards 7] [--effort 2] [--kills 5]

The model is generated, see `benchmarks.generated`. It is packed by one process, by two worker processes, as two tasks
at once of a ray cluster that was started before with two processors, and in parts on "many machines", one after the
other, which `wcompress join` puts together. Then, at effort 1 and for each kill, by two worker processes and with ray
again while one worker that is at work is killed, at a random moment between a quarter and three quarters of the time.
All folders of one effort are compared byte by byte. `pip install 'wcompress[ray]'` comes first; run it on
an idle machine.

Writes `benchmarks/results/engines.json`.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import merge_result
from benchmarks.generated import generate
from benchmarks.large_folder import command
from benchmarks.models import argument_parser

ENGINES: dict[str, list[str]] = {
    "one process": [],
    "processes": ["--engine", "processes", "--workers", "2"],
    "ray": ["--engine", "ray"],
}
_WORKERS = {"processes": "wcompress.directories.worker", "ray": "ray::_packed"}
_SHARDS_LEFT = 0.75  # of the time, in which a worker is killed


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """A ray cluster of two processors on this machine, which this process's children join."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run(
        [*ray, "start", "--head", "--num-cpus=2", "--include-dashboard=false"], check=True, capture_output=True
    )
    os.environ["RAY_ADDRESS"] = "auto"
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        subprocess.run([*ray, "stop", "--force"], check=True, capture_output=True)


def same(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for folder in (first, second)
    ]
    return names[0] == names[1] and all(filecmp.cmp(first / name, second / name, shallow=False) for name in names[0])


def workers(name: str) -> list[int]:
    """Processes at work."""
    lines = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if name in line]


def packed(model: Path, out: Path, arguments: Sequence[str], effort: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    subprocess.run(
        [*command("pack", model, "-o", out, "--effort", effort), *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def packed_in_parts(model: Path, out: Path, n_parts: int, effort: int) -> float:
    """Seconds of all parts, one after the other, and of joining them."""
    seconds = sum(packed(model, out, ["--shard", f"{part}/{n_parts}"], effort) for part in range(1, n_parts + 1))
    start = time.perf_counter()
    subprocess.run(command("join", out), check=True, stdout=subprocess.DEVNULL)
    return seconds + time.perf_counter() - start


def packed_with_a_kill(model: Path, out: Path, engine: str, after: float) -> bool:
    """Whether a worker that was at work after so many seconds was killed, and packing went on."""
    process = subprocess.Popen(
        [*command("pack", model, "-o", out, "--effort", 1), *ENGINES[engine]], stdout=subprocess.DEVNULL
    )
    time.sleep(after)
    victims = workers(_WORKERS[engine])
    if victims and process.poll() is None:
        os.kill(victims[-1], signal.SIGKILL)
    if process.wait():
        raise RuntimeError(f"{engine}: exit {process.returncode} after a worker was killed")
    return bool(victims)


def main() -> None:
    """Measure, print, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.engines --packages wheels/")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the wheels")
    parser.add_argument("--megabytes", type=int, default=200, help="size of the model (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=7, help="its files (default: %(default)s)")
    parser.add_argument("--effort", type=int, default=2, help="of packing (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=5, help="workers of each engine (default: %(default)s)")
    arguments = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as place, cluster():
        folder = Path(place)

        def row(name: str, seconds: float, out: Path, first: Path, **more: Any) -> dict[str, Any]:
            found = {"engine": name, "effort": arguments.effort, "s": seconds, "same_bytes": same(first, out), **more}
            print(found, flush=True)
            return found

        n_bytes = generate(folder / "model", arguments.megabytes * 1_000_000, arguments.shards, arguments.packages)
        packed(folder / "model", folder / "warm.wcz", [], arguments.effort)
        shutil.rmtree(folder / "warm.wcz")
        rows = []
        for name, options in ENGINES.items():
            out = folder / f"{name}.wcz"
            rows.append(
                row(name, packed(folder / "model", out, options, arguments.effort), out, folder / "one process.wcz")
            )
        out, n_shards = folder / "parts.wcz", len(list((folder / "model").glob("*.safetensors")))
        seconds = packed_in_parts(folder / "model", out, n_shards, arguments.effort)
        rows.append(row("parts", seconds, out, folder / "one process.wcz"))
        first = folder / "quick.wcz"
        packed(folder / "model", first, [], 1)
        for name in _WORKERS:
            undisturbed = packed(folder / "model", folder / "timed.wcz", ENGINES[name], 1)
            kills = all_same = 0
            seconds = time.perf_counter()
            for _ in range(arguments.kills):
                shutil.rmtree(folder / "timed.wcz")
                after = rng.uniform(0.25, _SHARDS_LEFT) * undisturbed
                kills += packed_with_a_kill(folder / "model", folder / "timed.wcz", name, after)
                all_same += same(first, folder / "timed.wcz")
            shutil.rmtree(folder / "timed.wcz")
            seconds = (time.perf_counter() - seconds) / arguments.kills
            found = {
                "engine": f"{name}, workers killed",
                "effort": 1,
                "s": seconds,
                "same_bytes": all_same == arguments.kills,
            }
            rows.append({**found, "kills": kills, "undisturbed_s": undisturbed})
            print(rows[-1], flush=True)
        fixed = {"original_bytes": n_bytes, "n_shards": n_shards}
        merge_result("engines", [{**fixed, **found} for found in rows], ["engine"])


if __name__ == "__main__":
    main()
