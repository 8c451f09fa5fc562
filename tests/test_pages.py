"""Mapped memory that is let go: resident memory shrinks, values stay."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from wcompress.checkpoint import read_checkpoint, write_checkpoint
from wcompress.checkpoint.pages import MappedPages
from wcompress.codec.packing import pack

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells where files are mapped")

N_ROWS = 4096


def resident_bytes() -> int:
    """Of this process's memory that is mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.fixture(params=["safetensors", "pt"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of 32 MB."""
    tensors = {"a": torch.arange(N_ROWS * 1024.0).reshape(N_ROWS, 1024), "b": torch.ones(N_ROWS, 1024)}
    file = tmp_path / f"model.{request.param}"
    write_checkpoint(file, tensors, format=request.param)
    return file


@linux
def test_released_memory_is_not_resident_and_reads_the_same(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    total = sum(float(tensor.sum()) for tensor in checkpoint.tensors.values())
    before = resident_bytes()
    for name in checkpoint.tensors:
        checkpoint.release(name)
    assert resident_bytes() < before - 28e6
    assert sum(float(tensor.sum()) for tensor in checkpoint.tensors.values()) == total


@linux
def test_rows_are_released_alone(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    a = checkpoint.tensors["a"].clone()
    for tensor in checkpoint.tensors.values():
        tensor.sum()
    before = resident_bytes()
    checkpoint.release("a", 1024, 3072)
    assert before - 9e6 < resident_bytes() < before - 7e6
    assert torch.equal(checkpoint.tensors["a"], a)


def test_a_mapping_of_tensors_is_left_alone() -> None:
    tensors = {"w": torch.arange(1e6), "scalar": torch.tensor(3.0), "empty": torch.empty(0, 4)}
    checkpoint = read_checkpoint(tensors)
    for name in tensors:
        checkpoint.release(name)
    assert torch.equal(tensors["w"], torch.arange(1e6))


def test_memory_outside_the_mapping_is_never_touched() -> None:
    tensor = torch.arange(1e6)
    start = tensor.data_ptr()
    MappedPages([(start - 8192, start - 4096), (start + 4 * 10**6 + 4096, start + 4 * 10**6 + 8192)]).release(tensor)
    assert torch.equal(tensor, torch.arange(1e6))


def test_a_file_that_is_not_mapped_has_no_pages(tmp_path: Path) -> None:
    file = tmp_path / "nothing"
    file.write_bytes(b"12345678")
    MappedPages.of([file, tmp_path / "missing"]).release(torch.zeros(4096))


@linux
def test_packing_holds_no_more_of_the_file_than_a_few_tensors(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((2048, 2048), float(i)) for i in range(8)}
    file = tmp_path / "model.safetensors"
    write_checkpoint(file, tensors, format="safetensors")
    del tensors
    before, seen = resident_bytes(), []
    pack(file, tmp_path / "model.wcz", progress=lambda _done, _total, _info: seen.append(resident_bytes() - before))
    assert len(seen) > 8
    assert max(seen) < 80e6  # of 134 MB, with two groups of 16.8 MB at work
