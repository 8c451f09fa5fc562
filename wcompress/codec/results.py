"""What pack, inspect and verify answer: dataclasses whose `to_json` is the contract of `--json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wcompress.codec.rate_control.floors import Floors, Quality
from wcompress.fidelity import TensorError, Worst

if TYPE_CHECKING:
    from wcompress.vae.training import TrainingHistory


def with_error(value: float | None, error: float | None) -> str:
    """`0.38 ± 0.11`: a number and its standard error, as far as they are known."""
    if value is None:
        return "unknown"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


@dataclass(frozen=True)
class TaskScore:
    """A task's score before and after, in percent or in the task's own unit.

    Attributes:
        name: of the task.
        dataset: that it scored on.
        score_before: of the source model; not a number where the task has no scores.
        score_after: of the restored model.
        unit: `percent`, or the task's own.
        higher_is_better: False for losses.
        n_test: test examples; None where unknown.
        drop_error: standard error of `drop`; None where unknown.
        allowed_drop: the drop that was allowed; None without a goal of that kind.
        validation_drop: on the validation examples; None where nothing was chosen by them.
        n_validation: validation examples; None where unknown.
        validation_error: standard error of `validation_drop`; None where unknown.
        chosen: `data-free`, `calibrated` or `refined`.
        reason: why that one, in a sentence.
        output_snr_db: of the outputs for held-out inputs, see `wcompress.calibrate.likeness`; None where no inputs were
            held out, infinite where outputs are the same.
        kl_nats: of the classes for held-out inputs; None where no inputs were held out or outputs hold no classes.
    """

    name: str
    dataset: str
    score_before: float
    score_after: float
    unit: str = "percent"
    higher_is_better: bool = True
    n_test: int | None = None
    drop_error: float | None = None
    allowed_drop: float | None = None
    validation_drop: float | None = None
    n_validation: int | None = None
    validation_error: float | None = None
    chosen: str = "data-free"
    reason: str = ""
    output_snr_db: float | None = None
    kl_nats: float | None = None

    @property
    def has_scores(self) -> bool:
        """Whether the task scores models."""
        return math.isfinite(self.score_before)

    @property
    def mark(self) -> str:
        """What follows a score."""
        return "%" if self.unit == "percent" else self.unit

    @property
    def drop(self) -> float:
        """How much worse the score has become: points, or the task's own unit."""
        lost = self.score_before - self.score_after
        return lost if self.higher_is_better else -lost

    @property
    def drop_unit(self) -> str:
        """What drops are counted in: points, of scores in percent, or the task's own unit."""
        return "points" if self.unit == "percent" else self.unit

    @property
    def exceeds(self) -> bool:
        """Whether the test set shows a larger drop than was allowed."""
        return self.allowed_drop is not None and not self.drop <= self.allowed_drop

    def to_json(self) -> dict[str, Any]:
        """The `task` object; numbers that are not finite become null."""
        figures = {**asdict(self), "drop": self.drop}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


@dataclass(frozen=True)
class TensorChoice:
    """What became of a tensor for which a rule chose.

    Attributes:
        tensor: its name, the first one of a tensor that has several.
        rule: as it was given, `REGEX=CHOICE`.
        choice: `lossless`, `keep`, `fp16`, or a number of bits as text.
        kind: how it is kept, `raw` or `coded`.
        bits_per_weight: that it takes in the archive, without what all tensors share; None where it is not told.
        sqnr_db: of it, dB; None where nothing differs.
    """

    tensor: str
    rule: str
    choice: str
    kind: str
    bits_per_weight: float | None = None
    sqnr_db: float | None = None


def with_errors(choices: tuple[TensorChoice, ...], errors: Mapping[str, TensorError]) -> tuple[TensorChoice, ...]:
    """The choices with the SQNR of their tensors, of which `errors` holds those of floats by name."""
    return tuple(replace(c, sqnr_db=errors[c.tensor].sqnr_db if c.tensor in errors else None) for c in choices)


@dataclass(frozen=True)
class ArchiveSummary:
    """An archive in figures.

    Attributes:
        archive: its path.
        source: file name or path of the model.
        method: how float tensors are coded.
        n_params: elements of the floating-point tensors.
        n_tensors: tensors.
        original_bytes: Σ numel × itemsize over every tensor of the source.
        archive_bytes: size on disk of everything a receiver needs.
        n_latents: numbers in all latents; None where the method has none.
        sections: bytes by section name; they add up to `archive_bytes`.
        sqnr_db: pooled over float tensors of two or more dimensions, dB; None when lossless.
        sha256: of the restored tensors, hexadecimal.
        worst: the poorest tensor and the poorest row of what is coded with loss; None where there is none.
    """

    archive: str
    source: str
    method: str
    n_params: int
    n_tensors: int
    original_bytes: int
    archive_bytes: int
    n_latents: int | None
    sections: dict[str, int]
    sqnr_db: float | None
    sha256: str
    worst: Worst | None = None

    @property
    def ratio(self) -> float:
        """original_bytes / archive_bytes, every byte counted."""
        return self.original_bytes / self.archive_bytes

    @property
    def latent_ratio(self) -> float | None:
        """The paper's accounting: float parameters / latents."""
        return self.n_params / self.n_latents if self.n_latents else None

    @property
    def bits_per_param(self) -> float | None:
        """8 × archive_bytes / n_params; None without parameters."""
        return 8 * self.archive_bytes / self.n_params if self.n_params else None

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        names = ["header", "manifest", "decoder", "latents", "tables", "symbols", "raw"]
        sections = {name: self.sections.get(name, 0) for name in names}
        return {
            "archive": self.archive,
            "source": self.source,
            "method": self.method,
            "n_params": self.n_params,
            "n_tensors": self.n_tensors,
            "original_bytes": self.original_bytes,
            "archive_bytes": self.archive_bytes,
            "ratio": self.ratio,
            "latent_ratio": self.latent_ratio,
            "bits_per_param": self.bits_per_param,
            "sections": {**sections, **{k: v for k, v in self.sections.items() if k not in sections}},
            "sqnr_db": self.sqnr_db,
            "sha256": self.sha256,
            "worst": None if self.worst is None else asdict(self.worst),
        }


