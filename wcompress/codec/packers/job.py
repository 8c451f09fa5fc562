"""What there is to pack, and what encodes it group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.manifest import Part
from wcompress.codec.encoded import Encoded
from wcompress.codec.options import PackOptions
from wcompress.codec.plan import Plan
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.rate_control.sampling import Sampled
from wcompress.progress import Progress

RawBytes = Callable[[], int]


@dataclass(frozen=True)
class Job:
    """A model, and how it is to be packed.

    Attributes:
        checkpoint: the model, or a shard of it.
        options: how.
        device: where to train.
        progress: called as the work goes on.
        whole: the tensors of the whole model in order, of which `checkpoint` is a shard; only their names, shapes and
            whether they are floating-point are looked at.
        feedbacks: of all float tensors by name, where inputs tell what errors cost.
    """

    checkpoint: Checkpoint
    options: PackOptions
    device: str
    progress: Progress | None
    whole: Mapping[str, torch.Tensor]
    feedbacks: Mapping[str, Feedback] | None = None

    @property
    def budget(self) -> int | None:
        """The most bytes that the archive may have; None without a target of size."""
        return self.options.archive_bytes(self.checkpoint.original_bytes, self.checkpoint.n_params)

    def in_words(self, n_bytes: int) -> str:
        """An archive's size in the unit in which a target of size was given."""
        return self.options.size_in_words(n_bytes, self.checkpoint.original_bytes, self.checkpoint.n_params)


class GroupCoder(Protocol):
    """Encodes a model of several groups, each alone, in passes until a target is met; several groups at a time.

    Attributes:
        wanted_db: the SQNR that is to be met, in which all counts that is kept exactly; 0 without one.
        sampled: the rate before the first pass, and what it was found on; None where there is none, or all forgotten.
    """

    wanted_db: float
    sampled: Sampled | None

    @property
    def quality_db(self) -> float:
        """The SQNR that what is kept finely goes with, dB."""

    @property
    def floors(self) -> Floors | None:
        """That hold for every tensor and row; None where there are none."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each, once all groups are encoded."""

    def encode(self, plan: Plan, parts: Sequence[Part], /) -> Encoded:
        """One group, but for what is kept bit for bit.

        Args:
            plan: of the group.
            parts: that it holds.
        """

    def trial(self, name: str, slab: torch.Tensor, /) -> Encoded:
        """Some rows of a coded tensor, coded as those of a group are; to see how long it takes.

        Args:
            name: of the tensor.
            slab: contiguous, on the CPU.
        """

    def again(self, sqnr_db: float | None, n_bytes: int, /) -> bool:
        """Whether another pass is needed, at a rate that is corrected; after all groups were encoded.

        Args:
            sqnr_db: of what the archive restores to; None where nothing differs.
            n_bytes: of the archive.
        """
