"""Packing with calibration: a task's inputs say what errors cost, and the codec spends its bits accordingly.

The reader knows nothing of it: an archive holds symbols and steps, however they were found.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from wcompress.calibrate.calibration import DAMPING, FEWEST_INPUTS, Calibration, Feedbacks, Split
from wcompress.calibrate.likeness import KlCriterion, Likeness, OutputCriterion, SnrCriterion
from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.groups import is_several
from wcompress.codec.options import PackOptions
from wcompress.codec.trying import Stored, tried
from wcompress.deadline import Deadline
from wcompress.errors import TargetUnreachable, TaskError
from wcompress.progress import Progress, part
from wcompress.refine.coarsest import BITS, MEASURING_EFFORT, Found, Trials, coarsest, sized
from wcompress.refine.scored import Decision, DropCriterion, Scored
from wcompress.tasks import Score, Task, seeded

DAMPINGS = (0.03, 0.1, 0.3)
"""Of which held-out inputs choose one; see `wcompress.calibrate.calibration.DAMPING`."""
_TOO_FEW = f"the task gives fewer than {FEWEST_INPUTS} inputs"
_BITS = ((min(BITS) / 2, max(BITS) / 2), BITS)
"""A weight, between which an archive that keeps to a drop is looked for; the second where the first has none."""
_AGAIN, _AGAIN_ROUNDS = 0.8, 2
"""How far below the size that was found another way of calibrating is tried, and in how many rounds."""
_SHARES = (0.95, 1.0)
"""Of the size that was found, what is tried with all effort, at which less is lost."""
_OUTPUT_BITS, _FIRST_BITS = (1 / 32, 24.0), 2.0
"""A weight, between which an archive is looked for whose outputs are alike, and what is tried first."""
_ABOUT_DB = 1.0
"""How far beyond what is asked for an archive may be at whose size the ways of coding are compared."""
_CLOSE_DB = 1.5
"""By how much packing without data may be behind with little effort, and be tried again with all of it."""
_COLLECTING, _TRYING = "running the network on its inputs", "trying what inputs say"
_COLLECTING_SHARE, _TRYING_SHARE = 0.2, 0.6


@dataclass(frozen=True)
class _Work:
    """What there is to pack, with what is known of it.

    Attributes:
        checkpoint, options, device: see `wcompress.codec.packing.Encoder`.
        calibration: what inputs tell; None where they are not asked, or tell nothing.
        deadline: of the whole work.
        progress: called as trials go on.
    """

    checkpoint: Checkpoint
    options: PackOptions
    device: str
    calibration: Calibration | None
    deadline: Deadline
    progress: Progress | None

    @property
    def is_several(self) -> bool:
        """Whether the model is several groups."""
        checkpoint = self.checkpoint
        return is_several(t.numel() for name, t in checkpoint.tensors.items() if name not in checkpoint.ties)

    @property
    def quick(self) -> PackOptions:
        """The options with the effort that archives are tried with."""
        return replace(self.options, effort=min(self.options.effort, MEASURING_EFFORT))

    def ways(self) -> list[Feedbacks | None]:
        """Ways of coding: without data, at the usual damping, and of a small model without feedback and others."""
        if self.calibration is None:
            return [None]
        if self.is_several:
            return [None, self.calibration.feedbacks(DAMPING)]
        return [None, self.calibration.feedbacks(None), *map(self.calibration.feedbacks, DAMPINGS)]


class CalibratedEncoder:
    """Finds what errors of a model's weights cost; with a drop or outputs to keep to, also what to store.

    Args:
        task: builds the network and gives inputs.
        before: the original's score on validation; None where there is no drop to keep to.

    Attributes:
        decision: set once the work is done.
        warnings: one line each.
    """

    def __init__(self, task: Task, before: Score | None) -> None:
        self.task, self._before = task, before
        self.decision: Decision | None = None
        self.warnings: list[str] = []
        self._why = _TOO_FEW
        self._likeness: Likeness | None = None

    def __call__(
        self, checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None
    ) -> Stored | Feedbacks | None:
        """See `wcompress.codec.packing.Encoder`.

        Raises:
            TargetUnreachable: no archive that was found keeps to the drop, or has outputs as like.
            TaskError: the task fails, or does not fit the model, or gives too few inputs to hold some out.
        """
        with seeded(options.seed):
            part(progress, 0.0, 0.0, _COLLECTING)
            criterion, split = self._output_criterion(checkpoint, options)
            calibration = self._calibration(checkpoint, options, split)
            if self._likeness is None and calibration is not None and calibration.split.held_out:
                self._likeness = Likeness(calibration.split)
            trying = part(progress, _COLLECTING_SHARE, _TRYING_SHARE)
            work = _Work(checkpoint, options, device, calibration, Deadline(options.time_limit), trying)
            if criterion is not None:
                return self._alike(work, criterion)
            return self._sized(work) if self._before is None else self._kept(work, self._before)

    def likeness(self, restored: Mapping[str, Tensor]) -> tuple[float | None, float | None]:
        """Output SNR in dB and KL divergence in nats of restored weights for held-out inputs, as far as there are any.

        Args:
            restored: by name.
        """
        return (None, None) if self._likeness is None else self._likeness.figures(restored)

    def _output_criterion(
        self, checkpoint: Checkpoint, options: PackOptions
    ) -> tuple[OutputCriterion | None, Split | None]:
        """What outputs have to keep, if that is the target, and the inputs that it is measured on."""
        if not options.aims_at_outputs:
            return None, None
        split = Split.of(self.task, checkpoint, options.seed)
        if split is None:
            raise TaskError(
                f"task {self.task.name}: output_snr and max_kl hold inputs out to measure outputs, and calibration()"
                f" gives fewer than {FEWEST_INPUTS}; give more"
            )
        likeness = self._likeness = Likeness(split)
        if options.output_snr is not None:
            likeness.output_snr_db(checkpoint.tensors)  # fails at once where there is none
            return SnrCriterion(likeness, options.output_snr), split
        assert options.max_kl is not None
        likeness.kl_nats(checkpoint.tensors)
        return KlCriterion(likeness, options.max_kl), split

    def _calibration(self, checkpoint: Checkpoint, options: PackOptions, split: Split | None) -> Calibration | None:
        """What inputs tell; None where they are not asked, too few, or, unless they have to be, where that fails."""
        if not options.calibrates:
            self._why = "calibration is off"
            return None
        try:
            split = split or Split.of(self.task, checkpoint, options.seed)
            return None if split is None else Calibration.on(split, checkpoint, options.seed)
        except Exception as error:
            told = f"{error}" if isinstance(error, TaskError) else f"{type(error).__name__}: {error}"
            detail = " ".join(told.split())
            if options.calibrate == "on":
                raise TaskError(f"task {self.task.name}: calibration failed ({detail:.300})") from error
            self._why = "calibration failed"
            self.warnings.append(f"calibration failed ({detail:.300}); the archive goes by the weights alone")
            return None

    def _sized(self, work: _Work) -> Feedbacks | None:
        if work.calibration is None:
            self.decision = Decision("data-free", self._why, None)
            return None
        if work.is_several:
            self.decision = Decision("calibrated", f"on {work.calibration.split.n_inputs} inputs", None)
            return work.calibration.feedbacks(DAMPING)
        feedbacks, reason = self._best(work, work.options)
        self.decision = Decision("data-free" if feedbacks is None else "calibrated", reason, None)
        return feedbacks

    def _best(self, work: _Work, at_size: PackOptions) -> tuple[Feedbacks | None, str]:
        """The way of coding that held-out inputs like best at a size, and why."""
        assert work.calibration is not None
        quick = replace(at_size, effort=min(at_size.effort, MEASURING_EFFORT), time_limit=None)
        ways, split = work.ways(), work.calibration.split
        distances: list[float] = []
        for number, feedbacks in enumerate(ways):
            if work.deadline.passed and distances:
                self.warnings.append(
                    f"the time limit of {work.deadline.limit_s:g} s ended the trials of calibration after {number} of"
                    f" {len(ways)}; results depend on the machine's speed"
                )
                break
            wanted = quick if feedbacks is None else replace(quick, floors=False)
            try:
                distances.append(split.distance(tried(work.checkpoint, wanted, work.device, feedbacks).restored))
            except TargetUnreachable:
                distances.append(math.inf)
            if work.progress is not None:
                work.progress(number + 1, len(ways), {"stage": _TRYING})
        at = distances.index(min(distances))
        reason = (
            f"on {split.n_inputs} inputs; the distance of outputs at this size, held out, is"
            f" {distances[at]:.3g} against {distances[0]:.3g} without data"
        )
        return ways[at], reason

    def _alike(self, work: _Work, criterion: OutputCriterion) -> Stored:
        """The smallest archive whose outputs are alike: the way of coding with little effort, then with all of it."""
        full = Trials(work.checkpoint, criterion, work.options, work.device)
        quick = replace(full, options=work.quick)
        searching, trying, writing = (part(work.progress, *ends) for ends in ((0.0, 0.4), (0.4, 0.6), (0.6, 1.0)))
        search = partial(coarsest, deadline=work.deadline, warnings=self.warnings, bits=_OUTPUT_BITS)
        feedbacks = None if work.calibration is None else work.calibration.feedbacks(DAMPING)
        try:
            about = search(replace(quick, feedbacks=feedbacks), searching, start=_FIRST_BITS, tolerance_db=_ABOUT_DB)
        except TargetUnreachable:
            if feedbacks is None:
                raise
            feedbacks = None
            about = search(quick, searching, start=_FIRST_BITS, tolerance_db=_ABOUT_DB)
        # All ways at about the size; the best of them is searched on.
        found, data_free = about, about if feedbacks is None else None
        for number, way in enumerate(ways := [way for way in work.ways() if way is not feedbacks]):
            if work.deadline.passed:
                break
            with contextlib.suppress(TargetUnreachable):
                other = replace(quick, feedbacks=way).at(about.bits)
                data_free = other if way is None else data_free
                if other.reached.beyond > found.reached.beyond:
                    found, feedbacks = replace(other, slope=about.slope), way
            if trying is not None:
                trying(number + 1, len(ways), {"stage": _TRYING})
        ahead_db = math.inf if data_free is None else found.reached.beyond - data_free.reached.beyond
        is_quick = full.options.effort == quick.options.effort
        trials = replace(full, feedbacks=feedbacks)
        at_first = found
        found = search(trials, writing, known=found) if is_quick else search(trials, writing, start=found)
        if at_first.reached.keeps and at_first.n_bytes < found.n_bytes:
            found = at_first
        if feedbacks is not None and not is_quick and ahead_db < _CLOSE_DB and not work.deadline.passed:
            data_free = replace(full.at(found.bits), slope=found.slope)
            if data_free.reached.beyond > found.reached.beyond:
                again = search(full, None, known=data_free)
                if again.n_bytes <= found.n_bytes:
                    found, feedbacks = again, None
        self.decision = self._decided(work, criterion, found, feedbacks, data_free)
        return found.stored

    def _decided(
        self,
        work: _Work,
        criterion: OutputCriterion,
        found: Found,
        feedbacks: Feedbacks | None,
        data_free: Found | None,
    ) -> Decision:
        if work.calibration is None:
            return Decision("data-free", self._why, None)
        reason = f"on {work.calibration.split.n_inputs} inputs; for others {criterion.in_words(found.reached)}"
        if feedbacks is None:
            return Decision("data-free", f"{reason}, and no calibrated archive that was tried is smaller", None)
        if data_free is not None:
            reason += f"; at about this size and without data {criterion.in_words(data_free.reached)}"
        return Decision("calibrated", reason, None)

    def _kept(self, work: _Work, before: Score) -> Stored:
        """The smallest archive that keeps to the drop, found with little effort and written with all of it."""
        options, checkpoint, deadline = work.options, work.checkpoint, work.deadline
        assert options.max_drop is not None
        criterion = DropCriterion(Scored(self.task, checkpoint, before, options), options.max_drop)
        full = Trials(checkpoint, criterion, options, work.device)
        quick = replace(full, options=work.quick)
        why = self._why
        found: Found | None = None
        feedbacks: Feedbacks | None = None
        if work.calibration is not None:
            feedbacks = work.calibration.feedbacks(DAMPING)
            why = "no calibrated archive that was tried keeps to the drop"
            for bits in _BITS:
                with contextlib.suppress(TargetUnreachable):
                    trials = replace(quick, feedbacks=feedbacks)
                    found = coarsest(trials, work.progress, deadline, self.warnings, bits=bits)
                    break
        if work.calibration is None or found is None:
            found = coarsest(full, work.progress, deadline, self.warnings)
            self.decision = Decision("data-free", why, found.reached.validation)
            return found.stored
        at_size = sized(options, ratio=checkpoint.original_bytes / found.n_bytes)
        best, reason = self._best(replace(work, progress=None), at_size)
        if best is not feedbacks and not deadline.passed:
            most = 8 * found.n_bytes / checkpoint.n_params
            with contextlib.suppress(TargetUnreachable):  # nor does every set of examples agree with the outputs
                trials = replace(quick, feedbacks=best)
                bits = (_AGAIN * most, most)
                again = coarsest(trials, None, deadline, self.warnings, bits=bits, n_rounds=_AGAIN_ROUNDS)
                if again.n_bytes <= found.n_bytes:
                    found, feedbacks = again, best
        if options.effort > work.quick.effort and not deadline.passed:
            found = self._written_well(replace(full, feedbacks=feedbacks), found)
        self.decision = Decision("data-free" if feedbacks is None else "calibrated", reason, found.reached.validation)
        return found.stored

    def _written_well(self, trials: Trials, found: Found) -> Found:
        for share in _SHARES:
            try:
                again = trials.at(8 * share * found.n_bytes / trials.checkpoint.n_params)
            except TargetUnreachable:
                continue
            if again.reached.keeps:
                return again
        return found
