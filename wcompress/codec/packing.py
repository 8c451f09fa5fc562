"""Packing: a checkpoint becomes an archive."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wcompress.archive import ArchiveWriter
from wcompress.blocks import BLOCK_SIZE
from wcompress.checkpoint import Checkpoint, read_checkpoint
from wcompress.codec.manifest import METHODS, Manifest, TensorEntry
from wcompress.codec.paper import PaperReader, encode_paper
from wcompress.codec.raw import encode_raw
from wcompress.codec.reading import tensors_digest
from wcompress.codec.results import PackResult
from wcompress.device import DEVICES, default_threads, resolve_device, torch_threads
from wcompress.errors import OptionError
from wcompress.fidelity import compare, is_finite
from wcompress.files import atomic_output, check_output
from wcompress.vae.training import Progress, TrainingConfig

_CODED_DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
}
_EPOCHS_PER_EFFORT = 100  # effort 5, the default, is the paper's limit of 500


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        method: `paper`.
        block_size: parameters in a block.
        latent_dim: numbers in a block's latent.
        hidden: sizes of the VAE's hidden layers, from block to latent.
        effort: 1 (fast) to 9 (small and close).
        seed: of everything random.
        device: `auto` (CUDA where there is one), `cpu` or `cuda`.
        threads: CPU threads; None for `wcompress.device.default_threads`.
        dry_run: do everything, write nothing.
        force: an existing output may be replaced.
        key: entry of the checkpoint that holds the model.
    """

    method: str = "paper"
    block_size: int = BLOCK_SIZE
    latent_dim: int = 64
    hidden: tuple[int, ...] = (512,)
    effort: int = 5
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    dry_run: bool = False
    force: bool = False
    key: str | None = None

    def __post_init__(self) -> None:
        checks = [
            (self.method in METHODS, "method", f"one of {', '.join(METHODS)}"),
            (8 <= self.block_size <= 1 << 20, "block_size", "from 8 to 1048576"),
            (1 <= self.latent_dim <= 1 << 14, "latent_dim", "from 1 to 16384"),
            (all(1 <= n <= 1 << 16 for n in self.hidden), "hidden", "sizes from 1 to 65536"),
            (1 <= self.effort <= 9, "effort", "from 1 to 9"),
            (0 <= self.seed < 1 << 63, "seed", "from 0 to 2^63 − 1"),
            (self.device in DEVICES, "device", f"one of {', '.join(DEVICES)}"),
            (self.threads is None or self.threads >= 1, "threads", "at least 1"),
        ]
        for holds, name, expected in checks:
            if not holds:
                raise OptionError(f"{name} {getattr(self, name)!r}: must be {expected}")


def pack_and_restore(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
    **overrides: Any,
) -> tuple[PackResult, dict[str, torch.Tensor]]:
    """Make an archive of a model.

    Args:
        source: a checkpoint file, or name → tensor.
        output: the archive; by default the source's name with `.wcz` added.
        options: how to pack.
        progress: called as the work goes on.
        **overrides: fields of `PackOptions` by name.

    Returns:
        The archive in figures, and the tensors it restores to.

    Raises:
        CheckpointError: the source cannot be read.
        OptionError: an option has no such value.
        OutputError: the output exists already or cannot be written.
    """
    try:
        options = replace(options or PackOptions(), **overrides)
    except TypeError as error:
        raise OptionError(f"pack: {error}; see PackOptions for what there is") from error
    start = time.perf_counter()
    source_path = None if isinstance(source, Mapping) else os.fspath(source)
    if output is None:
        if source_path is None:
            raise OptionError("pack: a dict of tensors has no file name; pass `output`")
        output = f"{source_path}.wcz"
    device = resolve_device(options.device)
    if not options.dry_run:
        check_output(output, force=options.force, source=source_path)
    checkpoint = read_checkpoint(source, key=options.key)
    with torch_threads(options.threads or default_threads()):
        encoded = _encode(checkpoint, options, device, progress)
    with contextlib.ExitStack() as stack:
        if options.dry_run:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wcompress-"))
            path = Path(folder) / "archive"
        else:
            path = stack.enter_context(atomic_output(output, force=options.force, source=source_path))
        sections = encoded.write(path)
        archive_bytes = path.stat().st_size
    result = PackResult(
        archive=os.fspath(output),
        source=source_path or "",
        method=options.method,
        n_params=checkpoint.n_params,
        n_tensors=len(checkpoint.tensors),
        original_bytes=checkpoint.original_bytes,
        archive_bytes=archive_bytes,
        n_latents=encoded.n_latents or None,
        sections=sections,
        sqnr_db=encoded.manifest.sqnr_db,
        sha256=encoded.digest.hex(),
        seconds={"total": time.perf_counter() - start, **encoded.seconds},
        left_out=checkpoint.left_out,
        max_abs_error=encoded.max_abs_error,
        dry_run=options.dry_run,
        history=encoded.history,
    )
    return result, encoded.restored


