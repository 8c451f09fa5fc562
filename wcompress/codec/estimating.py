"""What packing a large model would give and take, told from samples of its tensors: a dry run."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from wcompress.archive import frame_bytes
from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.groups import GROUP_SIZE, grouped
from wcompress.codec.container.manifest import Manifest, Part, TensorEntry
from wcompress.codec.digest import tensors_digest
from wcompress.codec.encoded import Encoded
from wcompress.codec.encoding import planned
from wcompress.codec.group_writing import GROUPS_AT_ONCE, Written
from wcompress.codec.grouped_encoding import GroupedEncoding
from wcompress.codec.methods.lossless import encode_lossless
from wcompress.codec.methods.stored import STORED
from wcompress.codec.miniature import middle_rows, miniature, scaled_bytes
from wcompress.codec.options import PackOptions
from wcompress.codec.packers.job import Job
from wcompress.codec.packers.packer import PACKERS
from wcompress.codec.packers.vae import fine_margin_db
from wcompress.codec.packers.vae_groups import AIMED_OF_BYTES, LEAST_OF_BYTES
from wcompress.codec.plan import Plan
from wcompress.codec.rate_control.floors import fine_sqnr_db
from wcompress.codec.rate_control.sampling import SAMPLE_SIZE
from wcompress.codec.restoring import restore_group
from wcompress.codec.results import Estimate
from wcompress.codec.storage.dtypes import entry_of
from wcompress.codec.storage.exceptions import encode_exceptions
from wcompress.codec.storage.near_exact import encode_fine
from wcompress.fidelity import ErrorFigures, compare, computable, energy
from wcompress.threads import n_work_threads, work_threads

_LEAST_SAMPLE = 1 << 16  # weights, of a shard
_EFFICIENCY = 0.85  # of threads that encode groups beside each other
_LIGHT_EFFICIENCY = 0.6  # the same where little is done with each weight, and memory and disk hold them up
_PASSES = 1.3  # that a target takes, on average
# Of memory that an element of a group takes while it is encoded: without loss, at effort 1, at higher ones.
_EXACT_BYTES, _QUICK_BYTES, _GROUP_BYTES = 20, 100, 170
_LIBRARIES_BYTES = 390 << 20  # of memory, before anything is packed
_DB_AN_OCTAVE = 6.02

Tensors = Mapping[str, torch.Tensor]
Groups = Sequence[Sequence[Part]]


def peak_bytes() -> int:
    """The most memory that this process has held, bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def estimated(job: Job) -> tuple[Written, Estimate]:
    """What `wcompress.codec.group_writing` would write of a model of several groups, about; it has no digest.

    Args:
        job: the model, by a method that cuts groups, and without bits for single tensors.

    Raises:
        TargetUnreachable: no archive meets the target.
    """
    checkpoint, options, whole = job.checkpoint, job.options, job.whole
    start = time.perf_counter()
    small, sizes = miniature(checkpoint)
    plan = replace(planned(small, options, whole, of=checkpoint), sizes=sizes)
    entries = tuple(replace(e, shape=tuple(checkpoint.tensors[e.name].shape)) for e in plan.entries)
    owners = [entry for entry in entries if entry.kind != "tie"]
    groups = grouped(entries) or (tuple(Part(i) for i, entry in enumerate(entries) if entry.kind != "tie"),)
    n_elements = sum(entry.numel for entry in owners)
    # A shard is a part of the model, and so is its sample.
    n_whole = sum(tensor.numel() for tensor in whole.values())
    sample_size = max(_LEAST_SAMPLE, SAMPLE_SIZE * n_elements // max(1, n_whole, n_elements))
    began = time.perf_counter()
    encoding = GroupedEncoding(plan, groups, job, sample_size)
    sampling_s = (time.perf_counter() - began) * min(SAMPLE_SIZE, n_elements) / min(sample_size, n_elements)
    found = _measured(encoding, plan, groups, options)
    planning_s, cpu_s = _times(encoding, plan, checkpoint, options)
    figures = _pooled(found, plan, checkpoint.ties)
    if options.sqnr is not None and figures.sqnr_db is not None and "symbols" in found.sections:
        # Steps are corrected until it is met, which costs a bit a weight for each octave.
        octaves = (encoding.coder.wanted_db - figures.sqnr_db) / _DB_AN_OCTAVE
        found.sections["symbols"] += round(octaves * sum(plan.size(name) for name in plan.coded) / 8)
        figures = replace(figures, sqnr_db=encoding.coder.wanted_db)
    manifest = Manifest(
        method=options.method,
        source=checkpoint.source,
        tensors=entries,
        padding=0,
        n_latents=found.n_latents,
        sqnr_db=figures.sqnr_db,
        metadata=dict(checkpoint.metadata),
        worst=figures.worst,
        groups=groups,
        quick=options.is_quick,
    )
    sections = found.sections | {"manifest": len(manifest.to_bytes())}
    sections["header"] = frame_bytes(n // len(groups) for n in found.sections.values()) * len(groups)
    budget = options.archive_bytes(checkpoint.original_bytes, checkpoint.n_params)
    sections = sections if budget is None else _met(sections, budget)
    n_together = min(n_work_threads(), GROUPS_AT_ONCE, len(groups))
    is_light = PACKERS[options.method].is_light(options)
    efficiency = _LIGHT_EFFICIENCY if is_light else _EFFICIENCY
    n_passes = 1.0 if budget is None and options.sqnr is None else _PASSES
    encoding_s = n_passes * (found.cpu_s + cpu_s) / (efficiency * n_together if n_together > 1 else 1.0)
    estimate = Estimate(
        seconds=planning_s + sampling_s + encoding_s,
        peak_bytes=_memory(owners, n_together, options),
        sampled=True,
    )
    written = Written(
        manifest,
        digest=b"",
        sections={name: n for name, n in sections.items() if n},
        figures=figures,
        floors=encoding.floors,
        warnings=encoding.warnings,
        seconds={"sampling": time.perf_counter() - start},
        choices=encoding.choices,
    )
    return written, estimate


@dataclass(frozen=True)
class _Measured:
    # Of all groups: bytes by section, error figures, and the processor time that what is kept exactly takes.
    sections: dict[str, int]
    figures: ErrorFigures
    cpu_s: float
    n_latents: int = 0
    octaves: float = 0.0  # that the steps are larger by than those of the figures


def _measured(encoding: GroupedEncoding, plan: Plan, groups: Groups, options: PackOptions) -> _Measured:
    began = time.process_time()
    sections = {"raw": sum(encoding.note_raw_bytes(plan).values())}
    cpu_s = _of_all(time.process_time() - began, plan.raw, plan)
    if STORED[options.method].is_exact:
        sections["symbols"] = sum(
            scaled_bytes(partial(_lossless_bytes, options, name), tensor, plan.size(name))
            for name, tensor in plan.coded.items()
        )
        return _Measured(sections, ErrorFigures(None, 0.0, lossless=True), cpu_s)
    found = [(len(places), plan.times(plan.entries[index].name)) for index, (places, _) in plan.exceptions.items()]
    if found:
        n_bytes = len(encode_exceptions(plan.exception_rows({})))
        sections["exceptions"] = round(n_bytes * sum(n * times for n, times in found) / sum(n for n, _ in found))
    fine = encode_fine(plan.fine, fine_sqnr_db(encoding.coder.quality_db, fine_margin_db(options)))
    sections["fine"] = round(_of_all(len(fine), plan.fine, plan))
    return _with_coded(encoding, plan, groups, fine, _Measured(sections, ErrorFigures(None, None, True), cpu_s))


def _times(encoding: GroupedEncoding, plan: Plan, checkpoint: Checkpoint, options: PackOptions) -> tuple[float, float]:
    """Processor seconds of planning, and of one pass over all coded tensors, told by a slab of the largest.

    A sample is of many tensors, a group of few, and much of the time that a sample takes goes with its tensors.
    """
    if not plan.coded:
        return 0.0, 0.0
    name = max(plan.coded, key=plan.size)
    slab = {name: middle_rows(checkpoint.tensors[name], GROUP_SIZE)}
    times = sum(plan.size(name) for name in plan.coded) / slab[name].numel()
    alone = replace(checkpoint, tensors=slab, ties={})
    planning_s = _cpu_s(lambda: planned(alone, replace(options, tensor=()), slab))

    def pack() -> None:
        restored = restore_group(encoding.coder.trial(name, slab[name]))
        tensors_digest(restored)
        compare(slab, restored)

    # In one thread, as a group beside others is. What takes no time is done twice, since the first time takes longer.
    is_light = PACKERS[options.method].is_light(options)
    with work_threads(1):
        cpu_s = min(_cpu_s(pack) for _ in range(2 if is_light else 1))
    return times * planning_s, times * cpu_s


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _with_coded(encoding: GroupedEncoding, plan: Plan, groups: Groups, fine: bytes, beside: _Measured) -> _Measured:
    # With the sample of the coded tensors, restored and compared as a group is.
    sampled, payloads, octaves = encoding.coder.sampled, {"fine": fine}, 0.0
    sample: dict[str, torch.Tensor] = {}
    exceptions = b""
    n_latents = 0
    if sampled is not None:
        sample, octaves = dict(sampled.sample), sampled.octaves
        payloads = {**sampled.search.sections(sampled.solution), "fine": fine}
        n_latents = sampled.solution.model.scales.latents.size
        aside = sampled.search.model.aside
        exceptions = encode_exceptions(Plan(_entries(sample, "coded"), sample, {}, {}).exception_rows(aside))
    entries = _entries(sample, "coded") + _entries(plan.fine, "fine")
    restored = restore_group(Encoded(entries, {**payloads, "exceptions": exceptions}))
    figures = compare({**sample, **plan.fine}, restored)
    if sampled is None:
        return replace(beside, figures=figures)
    n_sampled = max(1, sum(tensor.numel() for tensor in sample.values()))
    n_weights = sum(plan.size(name) for name in plan.coded)
    n_groups = sum(any(plan.entries[part.index].kind == "coded" for part in parts) for parts in groups)
    # A step that is larger by an octave saves a bit a weight.
    bits = 8 * len(payloads["symbols"]) / n_sampled - octaves
    return _Measured(
        beside.sections
        | {
            "decoder": len(payloads["decoder"]) * n_groups,
            "tables": len(payloads["tables"]) * n_groups,
            "latents": round(len(payloads["latents"]) * n_weights / n_sampled),
            "symbols": max(n_groups, round(bits * n_weights / 8)),
        },
        figures,
        beside.cpu_s,
        round(n_latents * n_weights / n_sampled),
        octaves,
    )


def _entries(tensors: Tensors, kind: str) -> tuple[TensorEntry, ...]:
    return tuple(entry_of(name, tensor, kind) for name, tensor in tensors.items())


def _pooled(found: _Measured, plan: Plan, ties: Mapping[str, str]) -> ErrorFigures:
    """Error figures of a model from those of samples."""

    def moved(value: float | None) -> float | None:
        return None if value is None else value - _DB_AN_OCTAVE * found.octaves

    tensors = {
        name: replace(error, sqnr_db=moved(error.sqnr_db), worst_row_db=moved(error.worst_row_db))
        if name in plan.coded
        else error
        for name, error in found.figures.tensors.items()
    }
    n_names = Counter(ties.values())
    signal, noise = plan.exact_energy(), 0.0
    for name, tensor in plan.to_code.items():
        if tensor.ndim > 1:
            own = energy(computable(tensor).reshape(-1).numpy()) * plan.times(name) * (1 + n_names[name])
            signal += own
            sqnr_db = tensors[name].sqnr_db if name in tensors else None
            noise += 0.0 if sqnr_db is None else own / 10 ** (sqnr_db / 10)
    sqnr_db = 10 * math.log10(signal / noise) if 0 < noise < math.inf and 0 < signal < math.inf else None
    return replace(found.figures, sqnr_db=sqnr_db, tensors=tensors, energy=signal)


def _lossless_bytes(options: PackOptions, name: str, tensor: torch.Tensor) -> int:
    return len(encode_lossless({name: tensor}, quick=options.is_quick))


def _of_all(value: float, tensors: Tensors, plan: Plan) -> float:
    """What holds of samples, in proportion for the whole tensors."""
    n_held = sum(tensor.numel() for tensor in tensors.values())
    return value * sum(plan.size(name) for name in tensors) / max(1, n_held)


def _met(sections: dict[str, int], budget: int) -> dict[str, int]:
    """Sizes of sections as they are once the steps were corrected so that a size is met."""
    total = sum(sections.values())
    if LEAST_OF_BYTES * budget <= total <= budget or "symbols" not in sections:
        return sections
    return sections | {"symbols": max(0, sections["symbols"] + round(AIMED_OF_BYTES * budget) - total)}


def _memory(entries: Sequence[TensorEntry], n_together: int, options: PackOptions) -> int:
    """The most memory that packing takes, bytes."""
    each = _EXACT_BYTES if STORED[options.method].is_exact else _QUICK_BYTES if options.effort == 1 else _GROUP_BYTES
    # A tensor that is kept finely is in one group, however large.
    largest = max((entry.numel for entry in entries if entry.kind == "fine"), default=0)
    groups = n_together * each * max(GROUP_SIZE, largest)
    return max(peak_bytes(), _LIBRARIES_BYTES + groups)
