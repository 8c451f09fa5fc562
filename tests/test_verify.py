"""`verify --against`: an archive belongs to the model it was made from, refined or not, and to no other."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from wcompress.checkpoint import Checkpoint
from wcompress.cli import run
from wcompress.codec.container.manifest import Manifest
from wcompress.codec.encoded import Encoded
from wcompress.codec.given import GivenSymbols, encode_given
from wcompress.codec.options import PackOptions
from wcompress.codec.packing import pack_and_restore
from wcompress.codec.verifying import verify
from wcompress.progress import Progress


def model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "conv.weight": torch.randn(16, 32, generator=generator),
        "norm.running_var": torch.rand(16, generator=generator) + 0.5,
        "norm.running_mean": torch.randn(16, generator=generator),
        "norm.num_batches_tracked": torch.tensor(9),
    }


def refined(checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None) -> Encoded:  # noqa: ARG001
    """Far from the checkpoint: other weights, and statistics that were measured anew."""
    symbols = np.random.default_rng(0).integers(-3, 4, (16, 32)).astype(np.int32)
    fine = {
        "norm.running_var": 9 * checkpoint.tensors["norm.running_var"],
        "norm.running_mean": -checkpoint.tensors["norm.running_mean"],
    }
    given = GivenSymbols(0.7, {"conv.weight": symbols}, {"conv.weight": 0}, fine)
    return encode_given(checkpoint, given, effort=1)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save(model(), tmp_path / "m.pt")
    pack_and_restore(tmp_path / "m.pt", tmp_path / "m.wcz", encoder=refined, effort=1)
    return tmp_path / "m.wcz"


def test_a_refined_archive_belongs_to_its_source(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(archive, model()).ok
    assert run(["verify", str(archive), "--against", str(archive.with_name("m.pt")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("conv.weight", torch.ones(16, 32), "SQNR"),
        ("conv.weight", torch.ones(16, 31), "is torch.float32"),
        ("conv.weight", torch.ones(16, 32).double(), "is torch.float64"),
        ("norm.num_batches_tracked", torch.tensor(8), "bit for bit"),
        ("another", torch.tensor(1.0), "not in the archive"),
    ],
)
def test_and_to_no_other(archive: Path, name: str, value: torch.Tensor, expected: str) -> None:
    result = verify(archive, {**model(), name: value})
    assert not result.ok
    assert expected in " ".join(result.errors)


def test_the_manifest_says_so_only_where_it_is_so() -> None:
    plain, trained = (Manifest("vae", "m.pt", (), refined=refined) for refined in (False, True))
    assert b"refined" not in zlib.decompress(plain.to_bytes(), -15)
    for manifest in (plain, trained):
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest
