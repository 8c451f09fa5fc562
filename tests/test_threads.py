"""Work in threads."""

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from wcompress.threads import in_order, in_parts, in_threads, n_work_threads, work_threads

DEADLINE_S = 300
"""For what takes a moment; only a failure takes so long."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    if n_work_threads() < 2:
        pytest.skip("one core")
    with work_threads(2):
        yield


def test_results_are_in_order_and_from_two_threads() -> None:
    both = threading.Barrier(2, timeout=DEADLINE_S)

    def work(item: int) -> tuple[int, int]:
        if item < 2:
            both.wait()
        return item, threading.get_ident()

    found = in_threads(work, range(50))
    assert [item for item, _ in found] == list(range(50))
    assert found[0][1] != found[1][1]
    assert in_threads(work, []) == []
    assert [(part.start, part.stop) for part in in_parts(lambda part: part, 600_000)] == [
        (0, 262144),
        (262144, 524288),
        (524288, 600_000),
    ]


def test_work_within_work_does_without_threads() -> None:
    def outer(item: int) -> list[int]:
        return in_threads(lambda other: 10 * item + other, range(4))

    assert in_threads(outer, range(6)) == [[10 * item + other for other in range(4)] for item in range(6)]


def test_an_error_ends_the_work_and_the_next_is_done() -> None:
    done: list[int] = []
    release = threading.Event()

    def work(item: int) -> None:
        if item == 1:
            release.set()
            raise ValueError("one of them")
        assert release.wait(DEADLINE_S)
        done.append(item)

    with pytest.raises(ValueError, match="one of them"):
        in_threads(work, range(100_000))
    assert len(done) < 100_000
    assert in_threads(lambda item: item, range(5)) == list(range(5))


def _child(results: "multiprocessing.Queue[list[int]]") -> None:
    results.put(in_threads(lambda item: item * item, range(5)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    in_threads(lambda item: item, range(5))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_child, args=(results,))
    child.start()
    assert results.get(timeout=DEADLINE_S) == [0, 1, 4, 9, 16]
    child.join()


def test_work_in_threads_leaves_torchs_threads_alone() -> None:
    # In a process of its own: what starts threads does so once.
    code = (
        "import torch, wcompress, tempfile\n"
        "from wcompress.codec.packing import pack\n"
        "torch.set_num_threads(1)\n"
        "seen = []\n"
        "def progress(*_):\n    seen.append(torch.get_num_threads())\n"
        "tensors = {'a': torch.randn(64, 128)}\n"
        "torch.set_num_threads(3)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    pack(tensors, f'{folder}/a.wcz', effort=1, threads=2, progress=progress)\n"
        "assert set(seen) == {1}, seen\n"
        "assert torch.get_num_threads() == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_more_threads_than_asked_for() -> None:
    with work_threads(1):
        assert n_work_threads() == 1
        places = in_threads(lambda _: threading.get_ident(), range(20))
    assert set(places) == {threading.get_ident()}
    assert n_work_threads() == 2


def test_results_come_in_order_and_few_wait() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01 if item % 2 else 0.0)
        return item * item

    taken = []
    with work_threads(2):
        for result in in_order(work, range(9), 4):
            taken.append(result)
            assert len(begun) <= len(taken) + 1
    assert taken == [item * item for item in range(9)]
    with work_threads(1):
        assert list(in_order(work, [3, 2], 4)) == [9, 4]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_error_comes_in_its_place_and_leaves_nothing_at_work(n_threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    with work_threads(n_threads):
        results = in_order(work, range(100), 4)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(results)
    assert len(begun) <= 4
