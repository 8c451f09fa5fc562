"""`-o -`: the output itself goes to stdout."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from wcompress.cli.common import Output
from wcompress.errors import OptionError

STANDARD_OUTPUT = Path("-")


def check_standard_output(out: Output, inputs: Sequence[Path]) -> None:
    """Whether stdout can take an output.

    Raises:
        OptionError: it is a terminal, `--json` wants it too, or there are several inputs.
    """
    if len(inputs) > 1:
        raise OptionError("-o -: standard output takes one file; name one input, or a folder with -o")
    if out.as_json:
        raise OptionError("-o - with --json: both write to standard output; use one of them")
    if sys.stdout.isatty():
        raise OptionError(
            "-o -: the output is binary and standard output is a terminal; redirect it to a file or a pipe"
        )


def not_standard_output(_context: click.Context, _parameter: click.Parameter, folder: Path | None) -> Path | None:
    """Callback of an option that names a folder, which standard output cannot take.

    Raises:
        click.BadParameter: it is `-`.
    """
    if folder == STANDARD_OUTPUT:
        raise click.BadParameter("a folder cannot go to standard output; name a folder")
    return folder


@contextlib.contextmanager
def to_standard_output(name: str) -> Iterator[Path]:
    """A temporary path whose content is written to stdout when the block ends well, and removed in any case.

    Args:
        name: of the temporary file; no such file is there yet.
    """
    with tempfile.TemporaryDirectory(prefix="wcompress-") as folder:
        path = Path(folder) / name
        yield path
        if path.exists():
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
