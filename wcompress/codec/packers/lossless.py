"""Packing by method `lossless`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wcompress.codec.container.manifest import Part
from wcompress.codec.encoded import Encoded
from wcompress.codec.methods.lossless import encode_lossless
from wcompress.codec.plan import Plan
from wcompress.codec.rate_control.sampling import Sampled
from wcompress.codec.storage.dtypes import entry_of


def encode_exactly(plan: Plan, *, quick: bool) -> Encoded:
    """A model, or a group of it, but for what is kept as raw bytes.

    Args:
        plan: of it.
        quick: written for speed.
    """
    symbols = encode_lossless(plan.coded, quick=quick) if plan.coded else b""
    return Encoded(plan.entries, {"symbols": symbols}, method="lossless", quick=quick)


class LosslessGroups:
    """A `GroupCoder`: there is nothing to be met.

    Args:
        quick: written for speed.
    """

    quality_db = 0.0
    floors = None
    warnings: tuple[str, ...] = ()

    def __init__(self, *, quick: bool) -> None:
        self._quick = quick
        self.wanted_db = 0.0
        self.sampled: Sampled | None = None

    def encode(self, plan: Plan, _parts: Sequence[Part], /) -> Encoded:
        """One group."""
        return encode_exactly(plan, quick=self._quick)

    def trial(self, name: str, slab: torch.Tensor, /) -> Encoded:
        """Some rows of a tensor."""
        entries = (entry_of(name, slab),)
        return encode_exactly(Plan(entries, {name: slab}, {}, {}), quick=self._quick)

    def again(self, _sqnr_db: float | None, _n_bytes: int, /) -> bool:
        """Never."""
        return False
