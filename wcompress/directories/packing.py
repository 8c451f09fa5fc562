"""Packing a model folder, whole or in parts on several machines; and joining what was packed in parts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from wcompress.checkpoint.messages import listed, shown
from wcompress.codec.options import PackOptions
from wcompress.codec.packing import pack
from wcompress.codec.results import Estimate, PackResult
from wcompress.device import resolve_device
from wcompress.directories.engines import Overall, run_jobs
from wcompress.directories.folders import check_folder, sha256_of
from wcompress.directories.headers import ModelHeaders, TensorHeader, read_headers
from wcompress.directories.index import WORK_SUFFIX, FileEntry, Index, ShardEntry, is_packed_folder
from wcompress.directories.results import FolderPackResult, floors_of, sums
from wcompress.directories.shard import ShardDone, ShardJob, fingerprint
from wcompress.directories.source import Source, find_source
from wcompress.directories.work import NO_DIGEST, Plan, Work, check_side_files, missing_shards, read_plan, work_path
from wcompress.errors import ArchiveError, OptionError, OutputError, TargetUnreachable
from wcompress.files import archive_path
from wcompress.progress import Progress, part

_HEADERS_SHARE = 0.02
_MUCH = 0.1
"""The share of side files in the output from which on there is a warning."""


def parse_part(text: str) -> tuple[int, int]:
    """`2/8` → (2, 8).

    Raises:
        OptionError: it is not I/N with 1 <= I <= N.
    """
    first, _, second = text.partition("/")
    if not (first.isascii() and second.isascii() and first.isdigit() and second.isdigit()):
        raise OptionError(f"--shard {text}: expected I/N, such as 1/4")
    number, n_parts = int(first), int(second)
    if not 1 <= number <= n_parts:
        raise OptionError(f"--shard {text}: I must be from 1 to N")
    return number, n_parts


def pack_folder(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    engine: str | None = None,
    shard: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    pack_file: Callable[..., PackResult] | None = None,
) -> FolderPackResult:
    """Make a folder of archives of a model folder: an archive for each shard, an index, and the side files.

    Args:
        source: the folder; see `wcompress.directories.source`.
        output: the folder to make; by default the source's name with `.wcz` added.
        options: how to pack each shard. A target of size holds for the whole output, side files included.
        engine: `processes` or `ray` to pack several shards at once; the output is the same.
        shard: `I/N` to pack every N-th shard from the I-th on, for `join_folder` to put together.
        workers: shards at once with engine `processes`.
        progress: called as the work goes on.
        pack_file: makes the archive of a model in one file, where a task has a part in it, with the arguments of
            `wcompress.codec.packing.pack`.

    Raises:
        CheckpointError: the source cannot be read, or is no model folder.
        OptionError: an option does not go with a folder.
        OutputError: the output exists already or cannot be written.
        TargetUnreachable: a shard cannot meet the target.
    """
    options = options or PackOptions()
    _check_options(options, engine, shard, workers, has_task=pack_file is not None)
    start = time.perf_counter()
    number, n_parts = (1, 1) if shard is None else parse_part(shard)
    output = archive_path(source) if output is None else output
    target = Path(output) if options.dry_run else check_folder(output, force=options.force, source=Path(source))
    part(progress, 0.0, 0.0, "reading the shards' headers")
    found = find_source(source)
    if pack_file is not None and len(found.shards) > 1:
        of_all = Path(source) / str(found.weight_index)
        raise OptionError(
            f"task: works with a model in one file, not in {len(found.shards)} shards; name {shown(of_all)},"
            " which makes one archive of them"
        )
    if n_parts > len(found.shards):
        raise OptionError(f"--shard {shard}: the model has {len(found.shards)} shards; divide it into no more parts")
    headers = read_headers(found, strict=options.strict)
    plan, options, whole = _planned(found, headers, options, None if shard is None else n_parts)
    work = Work(target, plan)
    jobs = [
        ShardJob(
            name=one.name,
            source=os.fspath(one.path),
            format=one.format,
            folder=os.fspath(work.folder),
            options=options,
            whole=whole,
            fingerprint=plan.index.shards[0].options,
        )
        for one in found.shards[number - 1 :: n_parts]
    ]
    sizes = {one.name: one.n_bytes for one in found.shards if one.name in {job.name for job in jobs}}
    overall = Overall(part(progress, _HEADERS_SHARE, 1.0), sizes)
    if options.dry_run:
        done = run_jobs(jobs, overall, pack_file=pack_file or pack)
        return _result(plan, done, output, start, dry_run=True)
    work.begin(resume=options.resume, force=options.force, shared=shard is not None)
    try:
        if number == 1:
            work.add_side_files(found.side_files)
        done = _packed(work, jobs, overall, engine, workers, pack_file or pack)
        if shard is not None:
            return _result(plan, done, output, start, work=work.path)
        _check_size(plan, done)
        index = work.finish(done)
    except BaseException as error:
        if shard is None and isinstance(error, TargetUnreachable):  # other options make other archives
            work.discard()
        elif shard is None:
            work.abandon()
        raise
    return _result(plan, done, output, start, index=index)


def join_folder(output: str | os.PathLike[str], *, force: bool = False) -> FolderPackResult:
    """Put together what `pack_folder` packed in parts, wherever that was.

    Args:
        output: the folder to make. What was packed lies beside it, in a folder with `.part` added.
        force: an existing output may be replaced.

    Raises:
        ArchiveError: what was packed is damaged, or belongs to different models.
        OutputError: a shard is missing, or the output exists already or cannot be written.
    """
    start = time.perf_counter()
    named = os.fspath(output)
    named = named.rstrip("/").removesuffix(WORK_SUFFIX) if read_plan(Path(named)) is not None else named
    path = work_path(Path(os.path.realpath(named)))
    plan = read_plan(path)
    if plan is None:
        state = "is whole already" if is_packed_folder(named) else f"cannot be joined: {shown(path)} holds no shards"
        raise OutputError(f"{shown(named)}: {state}; pack some with `pack MODEL -o {shown(named)} --shard I/N`")
    target = check_folder(named, force=force, source=path)
    work = Work(target, plan)
    recorded = {shard.name: work.recorded(shard.name) for shard in plan.index.shards}
    done = [found for found in recorded.values() if found is not None]
    missing = [name for name, found in recorded.items() if found is None]
    missing += [found.entry.name for found in done if not (work.folder / found.entry.archive).is_file()]
    if missing:
        raise OutputError(f"{shown(path)}: {missing_shards(missing, plan)}")
    for found, planned in zip(done, plan.index.shards, strict=True):
        _check_belongs(work, found, planned)
    changed = check_side_files(work.folder, {file.name: file for file in plan.index.files})
    if changed:
        raise OutputError(f"{shown(path)}: side files {listed(changed)} missing or changed; pack --shard 1/N again")
    _check_size(plan, done)
    index = work.finish(done)
    return _result(plan, done, named, start, index=index)


def _check_options(
    options: PackOptions, engine: str | None, shard: str | None, workers: int | None, *, has_task: bool
) -> None:
    needs_task = options.max_drop is not None or options.aims_at_outputs or "on" in (options.refine, options.calibrate)
    if needs_task and not has_task:
        raise OptionError(
            "max_drop, output_snr, max_kl, refine and calibrate need a task, which says what the model is for"
        )
    if has_task and (engine is not None or shard is not None):
        raise OptionError("task: goes with neither an engine nor a part of the shards; leave one of them out")
    if has_task and options.resume:
        raise OptionError("--resume: of a folder that is packed with a task nothing is kept; leave it out")
    if options.key is not None:
        raise OptionError(f"key {options.key!r}: the shards of a folder have no entries to choose from; leave it out")
    if options.dry_run and (engine is not None or shard is not None):
        raise OptionError("dry_run: goes with neither an engine nor a part of the shards; leave one of them out")
    if workers is not None and engine != "processes":
        raise OptionError("workers: only engine processes has them; leave them out")
    if shard is not None and engine == "ray":
        raise OptionError("--shard with --engine ray: both divide the shards among machines; use one of them")


def _planned(
    source: Source, headers: ModelHeaders, options: PackOptions, n_parts: int | None
) -> tuple[Plan, PackOptions, tuple[TensorHeader, ...] | None]:
    """The plan, the options of each shard, and the tensors of the whole model where a shard is not all of it."""
    files = tuple(
        FileEntry(side.name, side.n_bytes, NO_DIGEST if options.dry_run else sha256_of(side.path))
        for side in source.side_files
    )
    shards = tuple(
        ShardEntry(shard.name, shard.format, shard.n_bytes, NO_DIGEST, 0, NO_DIGEST, 0.0, NO_DIGEST)
        for shard in source.shards
    )
    index = Index(shards, files, source.weight_index)
    most_bytes = options.archive_bytes(headers.original_bytes, headers.n_params)
    if most_bytes is not None:
        options = _for_each_shard(options, most_bytes, _other_bytes(index))
    options = replace(options, device=resolve_device(options.device))
    shared = options.method == "vae" or bool(options.rules)
    whole = headers.tensors if len(shards) > 1 and shared else None
    of_options = fingerprint(options, whole)
    index = replace(index, shards=tuple(replace(shard, options=of_options) for shard in shards))
    plan = Plan(index, os.fspath(source.folder), n_parts, most_bytes, source.left_out, source.warnings)
    return plan, options, whole


def _other_bytes(index: Index) -> int:
    """The most that the index and the side files take, known before anything is packed."""
    longest = [
        replace(shard, archive_bytes=10 * (shard.source_bytes + 10**6), energy=1.23456e-300) for shard in index.shards
    ]
    return len(replace(index, shards=tuple(longest)).to_bytes()) + sum(file.bytes for file in index.files)


def _for_each_shard(options: PackOptions, most_bytes: int, other_bytes: int) -> PackOptions:
    """The options with a target for each shard such that the whole output, side files included, meets its own.

    Raises:
        TargetUnreachable: side files alone take more.
    """
    share = (most_bytes - other_bytes) / max(most_bytes, 1)
    if share <= 0:
        raise TargetUnreachable(
            f"{options.size_wanted}: allows {most_bytes:,} bytes, and the side files and the index alone take"
            f" {other_bytes:,}; ask for a larger output, or move files out of the folder"
        )
    if options.ratio is not None:
        return replace(options, ratio=options.ratio / share)
    assert options.bits_per_weight is not None
    return replace(options, bits_per_weight=options.bits_per_weight * share)


def _packed(
    work: Work,
    jobs: Sequence[ShardJob],
    overall: Overall,
    engine: str | None,
    workers: int | None,
    pack_file: Callable[..., PackResult],
) -> list[ShardDone]:
    """All jobs' results; those that were done before are not done again."""
    results: dict[str, ShardDone] = {}
    for job in jobs:
        earlier = work.done(job)
        if earlier is not None:
            results[job.name] = earlier
            overall.update(job.name, 1.0)
    left = [job for job in jobs if job.name not in results]
    done = run_jobs(left, overall, engine=engine, workers=workers, pack_file=pack_file)
    results |= {job.name: found for job, found in zip(left, done, strict=True)}
    return [results[job.name] for job in jobs]


