"""Archives that are made to see what they are worth: a model encoded at once, or, if it is large, group by group."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.groups import grouped
from wcompress.codec.container.manifest import Part
from wcompress.codec.encoded import Encoded
from wcompress.codec.encoding import encode_plan, planned
from wcompress.codec.given import archive_bytes
from wcompress.codec.group_writing import Written, write_groups
from wcompress.codec.grouped_encoding import GroupedEncoding
from wcompress.codec.options import PackOptions
from wcompress.codec.packers.job import Job
from wcompress.codec.packers.packer import PACKERS
from wcompress.codec.plan import Plan
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.restoring import restore_encoded


@dataclass(frozen=True)
class Archived:
    """The archive of a model of several groups.

    Attributes:
        content: of the file.
        written: what is in it, and what it restores to.
    """

    content: bytes
    written: Written


Stored = Encoded | Archived
"""What becomes the archive: the sections of a model that is one group, or the archive itself."""


@dataclass(frozen=True)
class Tried:
    """A model that was encoded and restored.

    Attributes:
        stored: what would become the archive.
        n_bytes: of the archive, give or take one for its SQNR's digits.
        restored: what it restores to, by name.
    """

    stored: Stored
    n_bytes: int
    restored: dict[str, torch.Tensor]


def tried(
    checkpoint: Checkpoint, options: PackOptions, device: str, feedbacks: Mapping[str, Feedback] | None = None
) -> Tried:
    """Encode a model as `pack` would, and restore it with the reader's own code.

    A model of several groups is encoded once, at the rate that a sample tells, and may miss a target of size by a few
    hundredths.

    Args:
        checkpoint, options, device, feedbacks: see `wcompress.codec.packers.job.Job`.

    Raises:
        TargetUnreachable: no archive meets the target.
    """
    job = Job(checkpoint, options, device, None, checkpoint.tensors, feedbacks)
    plan = planned(checkpoint, options, checkpoint.tensors)
    groups = cut(plan, options)
    if not groups:
        encoded = encode_plan(plan, job)
        return Tried(encoded, archive_bytes(checkpoint, encoded), restore_encoded(checkpoint, encoded))
    encoding = GroupedEncoding(plan, groups, job)
    with tempfile.TemporaryDirectory(prefix="wcompress-") as folder:
        path = Path(folder) / "archive"
        refined = feedbacks is not None
        written = write_groups(
            encoding, checkpoint, options, path, None, keep_restored=True, refined=refined, once=True
        )
        archived = Archived(path.read_bytes(), written)
    return Tried(archived, written.n_bytes, written.restored)


def cut(plan: Plan, options: PackOptions) -> tuple[tuple[Part, ...], ...]:
    """The groups of a model; none where it is coded at once."""
    # Bits that were chosen for single tensors are met by a search over the whole.
    rated = plan.chosen is not None and plan.chosen.rates
    return grouped(plan.entries) if PACKERS[options.method].cuts_groups and not rated else ()
