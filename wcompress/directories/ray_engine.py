"""Shards as tasks of ray, on one machine or a cluster whose machines share the file system and have wcompress."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wcompress.checkpoint.messages import condensed, shown
from wcompress.directories.folders import sha256_of
from wcompress.directories.shard import ShardDone, ShardJob
from wcompress.directories.work import do_job
from wcompress.errors import OptionError, OutputError, WCompressError

if TYPE_CHECKING:
    from wcompress.directories.engines import Overall

_RETRIES = 3


def run_with_ray(jobs: Sequence[ShardJob], overall: Overall) -> list[ShardDone]:
    """Packs each shard in a task of its own; a task whose worker is lost is done again.

    Joins the cluster that `RAY_ADDRESS` or an earlier `ray.init` names, else starts one on this machine.

    Returns:
        A result for each job, in order.

    Raises:
        OptionError: ray is not installed.
        OutputError: an archive is not on this machine's file system, or not whole.
        WCompressError: a shard cannot be packed, or its workers were lost too often.
    """
    try:
        import ray
    except ImportError as error:
        raise OptionError("--engine ray: ray is not installed; `pip install 'wcompress[ray]'`") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    try:
        remote = ray.remote(max_retries=_RETRIES)(_packed)
        tasks = {}
        for job in jobs:
            absolute = _absolute(job)
            tasks[remote.options(num_cpus=job.options.threads or 1).remote(absolute)] = absolute
        results: dict[str, ShardDone] = {}
        while tasks:
            ready, _ = ray.wait(list(tasks), num_returns=1)
            job = tasks.pop(ready[0])
            try:
                found = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                raise WCompressError(f"shard '{shown(job.name)}': ray lost it ({condensed(error)})") from error
            if isinstance(found, Exception):
                raise found
            _check(job, found)
            results[job.name] = found
            overall.update(job.name, 1.0)
        return [results[job.name] for job in jobs]
    finally:
        if ours:
            ray.shutdown()


def _packed(job: ShardJob) -> ShardDone | Exception:
    # An error is a result: ray would wrap it, and a shard that cannot be packed is not to be tried again.
    try:
        return do_job(job)
    except (WCompressError, OSError) as error:
        return error


def _absolute(job: ShardJob) -> ShardJob:
    # Links are not followed: the archive holds the name of the source.
    return replace(job, source=str(Path(job.source).absolute()), folder=str(Path(job.folder).absolute()))


def _check(job: ShardJob, done: ShardDone) -> None:
    archive = Path(job.folder) / done.entry.archive
    try:
        whole = sha256_of(archive) == done.entry.archive_sha256
    except OSError:
        whole = False
    if not whole:
        raise OutputError(f"{shown(archive)}: is not what a ray worker wrote; the machines must share this file system")
