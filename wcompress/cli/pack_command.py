"""`wcompress pack`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wcompress import ahead
from wcompress.cli.common import (
    Output,
    common_options,
    data_dir_option,
    decibels,
    figures_table,
    folder_rows,
    model_options,
    n_bytes,
    parse_sizes,
    plain,
    times,
)
from wcompress.cli.inputs import Answer, answer_each, outputs_of
from wcompress.cli.standard_output import STANDARD_OUTPUT, check_standard_output, to_standard_output
from wcompress.cli.verdict import verdict
from wcompress.errors import OptionError
from wcompress.files import archive_path

if TYPE_CHECKING:
    from wcompress.codec.options import PackOptions
    from wcompress.codec.results import PackResult, TaskScore, TensorChoice

_EPILOG = """Examples:

\b
  wcompress pack model.pt                      makes model.pt.wcz
  wcompress pack model.safetensors -o small.wcz --effort 9
  wcompress pack model.pt --ratio 20           or --bits-per-weight 1.6, or --sqnr 15
  wcompress pack model.pt --method lossless    keeps every bit
  wcompress pack model.pt --task mnist-fnn     with the accuracy before and after
  wcompress pack model.pt --task mnist-fnn --max-drop 0.5
  wcompress pack model.pt --task my_task.py --output-snr 20     or --max-kl 0.01, for class scores
  wcompress pack model.pt --tensor 'embed=8' --tensor '\\.bias$=lossless'
  wcompress pack a.pt b.pt -o archives         makes archives/a.pt.wcz and archives/b.pt.wcz
  wcompress pack model.pt -o - | ssh host 'cat > model.pt.wcz'
  wcompress pack llama                         a Hugging Face folder: makes the folder llama.wcz
  wcompress pack llama --resume                goes on with what was interrupted
  wcompress pack llama --engine processes      packs several of its shards at once
  wcompress pack llama -o llama.wcz --shard 1/4    on one of four machines, then: wcompress join llama.wcz
