"""`wcompress verify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wcompress.cli.common import Output, common_options, decibels, figures_table, worst_rows
from wcompress.cli.failures import failure_of
from wcompress.cli.inputs import Answer, answer_each
from wcompress.errors import ArchiveError, OptionError

if TYPE_CHECKING:
    from wcompress.fidelity import TensorError, Worst

_EPILOG = """Examples:

\b
  wcompress verify model.pt.wcz
  wcompress verify model.pt.wcz --against model.pt
  wcompress verify llama.wcz --against llama   a folder of archives, and the folder that it was made of
"""


@click.command("verify", epilog=_EPILOG)
@click.argument("archives", metavar="ARCHIVE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="MODEL", help="The model that ARCHIVE was made of.")
@click.option("--key", help="Entry of MODEL that holds the model, if that is not obvious.")
@common_options
def command(out: Output, archives: tuple[Path, ...], against: Path | None, key: str | None) -> None:
    """Check every checksum of ARCHIVE and decode it in full; with --against, measure how far it is from MODEL.

    Exits with 4 if the archive is damaged, and with 1 if it was not made of MODEL. Of several ARCHIVEs, one that fails
    does not stop the others; the exit code is the highest.
    """
    if against is not None and len(archives) > 1:
        raise OptionError(f"--against {against}: compares one archive with its model; name one archive")
    answer_each(out, archives, lambda archive: _verify(out, archive, against, key))


def _verify(out: Output, archive: Path, against: Path | None, key: str | None) -> Answer:
    from wcompress.codec.results import VerifyResult
    from wcompress.directories.opening import verify

    try:
        result = verify(archive, against, key=key)
    except ArchiveError as error:
        failure = failure_of(error)
        failure.show(verbose=out.verbose)
        document = {**VerifyResult("", errors=(str(error),)).to_json(), "sha256": None, **failure.to_json()}
        return Answer(document, exit_code=failure.code)
    rows = [("archive", "intact: every checksum holds, and every tensor decodes")]
    if result.lossless is not None:
        error_text = "none" if result.max_abs_error is None else f"{result.max_abs_error:.3g}"
        rows += [
            ("same as the model, bit for bit", "yes" if result.lossless else "no"),
            ("SQNR", decibels(result.sqnr_db)),
            *worst_rows(_worst(result.tensors or {})),
            ("largest error", error_text),
        ]
    rows.append(("SHA-256 of the tensors", result.sha256))
    for line in result.errors:
        click.echo(f"wcompress: {archive}: {line}", err=True)
    return Answer(result.to_json(), [figures_table(str(archive), rows)], 0 if result.ok else 1)


def _worst(errors: Mapping[str, TensorError]) -> Worst | None:
    from wcompress.fidelity import Worst

    tensors = {name: error.sqnr_db for name, error in errors.items() if error.sqnr_db is not None}
    rows = {name: error.worst_row_db for name, error in errors.items() if error.worst_row_db is not None}
    if not tensors:
        return None
    tensor, row = min(tensors, key=tensors.__getitem__), min(rows, key=rows.__getitem__, default=None)
    return Worst(tensor, tensors[tensor], None if row is None else rows[row], row)
