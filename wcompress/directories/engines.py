"""Packing many shards: here one after the other, in processes of this machine, or with ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from wcompress.codec.packing import pack
from wcompress.codec.results import PackResult
from wcompress.directories.shard import ShardDone, ShardJob
from wcompress.directories.work import do_job
from wcompress.errors import OptionError
from wcompress.progress import Progress

ENGINES = ("processes", "ray")
"""Names of the engines; without one, shards are packed one after the other."""


class Overall:
    """The progress of all shards as one, each by its size.

    Args:
        progress: of the whole job; None when nobody listens.
        sizes: shard → bytes.
    """

    def __init__(self, progress: Progress | None, sizes: Mapping[str, int]) -> None:
        self._progress, self._sizes = progress, sizes
        self._shares = dict.fromkeys(sizes, 0.0)

    def update(self, name: str, share: float, figures: Mapping[str, float | str] | None = None) -> None:
        """A shard has come so far.

        Args:
            name: of the shard.
            share: done of it, 0 to 1; it never goes back.
            figures: to show.
        """
        self._shares[name] = max(self._shares[name], min(1.0, share))
        if self._progress is None:
            return
        done = sum(self._shares[name] * size for name, size in self._sizes.items())
        n_done = sum(share >= 1 for share in self._shares.values())
        stage = f"{n_done} of {len(self._sizes)} shards done"
        shown = {**(figures or {}), "stage": stage} if len(self._sizes) > 1 else dict(figures or {})
        self._progress(round(1000 * done / max(1, sum(self._sizes.values()))), 1000, shown)

    def of(self, name: str) -> Progress:
        """What packing one shard calls."""

        def update(done: int, total: int, figures: Mapping[str, float | str]) -> None:
            # It is done when its result is there.
            self.update(name, min(0.999, done / max(1, total)), figures)

        return update


def run_jobs(
    jobs: Sequence[ShardJob],
    overall: Overall,
    *,
    engine: str | None = None,
    workers: int | None = None,
    pack_file: Callable[..., PackResult] = pack,
) -> list[ShardDone]:
    """Packs shards; archives do not depend on the engine.

    Args:
        jobs: what to pack.
        overall: told of the progress.
        engine: None, `processes` or `ray`.
        workers: shards at once; None for as many as suit the machine.
        pack_file: see `pack_shard`; engines take no other than the default.

    Returns:
        A result for each job, in order.

    Raises:
        OptionError: there is no such engine, or it is not installed.
        WCompressError: a shard cannot be packed; the others are left.
    """
    if engine is not None and engine not in ENGINES:
        raise OptionError(f"engine {engine!r}: must be {' or '.join(ENGINES)}")
    if engine == "ray":
        from wcompress.directories.ray_engine import run_with_ray

        return run_with_ray([with_threads(job, 1) for job in jobs], overall)
    n_cores = os.cpu_count() or 1
    n_workers = min(len(jobs), workers or max(2, n_cores // 4))
    if engine == "processes" and n_workers > 0:
        from wcompress.directories.processes import run_in_processes

        return run_in_processes([with_threads(job, max(1, n_cores // n_workers)) for job in jobs], overall, n_workers)
    results = []
    for job in jobs:
        results.append(do_job(job, overall.of(job.name), pack_file))
        overall.update(job.name, 1.0)
    return results


def with_threads(job: ShardJob, n: int) -> ShardJob:
    """The job with so many threads, where the options do not say how many; archives do not depend on them."""
    if job.options.threads is not None:
        return job
    return replace(job, options=replace(job.options, threads=min(n, 1024)))