def pack(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
    **overrides: Any,
) -> PackResult:
    """`pack_and_restore` without the tensors."""
    return pack_and_restore(source, output, options, progress=progress, **overrides)[0]


@dataclass(frozen=True)
class _Encoded:
    manifest: Manifest
    payloads: dict[str, bytes]
    restored: dict[str, torch.Tensor]
    digest: bytes
    n_latents: int
    max_abs_error: float | None
    seconds: dict[str, float]
    history: Any

    def write(self, path: Path) -> dict[str, int]:
        with ArchiveWriter(path) as writer:
            writer.add("manifest", self.manifest.to_bytes())
            for name, payload in self.payloads.items():
                if payload:
                    writer.add(name, payload)
            return writer.finish(self.digest)


def _encode(checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None) -> _Encoded:
    start = time.perf_counter()
    entries = _entries(checkpoint)
    coded = {e.name: checkpoint.tensors[e.name] for e in entries if e.kind == "coded"}
    raw = {e.name: checkpoint.tensors[e.name] for e in entries if e.kind == "raw"}
    config = TrainingConfig(
        hidden=options.hidden,
        latent_dim=options.latent_dim,
        epochs=_EPOCHS_PER_EFFORT * options.effort,
        seed=options.seed,
        device=device,
    )
    paper = encode_paper(coded, options.block_size, config, progress)
    trained = time.perf_counter()

    # What a receiver will see, restored by the receiver's own code from the very bytes that are written.
    reader = PaperReader(
        [e for e in entries if e.kind == "coded"], paper.padding, paper.decoder, paper.latents, paper.scales
    )
    owners = {**reader.restore(), **raw}
    restored = {name: owners[checkpoint.ties.get(name, name)] for name in checkpoint.tensors}
    figures = compare(checkpoint.tensors, restored)
    manifest = Manifest(
        options.method, checkpoint.source, entries, paper.padding, figures.sqnr_db, dict(checkpoint.metadata)
    )
    payloads = {
        "decoder": paper.decoder,
        "latents": paper.latents,
        "scales": paper.scales,
        "raw": encode_raw(raw.values()),
    }
    seconds = {"train": trained - start, "code": time.perf_counter() - trained}
    return _Encoded(
        manifest=manifest,
        payloads=payloads,
        restored=restored,
        digest=tensors_digest(restored),
        n_latents=paper.n_latents,
        max_abs_error=figures.max_abs_error,
        seconds=seconds,
        history=paper.history,
    )


def _entries(checkpoint: Checkpoint) -> tuple[TensorEntry, ...]:
    positions = {name: index for index, name in enumerate(checkpoint.tensors)}
    entries: list[TensorEntry] = []
    for name, tensor in checkpoint.tensors.items():
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if name in checkpoint.ties:
            entries.append(TensorEntry(name, dtype, shape, "tie", positions[checkpoint.ties[name]]))
        else:
            coded = tensor.dtype in _CODED_DTYPES and is_finite(tensor)
            entries.append(TensorEntry(name, dtype, shape, "coded" if coded else "raw"))
    return tuple(entries)
