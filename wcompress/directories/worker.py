"""A worker process: reads jobs from its standard input, packs, and says how it goes; ends with its input."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from wcompress.directories.shard import ShardJob
from wcompress.directories.work import do_job
from wcompress.errors import WCompressError


def main() -> None:
    """Work until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 1)  # whatever a library prints is no answer
    jobs: queue.SimpleQueue[ShardJob] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, jobs), daemon=True).start()

    def say(kind: str, content: Any) -> None:
        pickle.dump((kind, content), answers)
        answers.flush()

    def progress(done: int, total: int, figures: Mapping[str, float | str]) -> None:
        say("progress", (done, total, dict(figures)))

    while True:
        job = jobs.get()
        try:
            say("done", do_job(job, progress))
        except (WCompressError, OSError, MemoryError) as error:
            say("failed", error)
        except Exception as error:
            say("failed", RuntimeError(f"{type(error).__name__}: {error}, in the worker that packed {job.name}"))


def _read(stream: BinaryIO, jobs: queue.SimpleQueue[ShardJob]) -> None:
    try:
        while True:
            jobs.put(pickle.load(stream))
    except EOFError:
        os._exit(0)  # whoever gave the jobs has gone, or needs no more; nothing half written has its final name


if __name__ == "__main__":
    main()
