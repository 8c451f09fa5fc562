"""`wcompress inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from wcompress.cli.common import (
    Output,
    common_options,
    decibels,
    figures_table,
    folder_rows,
    n_bytes,
    times,
    worst_rows,
)
from wcompress.cli.inputs import Answer, answer_each

_EPILOG = """Examples:

\b
  wcompress inspect model.pt.wcz
  wcompress inspect model.pt.wcz --json
  wcompress inspect llama.wcz                  a folder of archives: sums over all of them
"""


@click.command("inspect", epilog=_EPILOG)
@click.argument("archives", metavar="ARCHIVE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@common_options
def command(out: Output, archives: tuple[Path, ...]) -> None:
    """Show what ARCHIVE, a file or a folder of them, holds and where its bytes go. Checksums are compared; nothing is
    decoded."""
    answer_each(out, archives, _inspect)


def _inspect(archive: Path) -> Answer:
    from rich.markup import escape
    from rich.table import Table

    from wcompress.checkpoint.messages import shown
    from wcompress.directories.opening import inspect
    from wcompress.directories.results import FolderInspectResult

    result = inspect(archive)
    rows = [
        ("made from", shown(result.source) or "a dict of tensors"),
        ("method", f"{result.method} (format version {result.version})"),
        ("parameters", f"{result.n_params:,} in {result.n_tensors} tensors, padding {result.padding:,}"),
        ("original", n_bytes(result.original_bytes)),
        ("archive", n_bytes(result.archive_bytes)),
        ("ratio, every byte counted", times(result.ratio)),
        ("SQNR", decibels(result.sqnr_db)),
        *worst_rows(result.worst),
        ("SHA-256 of the tensors", result.sha256),
    ]
    if isinstance(result, FolderInspectResult):
        rows[4:5] = folder_rows(result)
    if result.latent_ratio is not None:
        rows.append(("latent ratio, the paper's", times(result.latent_ratio)))
    sections = Table("section", "bytes", "share", title="Where the bytes go", title_justify="left")
    for name, size in result.sections.items():
        sections.add_row(name, f"{size:,}", f"{100 * size / result.archive_bytes:.1f} %")
    tensors = Table(title="Tensors", title_justify="left")
    for heading in ("tensor", "dtype", "shape", "kept", "values"):
        tensors.add_column(heading, overflow="fold")
    for row in result.tensors:
        shape = "×".join(map(str, row.shape)) or "scalar"
        tensors.add_row(escape(shown(row.name)), row.dtype, shape, row.kind, row.kept)
    return Answer(result.to_json(), [figures_table(result.archive, rows), sections, tensors])