"""


@click.command("pack", epilog=_EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The archive; a folder for several MODELs; - for standard output.  [default: MODEL.wcz]",
)
@click.option(
    "--method",
    type=click.Choice(["vae", "trellis", "paper", "lossless"]),
    default="vae",
    show_default=True,
    help="vae: lossy; a trellis quantiser and an entropy coder with a learnt context model, in which a VAE prior takes"
    " part where it saves bytes. trellis: another name for vae. lossless: every bit is kept. paper: the paper's method,"
    " whose archives are larger than most models.",
)
@click.option("--sqnr", type=float, metavar="DB", help="Target: a signal-to-error ratio (SQNR) of at least DB.")
@click.option(
    "--bits-per-weight", type=float, metavar="B", help="Target: at most B bits per parameter, every byte counted."
)
@click.option("--ratio", type=float, metavar="R", help="Target: at least R times smaller, every byte counted.")
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Target: the smallest archive found that loses at most POINTS on the task's validation examples."
    " Needs --task.",
)
@click.option(
    "--output-snr",
    type=float,
    metavar="DB",
    help="Target: the smallest archive found whose outputs, for inputs of the task that are held out, keep an SNR of at"
    " least DB, each output's mean over the inputs left out; such as --task my_task.py --output-snr 20. No labels, no"
    " training. Needs --task.",
)
@click.option(
    "--max-kl",
    type=float,
    metavar="NATS",
    help="Target: the smallest archive found whose class scores, for inputs of the task that are held out, are at most"
    " NATS from the model's in KL divergence; such as --task my_task.py --max-kl 0.01. No labels, no training."
    " Needs --task.",
)
@click.option(
    "--refine",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Retrain the weights on the task's inputs, without labels, while quantising: far smaller archives, in minutes."
    " auto: with --max-drop only. on, without a target: as --max-drop 0.5.",
)
@click.option(
    "--calibrate",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Run the network on the task's inputs, and spend bits where its outputs need them; without labels or training."
    " auto: with --task and --ratio, --bits-per-weight, --output-snr or --max-kl, or --max-drop with --refine off.",
)
@click.option("--resume", is_flag=True, help="Continue a refinement, or the pack of a folder, that was interrupted.")
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    help="Of a folder, pack several shards at once: in processes of this machine, or as tasks of ray. The output is the"
    " same.  [default: one after the other]",
)
@click.option("--workers", type=click.IntRange(1, 1024), help="Shards at once with --engine processes.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Of a folder, pack every N-th shard from the I-th on; `wcompress join OUTPUT` puts the parts together.",
)
@click.option(
    "--time-limit",
    type=float,
    metavar="SECONDS",
    help="End refinement and searches after so long, with what was found. The archive then depends on the"
    " machine's speed; by default work is counted in steps, and it does not.",
)
@click.option(
    "--fail-on-test-drop",
    is_flag=True,
    help="Exit with 1 when the drop on the test set is larger than allowed, such as in CI. The archive is kept.",
)
@click.option(
    "--task", help="Score the model before and after: a built-in name, path/to/file.py or package.module:attribute."
)
@click.option(
    "--tensor",
    "rules",
    multiple=True,
    metavar="REGEX=CHOICE",
    help="Choose for the tensors in whose name REGEX is found; repeatable, the first that matches counts. CHOICE:"
    " lossless, bit for bit; keep, bit for bit and not compressed; fp16, rounded to float16; or a number, about so many"
    " bits a weight.",
)
@click.option("--block-size", type=int, default=2048, show_default=True, help="Parameters per block.")
@click.option("--latent-dim", type=int, default=64, show_default=True, help="Numbers in the latent of a block.")
@click.option("--hidden", default="512", show_default=True, help="Sizes of the VAE's hidden layers, for method paper.")
@click.option("--strict", is_flag=True, help="Refuse a pickle that torch.load(weights_only=True) refuses.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Report the result, time and memory, but write nothing; large models are judged by samples.",
)
@model_options
@data_dir_option
@common_options
def command(
    out: Output,
    models: tuple[Path, ...],
    output: Path | None,
    method: str,
    sqnr: float | None,
    bits_per_weight: float | None,
    ratio: float | None,
    max_drop: float | None,
    output_snr: float | None,
    max_kl: float | None,
    refine: str,
    calibrate: str,
    resume: bool,
    engine: str | None,
    workers: int | None,
    shard: str | None,
    time_limit: float | None,
    fail_on_test_drop: bool,
    task: str | None,
    rules: tuple[str, ...],
    block_size: int,
    latent_dim: int,
    hidden: str,
    dry_run: bool,
    strict: bool,
    key: str | None,
    effort: int,
    seed: int,
    device: str,
    threads: int | None,
    data_dir: Path | None,
) -> None:
    """Make an archive of MODEL: a .pt, .pth or Lightning .ckpt file, a .safetensors file, its sharded index, or a
    folder with one of them. A Hugging Face folder becomes a folder: an archive for each shard, an index, and all other
    files as they are.

    By default the archive is lossy; --method lossless keeps every bit. MODEL itself is never changed, and no code that
    it may carry is run. At most one target can be set.

    Several MODELs get an archive each, and one that fails does not stop the others; the exit code is the highest.
    """
    if method in ("vae", "trellis"):
        ahead.start()  # before torch is imported, which takes as long as many a kernel

    from wcompress.codec.options import PackOptions
    from wcompress.codec.tensor_rules import split_rule

    options = PackOptions(
        method=method,
        sqnr=sqnr,
        bits_per_weight=bits_per_weight,
        ratio=ratio,
        max_drop=max_drop,
        output_snr=output_snr,
        max_kl=max_kl,
        refine=refine,
        calibrate=calibrate,
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
        strict=strict,
        tensor=[split_rule(rule) for rule in rules],
    )
    if fail_on_test_drop and not options.allows_drop:
        raise OptionError("fail-on-test-drop: no drop is allowed here; give --task and --max-drop")
    if output == STANDARD_OUTPUT:
        check_standard_output(out, models)
        if resume:
            raise OptionError("--resume with -o -: an interrupted refinement is kept beside the archive; name a file")
    outputs = outputs_of(models, output, lambda model: Path(archive_path(model)))
    how = {"engine": engine, "workers": workers, "shard": shard}

    def work(model: Path) -> Answer:
        if outputs[model] != STANDARD_OUTPUT:
            said = answer(out, model, result := _pack(out, model, outputs[model], options, task, data_dir, how))
        else:
            _check_is_file(model)
            with to_standard_output("model.wcz") as path:
                result = _pack(out, model, path, options, task, data_dir, how, resumable=False)
                said = answer(out, model, replace(result, archive="standard output"), restorable=False)
        fails = fail_on_test_drop and result.task is not None and result.task.exceeds
        return replace(said, exit_code=int(fails))

    answer_each(out, models, work, err=output == STANDARD_OUTPUT)


def _pack(
    out: Output,
    model: Path,
    output: Path | None,
    options: PackOptions,
    task: str | None,
    data_dir: Path | None,
    how: Mapping[str, Any],
    *,
    resumable: bool = True,
) -> PackResult:
    from wcompress.api import pack

    target = str(output or archive_path(model)).rstrip("/")
    work = Path(f"{target}.part")
    is_new = not work.exists()
    with out.progress(model.name) as progress:
        try:
            return pack(model, output, options, task=task, data_dir=data_dir, progress=progress, **how)
        except BaseException as error:
            kept = [work] if is_new else []
            if isinstance(error, KeyboardInterrupt) and options.refines:
                kept.append(Path(f"{target}.refine"))
            for path in kept:
                if resumable and not options.dry_run and path.exists():
                    out.message(f"{path} holds the work done so far: repeat the command with --resume to continue")
            raise


def _check_is_file(model: Path) -> None:
    from wcompress.directories.source import weights_file

    if weights_file(model) is not None:
        raise OptionError(f"-o -: {model} becomes a folder, which standard output cannot take; name a folder")


def answer(out: Output, model: Path, result: PackResult, *, restorable: bool = True) -> Answer:
    """What there is to say about a pack: warnings at once, and figures."""
    from wcompress.directories.results import FolderPackResult

    for warning in result.warnings:
        out.message(f"warning: {warning}")
    others = [name for name in result.left_out if name not in result.left_out_tensors]
    if isinstance(result, FolderPackResult):  # whose warnings name the files
        others = [name for shard in result.shards for name in shard.left_out if name in others]
    if result.left_out_tensors:
        out.message(f"left out, with tensors that are not the model's: {', '.join(result.left_out_tensors)}")
    if others:
        out.message(f"not part of the model, left out: {', '.join(others)}")
    rows = [
        ("parameters", f"{result.n_params:,} in {result.n_tensors} tensors"),
        ("original", n_bytes(result.original_bytes)),
        ("archive", n_bytes(result.archive_bytes)),
        ("ratio, every byte counted", times(result.ratio)),
        ("SQNR", decibels(result.sqnr_db)),
        *_floors(result),
        *_choices(result),
        ("time", f"{result.seconds['total']:.1f} s"),
        *_estimate(result),
    ]
    if result.latent_ratio is not None:
        rows.append(("latent ratio, the paper's", times(result.latent_ratio)))
    if result.task:
        rows += _task_rows(result.task)
    arrow = "would make" if result.dry_run else "→"
    if isinstance(result, FolderPackResult):
        rows[2:3] = folder_rows(result)
    if isinstance(result, FolderPackResult) and result.work is not None:
        text = f"Kept in {result.work}. When all parts are there: wcompress join {shlex.quote(result.archive)}"
    else:
        text = verdict(result, restorable=restorable)
    table = figures_table(f"{model.name} {arrow} {result.archive}", rows)
    return Answer(result.to_json(), [table, plain(text)])


def _task_rows(score: TaskScore) -> list[tuple[str, str]]:
    from wcompress.codec.results import with_error

    rows = []
    where = f"{score.name} on {score.dataset}"
    if score.has_scores:
        rows.append((f"{where}, before", f"{score.score_before:.2f} {score.mark}"))
        rows.append((f"{where}, after", f"{score.score_after:.2f} {score.mark}"))
    if score.validation_drop is not None:
        if score.allowed_drop is not None:
            rows.append(("drop allowed", f"{score.allowed_drop:g} {score.drop_unit}"))
        shown = with_error(score.validation_drop, score.validation_error)
        rows.append((f"drop on validation{_examples(score.n_validation)}", f"{shown} {score.drop_unit}"))
    if score.has_scores:
        shown = with_error(score.drop, score.drop_error)
        rows.append((f"drop on test{_examples(score.n_test)}", f"{shown} {score.drop_unit}"))
    if score.output_snr_db is not None:
        rows.append(("output SNR, inputs held out", decibels(score.output_snr_db)))
    if score.kl_nats is not None:
        rows.append(("KL divergence, inputs held out", f"{score.kl_nats:.3g} nats"))
    if score.reason:
        rows.append(("chosen", f"{score.chosen}: {score.reason}"))
    return rows


def _floors(result: PackResult) -> list[tuple[str, str]]:
    if result.floors is None:
        return []
    shown = (decibels(db) if db > 0 else "none" for db in (result.floors.tensor_db, result.floors.row_db))
    return [("floor of each tensor / row", " / ".join(shown))]


def _estimate(result: PackResult) -> list[tuple[str, str]]:
    if result.estimate is None or not result.estimate.sampled:
        return []
    seconds = result.estimate.seconds
    return [
        ("packing takes about", f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"),
        ("and memory of about", f"{result.estimate.peak_bytes / 1e6:,.0f} MB"),
    ]


def _choices(result: PackResult) -> list[tuple[str, str]]:
    from wcompress.checkpoint.messages import shown

    by_rule: dict[str, list[TensorChoice]] = {}
    for choice in result.choices:
        by_rule.setdefault(choice.rule, []).append(choice)
    rows = []
    for rule, choices in by_rule.items():
        known = [choice.bits_per_weight for choice in choices if choice.bits_per_weight is not None]
        parts = [shown(choices[0].tensor) if len(choices) == 1 else f"{len(choices)} tensors"]
        if known:
            least, most = (f"{bits:.2f}" for bits in (min(known), max(known)))
            parts.append(f"{least if least == most else f'{least} to {most}'} bits a weight")
        rows.append((f"rule {shown(rule)}", ", ".join(parts)))
    return rows


def _examples(n: int | None) -> str:
    return f", {n:,} examples" if n else ""
