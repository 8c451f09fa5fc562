"""Dry runs of large models: told from samples, near what packing then gives, and quick for any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import wcompress
from benchmarks.generated import write_sparse
from tests.test_directories import Cli
from wcompress.checkpoint import read_checkpoint, write_checkpoint
from wcompress.codec.miniature import miniature, scaled_bytes
from wcompress.errors import TargetUnreachable

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def large() -> Tensors:
    """2.3 million weights of several kinds."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "embedding": 0.05 * normal(6000, 200),
        "wide": (0.02 * normal(200, 3000)).bfloat16(),
        "tail": 0.1 * normal(500, 600) * normal(500, 600).abs(),
        "experts": 0.03 * normal(4, 150, 400),
        "mask": torch.ones(400, 400).tril(),
        "ids": torch.arange(100_000),
        "bias": normal(3000),
    }
    tensors["tied"] = tensors["embedding"]
    return tensors


OPTIONS: list[dict[str, Any]] = [
    {"effort": 1},
    {"effort": 2},
    {"effort": 1, "sqnr": 18.0},
    {"effort": 1, "bits_per_weight": 3.0},
    {"effort": 1, "ratio": 6.0},
    {"effort": 1, "tensor": {"wide": "fp16", "tail": "keep"}},
    {"method": "lossless"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_dry_run_tells_what_packing_gives(tmp_path: Path, large: Tensors, options: dict[str, Any]) -> None:
    path = tmp_path / "model.wcz"
    told = wcompress.pack(large, path, **options, dry_run=True)
    assert not list(tmp_path.iterdir())
    assert told.dry_run
    assert told.estimate is not None
    assert told.estimate.sampled
    packed = wcompress.pack(large, path, **options)
    assert packed.estimate is None
    assert told.archive_bytes == pytest.approx(packed.archive_bytes, rel=0.05)
    assert sum(told.sections.values()) == told.archive_bytes
    assert (told.n_params, told.n_tensors, told.original_bytes) == (
        packed.n_params,
        packed.n_tensors,
        packed.original_bytes,
    )
    if packed.sqnr_db is None:
        assert told.sqnr_db is None
    else:
        assert told.sqnr_db == pytest.approx(packed.sqnr_db, abs=0.5)
    assert [(c.tensor, c.kind) for c in told.choices] == [(c.tensor, c.kind) for c in packed.choices]
    for one, other in zip(told.choices, packed.choices, strict=True):
        assert one.bits_per_weight == pytest.approx(other.bits_per_weight, rel=0.05)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_quality_out_of_reach_is_named_as_it_was_asked_for(tmp_path: Path, large: Tensors, dry_run: bool) -> None:
    with pytest.raises(TargetUnreachable, match=r"^an SQNR of 110 dB: .* is the nearest"):
        wcompress.pack(large, tmp_path / "m.wcz", effort=1, sqnr=110.0, dry_run=dry_run)
    assert not list(tmp_path.iterdir())


def test_a_small_model_is_packed_and_measured(tmp_path: Path) -> None:
    told = wcompress.pack({"w": torch.randn(60, 80)}, tmp_path / "m.wcz", effort=1, dry_run=True)
    assert told.estimate is not None
    assert not told.estimate.sampled
    assert told.estimate.seconds == told.seconds["total"]
    assert told.estimate.peak_bytes > 50e6
    assert len(told.sha256) == 64


def test_an_estimate_says_that_it_is_one(tmp_path: Path, cli: Cli, large: Tensors) -> None:
    write_checkpoint(tmp_path / "m.safetensors", large, format="safetensors")
    code, out, _ = cli("pack", tmp_path / "m.safetensors", "--effort", 1, "--dry-run")
    assert code == 0
    assert "SQNR of about" in out
    assert "at least" not in out
    assert "Estimated from samples of the tensors. Nothing was written." in out
    assert "packing takes about" in out
    assert "memory of about" in out
    code, out, _ = cli("pack", tmp_path / "m.safetensors", "--effort", 1, "--dry-run", "--json")
    assert set(json.loads(out)["estimate"]) == {"seconds", "peak_bytes", "sampled"}


def test_a_folder_adds_up_what_its_shards_take(tmp_path: Path, cli: Cli, large: Tensors) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    names = list(large)
    weight_map: dict[str, str] = {}
    for number, some in enumerate((["embedding", "mask"], ["wide", "tail", "experts", "ids", "bias"]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        tensors = {name: torch.cat([large[name]] * 3) for name in some}
        write_checkpoint(folder / shard, tensors, format="safetensors")
        weight_map |= dict.fromkeys(some, shard)
    assert set(weight_map) == set(names) - {"tied"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    code, out, _ = cli("pack", folder, "--effort", 1, "--dry-run", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["sha256"] == ""
    assert told["estimate"]["sampled"]
    assert told["estimate"]["seconds"] == pytest.approx(sum(s["estimate"]["seconds"] for s in told["shards"]))
    code, out, _ = cli("pack", folder, "--effort", 1, "--json")
    packed = json.loads(out)
    assert told["archive_bytes"] == pytest.approx(packed["archive_bytes"], rel=0.05)
    assert told["sqnr_db"] == pytest.approx(packed["sqnr_db"], abs=0.5)


def test_a_dry_run_reads_next_to_nothing_of_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    write_sparse(path, {f"layer.{i}": (8192, 16384) for i in range(16)})
    assert path.stat().st_size > 4 << 30
    told = wcompress.pack(path, tmp_path / "huge.wcz", dry_run=True)
    assert told.n_params == 1 << 31
    assert told.archive_bytes < 1e6
    assert told.estimate is not None
    assert told.estimate.peak_bytes < 4e9


def test_a_miniature_has_a_part_of_every_large_tensor(large: Tensors) -> None:
    tensors = {**large, "huge": torch.zeros(1, 3_000_000), "long": torch.arange(2_000_000.0)}
    small, sizes = miniature(read_checkpoint(tensors))
    assert list(small.tensors) == list(tensors)
    assert small.tensors["tied"] is small.tensors["embedding"]
    assert sizes["huge"] == 3_000_000
    assert 60_000 < small.tensors["huge"].numel() < 800_000
    runs = small.tensors["long"].reshape(-1, 1024)[:, 0] / 1024
    assert torch.equal(runs, runs.round())
    assert all(small.tensors[name].numel() == tensors[name].numel() for name in tensors if name not in {*sizes, "tied"})
    for name, size in sizes.items():
        assert size == tensors[name].numel() > small.tensors[name].numel()
        assert small.tensors[name].numel() >= 1 << 16


def test_what_a_whole_takes_follows_from_a_sample_and_its_half() -> None:
    tensor = torch.zeros(100, 20)
    assert scaled_bytes(lambda some: 50 + 3 * some.numel(), tensor, 10_000) == 50 + 30_000
    assert scaled_bytes(lambda _: 12, tensor, 10_000) == 12
    assert scaled_bytes(torch.Tensor.numel, tensor, 2000) == 2000
    assert scaled_bytes(lambda some: 4 * some.numel(), torch.zeros(1, 7), 70) == 280
