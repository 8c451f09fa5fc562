"""Shards in worker processes of this machine. A worker that is killed takes no more with it than its shard's work."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wcompress.checkpoint.messages import shown
from wcompress.directories.shard import ShardDone, ShardJob
from wcompress.errors import WCompressError

if TYPE_CHECKING:
    from wcompress.directories.engines import Overall

_ATTEMPTS = 3


class _Worker:
    """A process that packs one shard after the other; what it says goes to a queue, None when it has ended."""

    def __init__(self, heard: queue.SimpleQueue[tuple[_Worker, Any]]) -> None:
        home = Path(__file__).parent.parent.parent
        places = [str(home), *(place for place in sys.path if place)]
        self._process = subprocess.Popen(
            # -P: nothing is imported from the current folder, which may be the model's.
            [sys.executable, "-P", "-m", "wcompress.directories.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))},
            start_new_session=True,  # Ctrl-C is for this process, which then ends its workers
        )
        self.job: ShardJob | None = None
        self._heard = heard
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
            while True:
                assert self._process.stdout is not None
                self._heard.put((self, pickle.load(self._process.stdout)))
        self._heard.put((self, None))

    def give(self, job: ShardJob) -> None:
        """Have it pack a shard."""
        self.job = job
        with contextlib.suppress(OSError):  # it has ended, which the listener says too
            assert self._process.stdin is not None
            pickle.dump(job, self._process.stdin)
            self._process.stdin.flush()

    def end(self) -> None:
        """Stop it, at work or not."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def run_in_processes(jobs: Sequence[ShardJob], overall: Overall, n_workers: int) -> list[ShardDone]:
    """Packs shards in so many processes at once.

    Returns:
        A result for each job, in order.

    Raises:
        WCompressError: a shard cannot be packed, or ended several workers in a row.
    """
    heard: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()
    waiting, attempts = deque(jobs), dict.fromkeys((job.name for job in jobs), 0)
    results: dict[str, ShardDone] = {}
    workers: list[_Worker] = []

    def give_next(worker: _Worker) -> None:
        worker.job = None
        if waiting:
            job = waiting.popleft()
            attempts[job.name] += 1
            worker.give(job)

    def start() -> None:
        worker = _Worker(heard)
        workers.append(worker)
        give_next(worker)

    try:
        for _ in range(n_workers):
            start()
        while len(results) < len(jobs):
            worker, message = heard.get()
            job = worker.job
            if message is None:
                workers.remove(worker)
                worker.end()
                if job is not None:
                    _check_attempts(job.name, attempts[job.name])
                    waiting.appendleft(job)
                if waiting:
                    start()
                continue
            kind, content = message
            if job is None:
                continue
            if kind == "progress":
                overall.of(job.name)(*content)
            elif kind == "done":
                results[job.name] = content
                overall.update(job.name, 1.0)
                give_next(worker)
            else:
                raise content
    finally:
        for worker in workers:
            worker.end()
    return [results[job.name] for job in jobs]


def _check_attempts(name: str, n: int) -> None:
    if n >= _ATTEMPTS:
        raise WCompressError(
            f"shard '{shown(name)}': {n} worker processes ended before it was done, perhaps for want of memory;"
            " use fewer --workers, or no --engine"
        )