def _check_size(plan: Plan, done: Sequence[ShardDone]) -> None:
    if plan.most_bytes is None:
        return
    index = replace(plan.index, shards=tuple(one.entry for one in done))
    beside = len(index.to_bytes()) + sum(file.bytes for file in index.files)
    found = beside + sum(one.entry.archive_bytes for one in done)
    if found > plan.most_bytes:
        raise TargetUnreachable(f"the output takes {found:,} bytes, at most {plan.most_bytes:,} were asked for")


def _check_belongs(work: Work, found: ShardDone, planned: ShardEntry) -> None:
    entry, where = found.entry, shown(work.folder / found.entry.archive)
    same = (entry.name, entry.format, entry.source_bytes, entry.options)
    if same != (planned.name, planned.format, planned.source_bytes, planned.options):
        raise ArchiveError(f"{where}: was packed from another model or with other options; pack this shard again")
    if sha256_of(work.folder / entry.archive) != entry.archive_sha256:
        raise ArchiveError(f"{where}: is not what was packed; copy it again, or pack this shard again")


def _result(
    plan: Plan,
    done: Sequence[ShardDone],
    output: str | os.PathLike[str],
    start: float,
    *,
    index: Index | None = None,
    work: Path | None = None,
    dry_run: bool = False,
) -> FolderPackResult:
    place = Path(output) if work is None else work / "folder"
    shards = tuple(replace(one.result, archive=os.fspath(place / one.entry.archive)) for one in done)
    n_side_bytes = 0 if work is not None else sum(file.bytes for file in plan.index.files)
    about = plan.index if index is None else index
    figures = sums(
        [one.result for one in done],
        [one.entry.energy for one in done],
        index=0 if work is not None else len(about.to_bytes()),
        side=n_side_bytes,
    )
    estimates = [shard.estimate for shard in shards if shard.estimate is not None]
    errors = [shard.max_abs_error for shard in shards if shard.max_abs_error is not None]
    seconds = {
        name: sum(shard.seconds.get(name, 0.0) for shard in shards) for shard in shards for name in shard.seconds
    }
    return FolderPackResult(
        archive=os.fspath(output),
        source=plan.source,
        **figures,
        seconds={**seconds, "total": time.perf_counter() - start},
        left_out=(*plan.left_out, *(name for shard in shards for name in shard.left_out)),
        left_out_tensors=tuple(name for shard in shards for name in shard.left_out_tensors),
        max_abs_error=max(errors, default=None),
        dry_run=dry_run,
        task=shards[0].task if len(shards) == 1 else None,
        floors=floors_of(shards),
        quality=next((shard.quality for shard in shards if shard.quality is not None), None),
        warnings=(
            *plan.warnings,
            *_shard_warnings(shards),
            *_much_beside(plan, figures["archive_bytes"], n_side_bytes),
        ),
        estimate=Estimate(
            sum(one.seconds for one in estimates),
            max(one.peak_bytes for one in estimates),
            any(one.sampled for one in estimates),
        )
        if estimates
        else None,
        shards=shards,
        n_side_files=0 if work is not None else len(plan.index.files),
        side_file_bytes=n_side_bytes,
        work=None if work is None else os.fspath(work),
    )


def _shard_warnings(shards: Sequence[PackResult]) -> list[str]:
    return [
        f"{Path(shard.source).name}: {warning}" if len(shards) > 1 else warning
        for shard in shards
        for warning in shard.warnings
    ]


def _much_beside(plan: Plan, n_bytes: int, n_side_bytes: int) -> list[str]:
    if n_side_bytes <= _MUCH * n_bytes:
        return []
    largest = max(plan.index.files, key=lambda file: file.bytes)
    return [
        f"side files, kept byte for byte, take {100 * n_side_bytes / n_bytes:.0f} % of the output; the largest is"
        f" '{shown(largest.name)}' with {largest.bytes:,} B"
    ]
