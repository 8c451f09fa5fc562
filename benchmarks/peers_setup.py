"""The virtual environment that the peers with requirements of their own run in.

    python -m benchmarks.peers_setup [--venv DIR]

NNCodec wants numpy below 2, so it cannot live beside this package. It is installed without what it declares: its
codec uses numpy and torch alone, and `nncodec_worker.py` stands in for the training and image libraries that its
import statements name. Where no wheel of it fits, pip compiles its C++ extension, which takes some minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv as venv_module
from pathlib import Path

DEFAULT_VENV = Path(__file__).parent / ".nncodec-venv"

REQUIREMENTS = {
    "dahuffman": "0.4.2",
    "filelock": "4.2.11",
    "fsspec": "2026.9.0",
    "Jinja2": "3.1.6",
    "MarkupSafe": "3.0.4",
    "mpmath": "1.3.0",
    "networkx": "3.6.1",
    "numpy": "1.26.4",
    "safetensors": "0.8.0",
    "setuptools": "84.2.1",
    "sympy": "1.14.0",
    "torch": "2.13.0",
    "typing_extensions": "4.16.0",
}
PEERS = {"entropack": "0.1.5", "nncodec": "2.1.3", "zipnn": "0.5.4"}
"""Installed with `--no-deps`: `REQUIREMENTS` holds what their codecs need."""

_REPORT_VERSIONS = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        print(name, importlib.metadata.version(name).partition("+")[0])
    except importlib.metadata.PackageNotFoundError:
        pass
"""


def ensure_nncodec(venv: Path = DEFAULT_VENV) -> Path:
    """The environment's Python; what is missing from the environment, or has another version, is installed first.

    Args:
        venv: its folder, which is made where there is none.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why on the standard error.
    """
    # Not resolved: in a virtual environment the interpreter is a link to the one that made it.
    python = venv.absolute() / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv_module.create(venv, with_pip=True)
        (venv / ".gitignore").write_text("*\n")
    wanted = {**REQUIREMENTS, **PEERS}
    report = [str(python), "-I", "-c", _REPORT_VERSIONS, *wanted]
    lines = subprocess.run(report, capture_output=True, text=True, check=True).stdout.splitlines()
    found = dict(line.split() for line in lines)
    for group, options in ((REQUIREMENTS, []), (PEERS, ["--no-deps"])):
        missing = [f"{name}=={version}" for name, version in group.items() if found.get(name) != version]
        if missing:
            command = [str(python), "-m", "pip", "install", *options, *missing]
            # pip talks on the standard output, which belongs to whoever calls this.
            subprocess.run(command, check=True, stdout=sys.stderr)
    return python


def main() -> None:
    """Make the environment and print its Python."""
    parser = argparse.ArgumentParser(description="Make the virtual environment for NNCodec, ZipNN and EntroPack.")
    parser.add_argument("--venv", type=Path, default=DEFAULT_VENV, help="its folder (default: %(default)s)")
    print(ensure_nncodec(parser.parse_args().venv))


if __name__ == "__main__":
    main()
