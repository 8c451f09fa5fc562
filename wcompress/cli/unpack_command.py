"""`wcompress unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from wcompress.cli.common import Output, common_options, n_bytes, plain
from wcompress.cli.inputs import Answer, answer_each, outputs_of
from wcompress.cli.standard_output import STANDARD_OUTPUT, check_standard_output, to_standard_output
from wcompress.errors import OptionError

_EPILOG = """Examples:

\b
  wcompress unpack model.pt.wcz                makes model.safetensors
  wcompress unpack model.pt.wcz -o model.pt    makes a .pt file, by its name
  wcompress unpack model.pt.wcz -o encoder.safetensors --only '^encoder'
  wcompress unpack llama.wcz -o llama2         a folder of archives: shards, index and all other files
  wcompress unpack a.pt.wcz b.pt.wcz -o models makes models/a.safetensors and models/b.safetensors
"""


@click.command("unpack", epilog=_EPILOG)
@click.argument("archives", metavar="ARCHIVE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The checkpoint; a folder for several ARCHIVEs; - for standard output.  [default: the name of the packed"
    " model, with the suffix of the format]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["safetensors", "pt"]),
    help="Format to write.  [default: by the suffix of OUTPUT, else safetensors]",
)
@click.option("--only", metavar="REGEX", help="Restore only the tensors whose name matches.")
@common_options
def command(
    out: Output,
    archives: tuple[Path, ...],
    output: Path | None,
    format_: Literal["safetensors", "pt"] | None,
    only: str | None,
) -> None:
    """Restore the model in ARCHIVE. The tensors are checked against the archive's SHA-256 before they are written.

    A folder of archives becomes the model folder that it was made of.

    Of several ARCHIVEs, one that fails does not stop the others; the exit code is the highest.
    """
    from dataclasses import replace

    from wcompress.checkpoint.messages import shown
    from wcompress.codec.unpacking import UnpackResult
    from wcompress.directories.index import is_packed_folder
    from wcompress.directories.unpacking import default_output, unpack

    if output == STANDARD_OUTPUT:
        check_standard_output(out, archives)
    outputs = outputs_of(archives, output, lambda archive: default_output(archive, format_ or "safetensors"))

    def answer(archive: Path, result: UnpackResult) -> Answer:
        text = (
            f"{archive.name} → {result.output}: {result.n_tensors:,} tensors, {n_bytes(result.output_bytes)},"
            f" {result.seconds:.1f} s"
        )
        return Answer(result.to_json(), [plain(shown(text))])

    def work(archive: Path) -> Answer:
        if outputs[archive] != STANDARD_OUTPUT:
            with out.progress(archive.name) as progress:
                result = unpack(
                    archive, outputs[archive], format=format_, only=only, force=out.force, progress=progress
                )
            return answer(archive, result)
        if is_packed_folder(archive):
            raise OptionError(f"-o -: {archive} becomes a folder, which standard output cannot take; name a folder")
        with to_standard_output(f"model.{format_ or 'safetensors'}") as path:
            result = unpack(archive, path, format=format_, only=only)
            return answer(archive, replace(result, output="standard output"))

    answer_each(out, archives, work, err=output == STANDARD_OUTPUT)
