"""How to pack."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wcompress.blocks import BLOCK_SIZE
from wcompress.codec.container.manifest import METHODS
from wcompress.codec.tensor_rules import Pairs, TensorRule, check_method, parse_rules
from wcompress.device import DEVICES
from wcompress.errors import OptionError

METHOD_ALIASES = {"trellis": "vae"}
"""Further names of methods. Archives and results hold the method's own name."""

TARGETS = ("sqnr", "bits_per_weight", "ratio", "max_drop", "output_snr", "max_kl")
"""Options of which at most one is given."""

_QUICK_EFFORT = 2


@dataclass(frozen=True)
class EntropyParts:
    """Which parts of the entropy model method `vae` may use: all, but where one asks what a part is worth.

    Attributes:
        context: code symbols under the context model from effort 2 on; without it under class tables, with as many
            states and rounds. A model that no class tables reach is then refused with `TableTooWideError`.
        prior: train a VAE prior where it would pay.
    """

    context: bool = True
    prior: bool = True


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        method: `vae`, `paper` or `lossless`; `trellis` is another name for `vae`.
        sqnr: target: at least this SQNR, in dB. At most one target is given, and only for method `vae`.
        bits_per_weight: target: at most so many bits of archive a float parameter.
        ratio: target: at least this ratio.
        max_drop: target: at most so many points lost on a task's validation examples; needs a task.
        output_snr: target: at least this SNR of the outputs for held-out inputs, in dB; needs a task.
        max_kl: target: at most this KL divergence of the classes for held-out inputs, in nats; needs a task.
        calibrate: `off` not to ask a task's inputs what errors cost; `auto` and `on` do, where there is a task and a
            target of size, of outputs, or of score without refinement.
        refine: `on` to train on the task's inputs while quantising, `off` not to; `auto` is on with `max_drop`.
        resume: go on with a refinement, or the pack of a folder, that was interrupted.
        block_size: parameters in a block.
        latent_dim: numbers in a block's latent.
        hidden: for `paper`: sizes of the VAE's hidden layers, from block to latent.
        effort: 1 (fast) to 9 (small and close). Method `lossless` knows two: up to 2 it writes for speed.
        seed: of everything random.
        device: `auto` (CUDA where there is one), `cpu` or `cuda`.
        threads: CPU threads, which change nothing in the archive; None for all there are.
        time_limit: seconds after which refinement or a search ends with what it has; None for no limit. The archive
            then depends on the machine's speed.
        dry_run: write nothing; a model of several groups is judged by samples, see `wcompress.codec.estimating`.
        force: an existing output may be replaced.
        key: entry of the checkpoint that holds the model, or a path to it with dots.
        strict: refuse a pickle that holds anything but what `torch.load(weights_only=True)` takes.
        floors: hold every tensor and row to a least quality, see docs/quality.md; off where a task's score says what
            may go.
        tensor: choices for single tensors: a mapping from regular expressions, looked for in a tensor's name, to
            `"lossless"`, `"keep"`, `"fp16"` or a number of bits a weight; the first that matches counts. See
            docs/tensors.md.
        parts: of the entropy model. For benchmarks and tests; the command line does not offer it.
    """

    method: str = "vae"
    sqnr: float | None = None
    bits_per_weight: float | None = None
    ratio: float | None = None
    max_drop: float | None = None
    output_snr: float | None = None
    max_kl: float | None = None
    refine: str = "auto"
    calibrate: str = "auto"
    resume: bool = False
    block_size: int = BLOCK_SIZE
    latent_dim: int = 64
    hidden: tuple[int, ...] = (512,)
    effort: int = 5
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    time_limit: float | None = None
    dry_run: bool = False
    force: bool = False
    key: str | None = None
    strict: bool = False
    floors: bool = True
    tensor: Pairs = ()
    parts: EntropyParts = EntropyParts()

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", METHOD_ALIASES.get(self.method, self.method))
        checks = [
            (self.method in METHODS, "method", f"one of {', '.join([*METHODS, *METHOD_ALIASES])}"),
            (self.sqnr is None or -3 <= self.sqnr <= 120, "sqnr", "from −3 to 120 dB"),
            (_positive(self.bits_per_weight), "bits_per_weight", "a positive number"),
            (_positive(self.ratio), "ratio", "a positive number"),
            (_positive(self.time_limit), "time_limit", "a positive number of seconds"),
            (self.max_drop is None or -100 <= self.max_drop <= 100, "max_drop", "from −100 to 100 points"),
            (self.output_snr is None or 0 <= self.output_snr <= 120, "output_snr", "from 0 to 120 dB"),
            (_positive(self.max_kl), "max_kl", "a positive number of nats"),
            (self.refine in ("auto", "on", "off"), "refine", "auto, on or off"),
            (self.calibrate in ("auto", "on", "off"), "calibrate", "auto, on or off"),
            (8 <= self.block_size <= 1 << 20, "block_size", "from 8 to 1048576"),
            (1 <= self.latent_dim <= 1 << 14, "latent_dim", "from 1 to 16384"),
            (all(1 <= n <= 1 << 16 for n in self.hidden), "hidden", "sizes from 1 to 65536"),
            (1 <= self.effort <= 9, "effort", "from 1 to 9"),
            (0 <= self.seed < 1 << 63, "seed", "from 0 to 2^63 − 1"),
            (self.device in DEVICES, "device", f"one of {', '.join(DEVICES)}"),
            (self.threads is None or 1 <= self.threads <= 1024, "threads", "from 1 to 1024"),
        ]
        for holds, name, expected in checks:
            if not holds:
                raise OptionError(f"{name} {getattr(self, name)!r}: must be {expected}")
        targets = self.targets
        if len(targets) > 1:
            raise OptionError(f"{' and '.join(targets)}: only one target can be set; choose one")
        if targets and self.method != "vae":
            raise OptionError(f"{targets[0]}: method {self.method} cannot aim at a target; use method vae")
        if self.refine == "on" and (self.sqnr is not None or self.method != "vae"):
            raise OptionError("refine: works with method vae and a target of score or size; leave sqnr out")
        if self.refine == "on" and self.aims_at_outputs:
            raise OptionError(f"refine: trains for a score or a size, not for {targets[0]}; leave one of them out")
        object.__setattr__(self, "tensor", tuple((rule.pattern, rule.choice) for rule in parse_rules(self.tensor)))
        check_method(self.rules, self.method)
        if self.calibrate == "on" and not self.calibrates:
            raise OptionError(
                "calibrate: works with method vae and a target of size, of outputs, or of score with --refine off, and"
                " without bits for single tensors"
            )
        if self.rules and self.refines:
            raise OptionError("tensor: refinement moves every weight, whatever a rule says; use --refine off")

    @property
    def targets(self) -> list[str]:
        """Names of the targets that are set; of valid options at most one."""
        return [name for name in TARGETS if getattr(self, name) is not None]

    @property
    def is_quick(self) -> bool:
        """Whether method `lossless` is to write for speed."""
        return self.method == "lossless" and self.effort <= _QUICK_EFFORT

    @property
    def rules(self) -> tuple[TensorRule, ...]:
        """The choices for single tensors."""
        return parse_rules(self.tensor)

    @property
    def refines(self) -> bool:
        """Whether weights are trained further."""
        return self.refine == "on" or (self.refine == "auto" and self.max_drop is not None)

    @property
    def calibrates(self) -> bool:
        """Whether a task's inputs are asked what errors cost; refinement asks them itself."""
        by_size = self.ratio is not None or self.bits_per_weight is not None
        aims = by_size or self.max_drop is not None or self.aims_at_outputs
        rated = any(rule.bits is not None for rule in self.rules)
        return self.calibrate != "off" and self.method == "vae" and aims and not self.refines and not rated

    @property
    def allows_drop(self) -> bool:
        """Whether the goal is a drop on a task's examples."""
        return self.max_drop is not None or (
            self.refine == "on" and self.ratio is None and self.bits_per_weight is None
        )

    @property
    def aims_at_outputs(self) -> bool:
        """Whether the target is a likeness of outputs for held-out inputs."""
        return self.output_snr is not None or self.max_kl is not None

    def archive_bytes(self, original_bytes: int, n_params: int) -> int | None:
        """The most bytes that the archive may have under the target; None without a target of size."""
        if self.bits_per_weight is not None:
            return math.floor(self.bits_per_weight * n_params / 8)
        if self.ratio is not None:
            return math.floor(original_bytes / self.ratio)
        return None

    @property
    def size_wanted(self) -> str:
        """The target of size as it was given."""
        return f"a ratio of {self.ratio:g}" if self.ratio is not None else f"{self.bits_per_weight:g} bits a weight"

    def size_in_words(self, n_bytes: int, original_bytes: int, n_params: int) -> str:
        """An archive's size in the unit in which a target of size was given."""
        if self.ratio is not None:
            return f"a ratio of {original_bytes / max(n_bytes, 1):.4g}"
        if self.bits_per_weight is not None and n_params:
            return f"{8 * n_bytes / n_params:.4g} bits a weight"
        return f"{n_bytes} bytes"


def _positive(value: float | None) -> bool:
    return value is None or (math.isfinite(value) and value > 0)