@dataclass(frozen=True)
class Estimate:
    """What packing takes, told before it is done.

    Attributes:
        seconds: wall time of the packing, on a machine with nothing else to do.
        peak_bytes: the most memory that its process holds, libraries included.
        sampled: told from samples of the tensors, as all figures beside it are; otherwise it was done and measured.
    """

    seconds: float
    peak_bytes: int
    sampled: bool


@dataclass(frozen=True)
class PackResult(ArchiveSummary):
    """What `pack` did.

    Attributes:
        seconds: wall time by part, `total` among them.
        task: scores, when a task was given.
        left_out: what the source held that is no part of the archive.
        left_out_tensors: those of `left_out` that hold tensors.
        max_abs_error: the largest difference of any finite float parameter.
        dry_run: nothing was written.
        history: of the VAE's training, None where none was trained.
        floors: that hold for every tensor and row; None where nothing is coded with loss, or a task decided.
        warnings: one line for each thing a user should know before relying on the archive.
        weights_energy: Σw² over the source's float tensors of two or more dimensions, finite elements only.
        choices: the tensors for which a rule chose, and what became of them.
        estimate: of a dry run, what packing takes; None otherwise.
        quality: chosen without a target, and why; None where a target or a task decided.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    task: TaskScore | None = None
    left_out: tuple[str, ...] = ()
    left_out_tensors: tuple[str, ...] = ()
    max_abs_error: float | None = None
    dry_run: bool = False
    history: TrainingHistory | None = None
    floors: Floors | None = None
    warnings: tuple[str, ...] = ()
    weights_energy: float = 0.0
    choices: tuple[TensorChoice, ...] = ()
    estimate: Estimate | None = None
    quality: Quality | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `pack --json` prints."""
        return {
            **super().to_json(),
            "max_abs_error": self.max_abs_error,
            "seconds": self.seconds,
            "task": self.task.to_json() if self.task else None,
            "left_out": list(self.left_out),
            "left_out_tensors": list(self.left_out_tensors),
            "dry_run": self.dry_run,
            "floors": None if self.floors is None else asdict(self.floors),
            "warnings": list(self.warnings),
            "choices": [asdict(choice) for choice in self.choices],
            "estimate": None if self.estimate is None else asdict(self.estimate),
            "quality": None if self.quality is None else asdict(self.quality),
        }


@dataclass(frozen=True)
class TensorRow:
    """One tensor as `inspect` lists it.

    Attributes:
        name, dtype, shape: of the tensor.
        kind: how it is stored: coded, fine, raw, or tie, another name of an earlier tensor.
        kept: what that means for its values: `lossy`, `nearly exact`, or `exact`, as they were or, where a rule said
            so, rounded to float16.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    kept: str = "exact"


@dataclass(frozen=True)
class InspectResult(ArchiveSummary):
    """What is in an archive, without decoding.

    Attributes:
        version: of the format.
        padding: zeros at the end of the last block.
        tensors: in order.
    """

    version: int = 0
    padding: int = 0
    tensors: tuple[TensorRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that `inspect --json` prints."""
        rows = [{**asdict(row), "shape": list(row.shape)} for row in self.tensors]
        return {**super().to_json(), "version": self.version, "padding": self.padding, "tensors": rows}


@dataclass(frozen=True)
class VerifyResult:
    """Whether an archive is whole and restores what it says.

    Attributes:
        sha256: of the restored tensors, hexadecimal.
        sqnr_db, max_abs_error, lossless: against the model given; None without one.
        errors: one line each; empty when all is well.
        tensors: error figures of each float tensor against the model given; None without one.
    """

    sha256: str
    sqnr_db: float | None = None
    max_abs_error: float | None = None
    lossless: bool | None = None
    errors: tuple[str, ...] = ()
    tensors: Mapping[str, TensorError] | None = None

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """The object that `verify --json` prints."""
        document = {"ok": self.ok, **asdict(replace(self, tensors=None)), "errors": list(self.errors)}
        if self.tensors is None:
            del document["tensors"]
        else:
            document["tensors"] = {name: asdict(error) for name, error in self.tensors.items()}
        return document
