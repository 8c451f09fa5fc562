"""What a method makes of a model, or of a group of it, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.manifest import Manifest, TensorEntry
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.results import TensorChoice
from wcompress.fidelity import Worst

if TYPE_CHECKING:  # restoring must not import training code
    from wcompress.vae.training import TrainingHistory


@dataclass(frozen=True)
class Encoded:
    """What a method makes of a model.

    Attributes:
        entries: how each tensor is kept.
        payloads: sections by name, without the manifest.
        padding: zeros at the end of the last block.
        n_latents: numbers in all latents.
        history: of the paper's VAE.
        method: whose sections these are.
        refined: the values were trained, or moved to make errors good, and need not be near the model's.
        floors: that hold for every tensor and row; None where there are none.
        warnings: one line each.
        choices: the tensors for which a rule chose.
        quick: method `lossless` wrote for speed.
    """

    entries: tuple[TensorEntry, ...]
    payloads: Mapping[str, bytes]
    padding: int = 0
    n_latents: int = 0
    history: TrainingHistory | None = field(default=None, repr=False)
    method: str = "vae"
    refined: bool = False
    floors: Floors | None = None
    warnings: tuple[str, ...] = ()
    choices: tuple[TensorChoice, ...] = ()
    quick: bool = False

    def manifest(self, checkpoint: Checkpoint, sqnr_db: float | None = None, worst: Worst | None = None) -> Manifest:
        """What the archive says of itself.

        Args:
            checkpoint: the model.
            sqnr_db: of what is restored, dB.
            worst: of what is restored.
        """
        return Manifest(
            method=self.method,
            source=checkpoint.source,
            tensors=self.entries,
            padding=self.padding,
            n_latents=self.n_latents,
            sqnr_db=sqnr_db,
            metadata=dict(checkpoint.metadata),
            refined=self.refined,
            worst=worst,
            quick=self.quick,
        )
