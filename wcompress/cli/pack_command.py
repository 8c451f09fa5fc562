"""`wcompress pack`."""

from __future__ import annotations

from pathlib import Path

import click

from wcompress.cli.common import (
    Output,
    common_options,
    data_dir_option,
    decibels,
    figures_table,
    model_options,
    n_bytes,
    parse_sizes,
    times,
)

_EPILOG = """Examples:

\b
  wcompress pack model.pt                      makes model.pt.wcz
  wcompress pack model.safetensors -o small.wcz --effort 9
  wcompress pack model.pt --method vae --ratio 20     or --bits-per-weight 1.6, or --sqnr 15
  wcompress pack model.pt --method lossless
  wcompress pack model.pt --task mnist-fnn     with the accuracy before and after
  wcompress pack model.pt --method vae --task mnist-fnn --max-drop 0.5
"""


@click.command("pack", epilog=_EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The archive.  [default: MODEL.wcz]")
@click.option(
    "--method",
    type=click.Choice(["vae", "paper", "lossless"]),
    default="vae",
    show_default=True,
    help="How weights are coded: quantised, under a learnt model; by the paper's latents alone; bit for bit.",
)
@click.option("--sqnr", type=float, metavar="DB", help="Target of method vae: an SQNR of at least DB.")
@click.option(
    "--bits-per-weight", type=float, metavar="B", help="Target of method vae: at most B bits of archive a parameter."
)
@click.option(
    "--ratio", type=float, metavar="R", help="Target of method vae: a ratio of at least R, every byte counted."
)
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Target of method vae: the smallest archive that loses at most so many points on the task's validation"
    " examples. Needs --task.",
)
@click.option(
    "--refine",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Train on the task's inputs, without labels, while quantising: far smaller archives, in minutes. auto is on"
    " with --max-drop; on without a target aims at a drop of 0.5 points.",
)
@click.option("--resume", is_flag=True, help="Go on with a refinement that was interrupted.")
@click.option(
    "--time-limit",
    type=float,
    metavar="SECONDS",
    help="End refinement and searches with a task after so long, with what was found. The archive then depends on the"
    " machine's speed; by default work is counted in steps, and it does not.",
)
@click.option(
    "--fail-on-test-drop",
    is_flag=True,
    help="Exit with 1 when the drop on the test set is larger than allowed, such as in CI. The archive is kept.",
)
@click.option("--task", help="Score before and after: a built-in name, path/to/file.py or package.module:attribute.")
@click.option("--block-size", type=int, default=2048, show_default=True, help="Parameters in a block.")
@click.option("--latent-dim", type=int, default=64, show_default=True, help="Numbers in a block's latent.")
@click.option("--hidden", default="512", show_default=True, help="Of method paper: sizes of the VAE's hidden layers.")
@click.option("--dry-run", is_flag=True, help="Do everything and write nothing.")
@model_options
@data_dir_option
@common_options
def command(
    out: Output,
    model: Path,
    output: Path | None,
    method: str,
    sqnr: float | None,
    bits_per_weight: float | None,
    ratio: float | None,
    max_drop: float | None,
    refine: str,
    resume: bool,
    time_limit: float | None,
    fail_on_test_drop: bool,
    task: str | None,
    block_size: int,
    latent_dim: int,
    hidden: str,
    dry_run: bool,
    key: str | None,
    effort: int,
    seed: int,
    device: str,
    threads: int | None,
    data_dir: Path | None,
) -> None:
    """Make an archive of MODEL: a .pt, .pth or Lightning .ckpt file, a .safetensors file, or its sharded index.

    The model is read, never changed. Pickles that want code to be run are refused.
    """
    from wcompress.api import pack
    from wcompress.codec.options import PackOptions
    from wcompress.codec.results import with_error
    from wcompress.errors import OptionError

    options = PackOptions(
        method=method,
        sqnr=sqnr,
        bits_per_weight=bits_per_weight,
        ratio=ratio,
        max_drop=max_drop,
        refine=refine,
        resume=resume,
        time_limit=time_limit,
        block_size=block_size,
        latent_dim=latent_dim,
        hidden=parse_sizes(hidden),
        effort=effort,
        seed=seed,
        device=device,
        threads=threads,
        dry_run=dry_run,
        force=out.force,
        key=key,
    )
    if fail_on_test_drop and not options.allows_drop:
        raise OptionError("fail-on-test-drop: no drop is allowed here; give --task and --max-drop")
    with out.progress(f"Packing {model.name}") as progress:
        try:
            result = pack(model, output, options, task=task, data_dir=data_dir, progress=progress)
        except KeyboardInterrupt:
            kept = Path(f"{output or f'{model}.wcz'}.refine")
            if options.refines and not dry_run and kept.is_file():
                out.message(f"{kept} has the work so far: run the same again with --resume to go on")
            raise
    for warning in result.warnings:
        out.message(f"warning: {warning}")
    if result.left_out:
        out.message(f"left out (no tensors of the model): {', '.join(result.left_out)}")
    if result.ratio < 1:
        out.message(
            f"the archive is larger than the model: the VAE's decoder takes {n_bytes(result.sections['decoder'])} of it"
            if method == "paper"
            else "the archive is larger than the model"
        )
    rows = [
        ("parameters", f"{result.n_params:,} in {result.n_tensors} tensors"),
        ("original", n_bytes(result.original_bytes)),
        ("archive", n_bytes(result.archive_bytes)),
        ("ratio, every byte counted", times(result.ratio)),
        ("latent ratio, the paper's", times(result.latent_ratio)),
        ("SQNR", decibels(result.sqnr_db)),
        ("time", f"{result.seconds['total']:.1f} s"),
    ]
    if result.task:
        score, where = result.task, f"{result.task.name} on {result.task.dataset}"
        mark = "%" if score.unit == "percent" else score.unit
        rows.append((f"{where}, before", f"{score.score_before:.2f} {mark}"))
        rows.append((f"{where}, after", f"{score.score_after:.2f} {mark}"))
        if score.validation_drop is not None:
            if score.allowed_drop is not None:
                rows.append(("drop allowed", f"{score.allowed_drop:g} {score.drop_unit}"))
            shown = with_error(score.validation_drop, score.validation_error)
            rows.append((f"drop on validation{_examples(score.n_validation)}", f"{shown} {score.drop_unit}"))
        shown = with_error(score.drop, score.drop_error)
        rows.append((f"drop on test{_examples(score.n_test)}", f"{shown} {score.drop_unit}"))
        if score.reason:
            rows.append(("chosen", f"{score.chosen}: {score.reason}"))
    arrow = "would make" if dry_run else "→"
    out.result(result.to_json(), figures_table(f"{model.name} {arrow} {result.archive}", rows))
    if fail_on_test_drop and result.task is not None and result.task.exceeds:
        raise click.exceptions.Exit(1)


def _examples(n: int | None) -> str:
    return f", {n:,} examples" if n else ""
