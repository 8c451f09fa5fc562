"""`wcompress verify`."""

from __future__ import annotations

from pathlib import Path

import click

from wcompress.cli.common import Output, common_options, decibels, figures_table

_EPILOG = """Examples:

\b
  wcompress verify model.pt.wcz
  wcompress verify model.pt.wcz --against model.pt
"""


@click.command("verify", epilog=_EPILOG)
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="MODEL", help="The model it was made from.")
@click.option("--key", help="Entry of MODEL that holds the model, where that is not plain.")
@common_options
def command(out: Output, archive: Path, against: Path | None, key: str | None) -> None:
    """Compare every checksum of ARCHIVE, decode it in full, and measure it against MODEL.

    Exits with 4 when the archive is damaged, with 1 when it does not belong to MODEL.
    """
    from wcompress.codec.reading import verify
    from wcompress.codec.results import VerifyResult
    from wcompress.errors import ArchiveError

    try:
        result = verify(archive, against, key=key)
    except ArchiveError as error:
        if out.as_json:
            out.result({**VerifyResult("", errors=(str(error),)).to_json(), "sha256": None})
        raise
    rows = [("archive", "whole: every checksum holds, and everything decodes")]
    if result.lossless is not None:
        error_text = "none" if result.max_abs_error is None else f"{result.max_abs_error:.3g}"
        rows += [
            ("bit for bit the model", "yes" if result.lossless else "no"),
            ("SQNR", decibels(result.sqnr_db)),
            ("largest error", error_text),
        ]
    rows.append(("SHA-256 of the tensors", result.sha256))
    out.result(result.to_json(), figures_table(str(archive), rows))
    for line in result.errors:
        click.echo(f"wcompress: {archive}: {line}", err=True)
    if not result.ok:
        raise click.exceptions.Exit(1)
