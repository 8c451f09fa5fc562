"""A model of several groups, whatever the method: each is encoded alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import torch

from wcompress.codec.container.manifest import Part
from wcompress.codec.encoded import Encoded
from wcompress.codec.miniature import scaled_bytes
from wcompress.codec.packers.job import Job
from wcompress.codec.packers.packer import PACKERS
from wcompress.codec.plan import Plan
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.results import TensorChoice
from wcompress.codec.storage.exact import encode_raw
from wcompress.codec.tensor_rules import Chosen


class GroupedEncoding:
    """A model of several groups, each encoded alone, in passes until the target is met.

    Args:
        plan: of the whole model.
        groups: the parts that each holds.
        job: the model; its progress is of what comes before the first group.
        sample_size: see `Packer.groups`.

    Attributes:
        groups: as given.
        coder: of all that is not kept bit for bit.
        entries: of all tensors.

    Raises:
        TargetUnreachable: no archive meets the target.
    """

    def __init__(
        self, plan: Plan, groups: tuple[tuple[Part, ...], ...], job: Job, sample_size: int | None = None
    ) -> None:
        self._plan = plan
        self.entries, self.groups = plan.entries, groups
        self._chosen = plan.chosen or Chosen()
        self._raw_sizes: dict[str, int] = {}
        self._lock = threading.Lock()  # groups may be encoded at the same time
        packer = PACKERS[job.options.method]
        self.coder = packer.groups(plan, job, lambda: sum(self._raw_bytes(plan).values()), sample_size)

    def _raw(self, plan: Plan) -> bytes:
        parts = {name: encode_raw([t], stored=name in self._chosen.stored) for name, t in plan.raw.items()}
        with self._lock:
            for name, part in parts.items():
                self._raw_sizes[name] = self._raw_sizes.get(name, 0) + len(part)
        return b"".join(parts.values())

    def note_raw_bytes(self, plan: Plan) -> dict[str, int]:
        """What the tensors take that are kept bit for bit, by name, as if all groups were encoded.

        Args:
            plan: of the whole model, or of samples.
        """
        self._raw_sizes = self._raw_bytes(plan)
        return self._raw_sizes

    def _raw_bytes(self, plan: Plan) -> dict[str, int]:
        raw = plan.raw.items()
        return {name: scaled_bytes(partial(self._raw_size, name), tensor, plan.size(name)) for name, tensor in raw}

    def _raw_size(self, name: str, tensor: torch.Tensor) -> int:
        return len(encode_raw([tensor], stored=name in self._chosen.stored))

    @property
    def choices(self) -> tuple[TensorChoice, ...]:
        """The tensors for which a rule chose, once all groups are encoded."""
        sizes = self._raw_sizes.items()
        return self._chosen.with_bits({name: 8 * n / max(1, self._plan.size(name)) for name, n in sizes})

    @property
    def floors(self) -> Floors | None:
        """That hold for every tensor and row; None where there are none."""
        return self.coder.floors

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each, once all groups are encoded."""
        return (*self._chosen.warnings, *self.coder.warnings)

    def encode(self, number: int) -> Encoded:
        """One group, with entries that have the shapes of its parts."""
        parts = self.groups[number]
        plan = self._plan.of_group(parts)
        raw = self._raw(plan)
        encoded = self.coder.encode(plan, parts)
        return replace(encoded, payloads={**encoded.payloads, "raw": raw})

    def again(self, sqnr_db: float | None, n_bytes: int) -> bool:
        """Whether another pass is needed; see `GroupCoder.again`."""
        if not self.coder.again(sqnr_db, n_bytes):
            return False
        self._raw_sizes.clear()
        return True
