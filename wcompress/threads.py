"""Work in threads; what numba compiles lets others run beside it."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numba

Item = TypeVar("Item")
Result = TypeVar("Result")


_PART = 1 << 18


class _Pool:
    """Threads that stay, since starting them anew costs as much as a short piece of work."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A process that was forked has none of the threads."""
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.inside = threading.local()

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(thread_name_prefix="wcompress")
            return self._executor


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


class _Limit(threading.local):
    """How many threads work may have; of each thread its own, so that two packs at once do not change each other's."""

    def __init__(self) -> None:
        # Not numba.get_num_threads(): where numba starts its threads by OpenMP, that makes torch use as many.
        self.n: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


_limit = _Limit()


def n_work_threads() -> int:
    """As many threads as `in_threads` uses at once; by default one for each core, or $NUMBA_NUM_THREADS."""
    return _limit.n


@contextlib.contextmanager
def work_threads(n: int | None) -> Iterator[None]:
    """Let `in_threads` use so many threads within the block, at most one for each core; None changes nothing."""
    before = _limit.n
    if n is not None:
        _limit.n = min(n, _Limit().n)
    try:
        yield
    finally:
        _limit.n = before


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Results for all items, in their order; `n_work_threads` of them at once, this one among them.

    Work that itself asks for threads does without. What one item raises is raised here, as is an interruption, once the
    items at work are done; the others are left.
    """
    n_threads = min(len(items), n_work_threads())
    if n_threads < 2 or getattr(_pool.inside, "working", False):
        return [function(item) for item in items]
    results: list[Any] = [None] * len(items)
    places = itertools.count()
    failed = threading.Event()

    def work() -> None:
        _pool.inside.working = True
        try:
            while not failed.is_set() and (place := next(places)) < len(items):
                results[place] = function(items[place])
        except BaseException:
            failed.set()
            raise
        finally:
            _pool.inside.working = False

    others: list[Future[None]] = []
    try:
        others += (_pool.executor().submit(work) for _ in range(n_threads - 1))
        work()
        errors = [other.exception() for other in others]
    except BaseException:
        failed.set()
        wait(others)
        raise
    for error in errors:
        if error is not None:
            raise error
    return results


def in_order(function: Callable[[Item], Result], items: Sequence[Item], most: int) -> Generator[Result, None, None]:
    """Results for all items, in their order, each as soon as those before it were taken.

    While one is being used others are at work; no more than there are threads, and than `most`, are at work or wait to
    be taken. What an item raises is raised in its place, and an interruption here, once the items at work are done.
    """
    n_threads = min(len(items), n_work_threads(), most)
    if n_threads < 2 or getattr(_pool.inside, "working", False):
        yield from map(function, items)
        return

    def work(item: Item) -> Result:
        _pool.inside.working = True
        try:
            return function(item)
        finally:
            _pool.inside.working = False

    pending: deque[Future[Result]] = deque()
    left = iter(items)
    try:
        pending += (_pool.executor().submit(work, item) for item in itertools.islice(left, n_threads))
        while pending:
            pending[0].result()  # while it is among those that are waited for
            yield pending.popleft().result()
            pending += (_pool.executor().submit(work, item) for item in itertools.islice(left, 1))
    finally:
        for future in pending:
            future.cancel()
        wait(pending)


def in_parts(function: Callable[[slice], Result], n: int) -> list[Result]:
    """Results for parts of `n` places, in their order; of one size, so that they do not differ by how many threads."""
    return in_threads(function, [slice(first, min(first + _PART, n)) for first in range(0, n, _PART)])
