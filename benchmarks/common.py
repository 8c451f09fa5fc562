"""What every benchmark records: the command, the commit, the machine; and how it shows tables."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does, see wcompress/cli/__init__.py

RESULTS = Path(__file__).resolve().parent / "results"


def provenance() -> dict[str, Any]:
    """Command, commit and machine; a dirty tree is said to be one."""

    def git(*arguments: str) -> str:
        # Outside a checkout there is no commit to tell of; the tests run there too.
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
        return ""

    changed = [
        line
        for line in git("status", "--porcelain", "--untracked-files=no").splitlines()
        if "benchmarks/results" not in line
    ]
    packages = ("torch", "numpy", "wcompress")
    return {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(shown, sys.argv[1:])]),
        "commit": (git("rev-parse", "HEAD") or "unknown") + (" with uncommitted changes" if changed else ""),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpus": os.cpu_count(), "processor": _processor(), "platform": platform.system()},
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def shown(argument: str) -> str:
    """An argument as results tell it: of an absolute path its last part, for the rest is this machine's business."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else argument


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


_PROVENANCE = provenance()  # of the code that is about to run, not of what the tree holds when it ends


def write_result(name: str, document: dict[str, Any]) -> Path:
    """Write `benchmarks/results/NAME.json`, provenance first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"provenance": _PROVENANCE, **document}, indent=1, allow_nan=False) + "\n")
    return path


def merge_result(name: str, rows: Sequence[Mapping[str, Any]], key: Sequence[str], **document: Any) -> Path:
    """Write rows into `benchmarks/results/NAME.json`, in place of those there with the same key.

    So a long benchmark can be run in parts. Each row's `run` is the index in `runs` of what it was measured with.

    Args:
        name: of the result.
        rows: new ones; may be written again and again as they become more.
        key: the fields that say which row it is; a row may be without one.
        **document: what else the file holds.
    """
    path = RESULTS / f"{name}.json"
    old = json.loads(path.read_text()) if path.exists() else {"rows": [], "runs": []}
    rows, runs = merged(old["rows"], old["runs"], rows, _PROVENANCE, key)
    return write_result(name, {**document, "rows": rows, "runs": runs})


def merged(
    old: Sequence[Mapping[str, Any]],
    runs: Sequence[dict[str, Any]],
    new: Sequence[Mapping[str, Any]],
    run: dict[str, Any],
    key: Sequence[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Old rows, but new ones where both have one; and the runs that these rows come from, renumbered."""
    found = {tuple(row.get(field) for field in key): (row, runs[row["run"]]) for row in old}
    found.update({tuple(row.get(field) for field in key): (row, run) for row in new})
    used: list[dict[str, Any]] = []
    for _, origin in found.values():
        if origin not in used:
            used.append(origin)
    return [{**row, "run": used.index(origin)} for row, origin in found.values()], used


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(heading) + " |", "|---" + "|---:" * (len(heading) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
