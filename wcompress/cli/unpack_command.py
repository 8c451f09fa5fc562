"""`wcompress unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from wcompress.cli.common import Output, common_options, figures_table, n_bytes

_EPILOG = """Examples:

\b
  wcompress unpack model.pt.wcz                makes model.safetensors
  wcompress unpack model.pt.wcz -o model.pt --format pt
  wcompress unpack model.pt.wcz -o encoder.safetensors --only '^encoder'
"""


@click.command("unpack", epilog=_EPILOG)
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The checkpoint.  [default: the model's name]")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["safetensors", "pt"]),
    help="[default: by OUTPUT's suffix, or safetensors]",
)
@click.option("--only", metavar="REGEX", help="Restore only tensors in whose name this is found.")
@common_options
def command(
    out: Output,
    archive: Path,
    output: Path | None,
    format_: Literal["safetensors", "pt"] | None,
    only: str | None,
) -> None:
    """Restore the model in ARCHIVE; what was written is compared with the archive's SHA-256 first."""
    from wcompress.codec.unpacking import unpack

    result = unpack(archive, output, format=format_, only=only, force=out.force)
    rows = [
        ("tensors", f"{result.n_tensors:,}"),
        ("size", n_bytes(result.output_bytes)),
        ("format", result.format),
        ("time", f"{result.seconds:.2f} s"),
    ]
    out.result(result.to_json(), figures_table(f"{archive.name} → {result.output}", rows))
