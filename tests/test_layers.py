"""Imports point one way; unpacking loads no training code; names in `__all__` exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import wcompress
from wcompress.codec.container.manifest import METHOD_VERSIONS, METHODS
from wcompress.codec.methods.stored import STORED
from wcompress.codec.packers.packer import PACKERS

PACKAGE = Path(wcompress.__file__).parent

# A module may import from its own layer's row only itself, and anything from the rows above.
LAYERS = [
    ["errors", "interrupts", "kernel_files"],
    ["ahead"],
    ["compiled"],
    ["wire", "files", "device", "deadline", "fidelity", "threads", "progress"],
    ["checkpoint", "blocks", "entropy", "archive", "tasks"],
    ["vae"],
    ["codec"],
    ["directories", "first_kernels"],
    ["evaluate"],
    ["refine"],
    ["calibrate"],
    ["api"],
    ["report"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wcompress":
            found |= {node.module.split(".")[1]} if "." in node.module else set()
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("wcompress.")}
    return found


def test_imports_point_one_way() -> None:
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        home = relative.parts[0].removesuffix(".py")
        if home == "__init__":
            continue
        for name in imported(path) - {home}:
            assert LEVEL[name] < LEVEL[home], f"{relative} imports wcompress.{name}"
            checked += 1
    assert checked > 20


def test_unpacking_loads_no_training_code() -> None:
    code = (
        "import sys, wcompress; wcompress.load; wcompress.unpack; wcompress.verify\n"
        "names = ('vae.training', 'vae.prior_training', 'vae.networks', 'vae.context_training', 'tasks',"
        " 'codec.models.context.encoder', 'codec.models.class_tables.encoder')\n"
        "bad = {f'wcompress.{name}' for name in names} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_is_light_and_complete() -> None:
    code = "import sys, wcompress; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in wcompress.__all__:
        assert getattr(wcompress, name) is not None
    assert set(wcompress.__all__) <= set(dir(wcompress))


def test_each_method_can_be_packed_and_read() -> None:
    assert set(PACKERS) == set(STORED) == set(METHOD_VERSIONS) == set(METHODS)


def test_modules_stay_readable() -> None:
    for path in PACKAGE.rglob("*.py"):
        n_lines = len(path.read_text().splitlines())
        assert n_lines <= 420, f"{path.relative_to(PACKAGE)} has {n_lines} lines; split it"
