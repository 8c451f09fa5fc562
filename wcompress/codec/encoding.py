"""Tensors → section payloads, by method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.lossless import encode_lossless
from wcompress.codec.manifest import CODED_DTYPES, Manifest, TensorEntry
from wcompress.codec.options import PackOptions
from wcompress.codec.own_scales import OwnScales
from wcompress.codec.own_scales_rule import multiplier, own_scales, scales_that_count
from wcompress.codec.raw import encode_raw
from wcompress.codec.solution import Solution
from wcompress.codec.vae_search import SQNR_MULTIPLIER, Target, VaeSearch, is_coded
from wcompress.errors import OptionError
from wcompress.fidelity import largest_magnitude

if TYPE_CHECKING:
    from wcompress.vae.training import TrainingHistory

Progress = Callable[[int, int, dict[str, float]], None]

DEFAULT_SQNR_DB = 22.0
"""Where nothing is asked for; see docs/decisions/0004."""

_LARGEST = 1e100
_EPOCHS_PER_EFFORT = 100  # effort 5, the default, is the paper's limit of 500


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
        refined: the values were trained, and need not be near the model's.
    """

    entries: tuple[TensorEntry, ...]
    payloads: dict[str, bytes]
    padding: int = 0
    n_latents: int = 0
    history: TrainingHistory | None = field(default=None, repr=False)
    method: str = "vae"
    refined: bool = False

    def manifest(self, checkpoint: Checkpoint, sqnr_db: float | None = None) -> Manifest:
        """What the archive says of itself.

        Args:
            checkpoint: the model.
            sqnr_db: of what is restored, dB.
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
        )


def encode(checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None) -> Encoded:
    """Encode a model by the method that the options name.

    Raises:
        TargetUnreachable: no archive meets the target.
    """
    entries = entries_of(checkpoint, options.method)
    tensors = {kind: _of_kind(checkpoint, entries, kind) for kind in ("coded", "fine", "raw")}
    raw = encode_raw(tensors["raw"].values())
    if options.method == "paper":
        encoded = _paper(entries, tensors["coded"], options, device, progress)
    elif options.method == "lossless":
        encoded = Encoded(entries, {"symbols": encode_lossless(tensors["coded"]) if tensors["coded"] else b""})
    else:
        encoded = _vae(checkpoint, entries, tensors, options, device, progress, len(raw))
    return Encoded(
        entries, {**encoded.payloads, "raw": raw}, encoded.padding, encoded.n_latents, encoded.history, options.method
    )


def _paper(
    entries: tuple[TensorEntry, ...],
    coded: dict[str, torch.Tensor],
    options: PackOptions,
    device: str,
    progress: Progress | None,
) -> Encoded:
    from wcompress.codec.paper import encode_paper
    from wcompress.vae.training import TrainingConfig

    config = TrainingConfig(
        hidden=options.hidden,
        latent_dim=options.latent_dim,
        epochs=_EPOCHS_PER_EFFORT * options.effort,
        seed=options.seed,
        device=device,
    )
    paper = encode_paper(coded, options.block_size, config, progress)
    payloads = {"decoder": paper.decoder, "latents": paper.latents, "scales": paper.scales}
    return Encoded(entries, payloads, paper.padding, paper.n_latents, paper.history)


def _vae(
    checkpoint: Checkpoint,
    entries: tuple[TensorEntry, ...],
    tensors: dict[str, dict[str, torch.Tensor]],
    options: PackOptions,
    device: str,
    progress: Progress | None,
    n_raw_bytes: int,
) -> Encoded:
    sub_size = options.block_size // options.latent_dim
    if sub_size * options.latent_dim != options.block_size or sub_size & (sub_size - 1):
        raise OptionError(
            f"block_size {options.block_size}, latent_dim {options.latent_dim}: their quotient must be a power of two"
        )
    coded = tensors["coded"]
    padding = -sum(tensor.numel() for tensor in coded.values()) % options.block_size

    def other_bytes(solution: Solution, sqnr_db: float) -> list[int]:
        about = Encoded(entries, {}, padding, solution.model.scales.latents.size)
        # What the manifest will record is not known yet; nothing takes more digits.
        manifest = about.manifest(checkpoint, -100.123 if math.isfinite(sqnr_db) else None)
        return [len(manifest.to_bytes()), n_raw_bytes]

    target = Target(sqnr_db=options.sqnr if options.sqnr is not None else DEFAULT_SQNR_DB)
    budget = options.archive_bytes(checkpoint.original_bytes, checkpoint.n_params)
    if budget is not None:
        target = Target(n_bytes=max(1, budget))
    # An SQNR is met at the least cost by one step for all and levels at the centroids; what a network computes is kept
    # by steps that follow its layers, and by levels that keep the weights' energy.
    by_sqnr = options.sqnr is not None
    plain = OwnScales(tuple((0,) for _ in coded))
    search = VaeSearch(
        coded,
        tensors["fine"],
        plain if by_sqnr else own_scales(checkpoint.tensors, coded),
        counted_by=plain if by_sqnr else scales_that_count(checkpoint.tensors, coded),
        multiplier=SQNR_MULTIPLIER if by_sqnr else multiplier(checkpoint.tensors),
        keep_energy=not by_sqnr,
        block_size=options.block_size,
        latent_dim=options.latent_dim,
        effort=options.effort,
        seed=options.seed,
        device=device,
        other_bytes=other_bytes,
        progress=progress,
    )
    solution = search.run(target)
    return Encoded(entries, search.sections(solution), padding, solution.model.scales.latents.size)


def _of_kind(checkpoint: Checkpoint, entries: tuple[TensorEntry, ...], kind: str) -> dict[str, torch.Tensor]:
    return {entry.name: checkpoint.tensors[entry.name] for entry in entries if entry.kind == kind}


def entries_of(checkpoint: Checkpoint, method: str) -> tuple[TensorEntry, ...]:
    """How a method keeps each tensor of a checkpoint."""
    positions = {name: index for index, name in enumerate(checkpoint.tensors)}
    entries: list[TensorEntry] = []
    for name, tensor in checkpoint.tensors.items():
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if name in checkpoint.ties:
            entries.append(TensorEntry(name, dtype, shape, "tie", positions[checkpoint.ties[name]]))
        else:
            entries.append(TensorEntry(name, dtype, shape, _kind(tensor, method)))
    return tuple(entries)


def _kind(tensor: torch.Tensor, method: str) -> str:
    if str(tensor.dtype).removeprefix("torch.") not in CODED_DTYPES:
        return "raw"
    if method == "lossless":
        return "coded"
    largest = largest_magnitude(tensor)
    if not largest <= _LARGEST or (method == "vae" and 0 < largest < 1 / _LARGEST):
        return "raw"  # squares of such float64 numbers do not exist
    return "coded" if method == "paper" or is_coded(tensor) else "fine"
