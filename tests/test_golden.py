"""Archives of every released format version restore to the bytes they always restored to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import wcompress
from wcompress.archive import VERSION
from wcompress.fidelity import same_bits

VECTORS = Path(__file__).parent / "vectors"


@pytest.mark.parametrize("archive", sorted(VECTORS.glob("*.wcz")), ids=lambda path: path.stem)
def test_golden_archives(archive: Path) -> None:
    expected = torch.load(archive.with_suffix(".pt"), weights_only=True)
    restored = wcompress.load(archive)
    assert list(restored) == list(expected)
    for name, tensor in expected.items():
        assert same_bits(restored[name], tensor), name
    assert wcompress.verify(archive).ok


def test_every_version_has_one() -> None:
    versions = {int(path.name.split("-")[0][1:]) for path in VECTORS.glob("v*.wcz")}
    assert versions == set(range(1, VERSION + 1))
