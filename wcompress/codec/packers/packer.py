"""The methods, as packing sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from wcompress.checkpoint import Checkpoint
from wcompress.codec.encoded import Encoded
from wcompress.codec.kinds import Kinds, LosslessKinds, PaperKinds, VaeKinds
from wcompress.codec.options import PackOptions
from wcompress.codec.packers.job import GroupCoder, Job, RawBytes
from wcompress.codec.packers.lossless import LosslessGroups, encode_exactly
from wcompress.codec.packers.paper import encode_by_paper
from wcompress.codec.packers.vae import encode_whole
from wcompress.codec.packers.vae_groups import VaeGroups
from wcompress.codec.plan import Plan


class Packer(Protocol):
    """How models are packed by a method.

    Attributes:
        cuts_groups: a large model is cut into groups that are coded alone.
        takes_time_limit: the work can be cut short.
    """

    cuts_groups: ClassVar[bool]
    takes_time_limit: ClassVar[bool]

    def is_light(self, options: PackOptions, /) -> bool:
        """Whether little is done with each weight, so that memory and disk hold threads up."""

    def kinds(self, checkpoint: Checkpoint, exact_bits: float, chosen: Mapping[str, str], /) -> Kinds:
        """Says how each tensor is kept.

        Args:
            checkpoint: the model.
            exact_bits: bits an element that are about what a coded weight takes.
            chosen: kinds of the tensors for which a rule chose, by name.
        """

    def encode(self, plan: Plan, job: Job, raw_bytes: int, /) -> tuple[Encoded, Mapping[str, float]]:
        """A model that is one group, but for what is kept bit for bit.

        Args:
            plan: of the model.
            job: the model.
            raw_bytes: of what is kept bit for bit.

        Returns:
            What is stored, and bits a weight by name of the coded tensors for which a rule chose.

        Raises:
            TargetUnreachable: no archive meets the target.
        """

    def groups(self, plan: Plan, job: Job, raw_bytes: RawBytes, sample_size: int | None, /) -> GroupCoder:
        """What encodes a model of several groups.

        Args:
            plan: of the model, or of samples of it.
            job: the model; its progress is of what comes before the first group.
            raw_bytes: tells about what is kept bit for bit takes.
            sample_size: weights by which a rate is found; None for the usual number, and the sample is forgotten.

        Raises:
            TargetUnreachable: no archive meets the target.
        """


class _Vae:
    cuts_groups: ClassVar[bool] = True
    takes_time_limit: ClassVar[bool] = True

    def is_light(self, options: PackOptions, /) -> bool:
        return options.effort == 1

    def kinds(self, checkpoint: Checkpoint, exact_bits: float, chosen: Mapping[str, str], /) -> Kinds:
        return VaeKinds(checkpoint, exact_bits, chosen)

    def encode(self, plan: Plan, job: Job, raw_bytes: int, /) -> tuple[Encoded, Mapping[str, float]]:
        return encode_whole(plan, job, raw_bytes)

    def groups(self, plan: Plan, job: Job, raw_bytes: RawBytes, sample_size: int | None, /) -> GroupCoder:
        return VaeGroups(plan, job, raw_bytes, sample_size)


class _Paper:
    cuts_groups: ClassVar[bool] = False
    takes_time_limit: ClassVar[bool] = False

    def is_light(self, _options: PackOptions, /) -> bool:
        return False

    def kinds(self, _checkpoint: Checkpoint, _exact_bits: float, _chosen: Mapping[str, str], /) -> Kinds:
        return PaperKinds()

    def encode(self, plan: Plan, job: Job, _raw_bytes: int, /) -> tuple[Encoded, Mapping[str, float]]:
        return encode_by_paper(plan, job), {}

    def groups(self, _plan: Plan, _job: Job, _raw_bytes: RawBytes, _sample_size: int | None, /) -> GroupCoder:
        raise NotImplementedError("method paper trains one VAE for all blocks")


class _Lossless:
    cuts_groups: ClassVar[bool] = True
    takes_time_limit: ClassVar[bool] = False

    def is_light(self, _options: PackOptions, /) -> bool:
        return True

    def kinds(self, _checkpoint: Checkpoint, _exact_bits: float, _chosen: Mapping[str, str], /) -> Kinds:
        return LosslessKinds()

    def encode(self, plan: Plan, job: Job, _raw_bytes: int, /) -> tuple[Encoded, Mapping[str, float]]:
        return encode_exactly(plan, quick=job.options.is_quick), {}

    def groups(self, _plan: Plan, job: Job, _raw_bytes: RawBytes, _sample_size: int | None, /) -> GroupCoder:
        return LosslessGroups(quick=job.options.is_quick)


PACKERS: Mapping[str, Packer] = {"vae": _Vae(), "paper": _Paper(), "lossless": _Lossless()}
"""By name, all of `wcompress.codec.container.manifest.METHODS`."""
