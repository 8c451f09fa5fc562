"""Packing with refinement: a task and a goal in, what the archive stores out.

`RefineEncoder` stands where the codec's own `encode` would: it finds the symbols, the codec writes them, and nothing
in the archive tells of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wcompress.checkpoint import Checkpoint
from wcompress.codec.digest import tensors_digest
from wcompress.codec.encoding import encode
from wcompress.codec.given import archive_bytes, encode_given
from wcompress.codec.options import PackOptions
from wcompress.codec.trying import Stored
from wcompress.deadline import Deadline
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.evaluate import build_model
from wcompress.progress import Progress
from wcompress.refine.budget import n_steps
from wcompress.refine.coarsest import Trials, coarsest, sized
from wcompress.refine.distil import distance_of
from wcompress.refine.engine import RefineConfig, Refiner
from wcompress.refine.inputs import Inputs, blobs, tensors_of, understood
from wcompress.refine.margin import Validation
from wcompress.refine.resume import load_state, save_state
from wcompress.refine.scored import Decision, DropCriterion, Scored
from wcompress.refine.search import Candidate, Goal, RefineSearch
from wcompress.refine.variation import are_images
from wcompress.tasks import Batch, Score, Task, seeded

DEFAULT_MAX_DROP = 0.5
"""Points, where refinement is asked for and no target is."""

_BATCH = 128
_N_BLOBS = 20_000
_FEW_INPUTS = 10_000
"""Fewer than this are varied strongly."""
_PULL = 10.0
"""Where few inputs cannot be deformed as images are; a deformed image says enough, and a pull only costs bits."""
_FEW_STRENGTH = 0.6
"""λ at first where inputs are few: what goes too early for want of inputs does not come back."""
_PLAIN_RECURRENT: dict[str, Any] = {"lr": 0.04, "start_step": 1.5, "start_strength": 0.65, "clip": 2.0}
"""For recurrent layers without gates, which pass errors on through all time steps, so that gradients explode; what goes
too early does not come back."""
_DATA_FREE_RATIO = 60.0


class RefineEncoder:
    """Finds what to store by training on a task's inputs.

    Args:
        task: builds the network, gives inputs, and validates.
        before: the original's score on validation.
        state_path: where to keep a checkpoint of long work; None for nowhere.
        resume: go on from the checkpoint that is there.

    Attributes:
        decision: set once the work is done.
        warnings: one line each, of what a time limit cut.
    """

    def __init__(self, task: Task, before: Score, *, state_path: Path | None = None, resume: bool = False) -> None:
        self.task = task
        self.decision: Decision | None = None
        self.warnings: list[str] = []
        self._before = before
        self._state_path = state_path
        self._resume = resume

    def __call__(self, checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None) -> Stored:
        """What to store; see `wcompress.codec.encoding.encode`.

        Raises:
            TargetUnreachable: no archive that was found keeps to the goal.
            TaskError: the task fails, or does not fit the model.
            OptionError: there is nothing to resume.
        """
        deadline = Deadline(options.time_limit)
        scored = Scored(self.task, checkpoint, self._before, options)
        goal = goal_of(checkpoint, options)
        with seeded(options.seed):
            search = self._search(scored, goal, options, device, progress, deadline)
            search.run()
        if search.was_cut:
            self.warnings.append(
                f"the time limit of {deadline.limit_s:g} s ended refinement after {search.at.done:,} of"
                f" {search.n_steps:,} training steps; results depend on the machine's speed"
            )
        best = search.best()
        if best is not None:
            best = _written_well(scored, best, options)
        encoded = self._against_data_free(scored, goal, best, search, options, device, deadline)
        if self._state_path is not None:
            self._state_path.unlink(missing_ok=True)
        return encoded

    def likeness(self, _restored: Mapping[str, Tensor]) -> tuple[float | None, float | None]:
        """Output SNR and KL divergence for inputs that the archive does not go by; unknown, since scores count."""
        return None, None

    def _batches(self, checkpoint: Checkpoint, options: PackOptions) -> list[Batch]:
        model = build_model(self.task, checkpoint.tensors).float()
        batches = list(understood(model, self.task.calibration()))
        shape = getattr(self.task, "input_shape", None)
        if not batches and shape is not None:
            generator = torch.Generator().manual_seed(options.seed)
            batches = list(blobs(shape, _N_BLOBS, generator).split(1000))
        return batches

    def _search(
        self,
        scored: Scored,
        goal: Goal,
        options: PackOptions,
        device: str,
        progress: Progress | None,
        deadline: Deadline,
    ) -> RefineSearch:
        task = self.task
        batches = self._batches(scored.checkpoint, options)
        n_inputs = sum(len(tensors_of(batch)[0]) for batch in batches)
        plain_recurrent = any(isinstance(module, nn.RNN) for module in task.build().modules())
        few = n_inputs < _FEW_INPUTS
        augment = getattr(task, "augment", None)
        inputs = Inputs(
            batches,
            batch_size=_BATCH,
            augment=augment,
            max_shift=0 if plain_recurrent and not few else 1,
            few=few,
            seed=options.seed,
        )
        pulls = few and augment is None and not are_images(batches[0])
        config = RefineConfig(pull=_PULL if pulls else 0.0, seed=options.seed)
        if plain_recurrent:
            config = replace(config, **_PLAIN_RECURRENT)
        if few:
            config = replace(config, start_strength=_FEW_STRENGTH)
        refiner = Refiner(task, scored.checkpoint, inputs, distance_of(task), config, device)
        if not refiner.weights.slots:
            raise OptionError("refine: the model has no weights to refine; use --refine off")
        path = self._state_path
        key = _fingerprint(scored.checkpoint, goal, options)
        search = RefineSearch(
            refiner,
            goal,
            scored.measure,
            n_steps=n_steps(options.effort, refiner.step_cost()),
            deadline=deadline,
            fixed_bytes=_fixed_bytes(scored.checkpoint, refiner),
            progress=progress,
            save=None if path is None else lambda state: save_state(path, key, state),
        )
        if self._resume:
            if path is None:
                raise OptionError("resume: a dry run keeps no checkpoint; leave --dry-run out")
            search.restore(load_state(path, key))
        return search

    def _against_data_free(
        self,
        scored: Scored,
        goal: Goal,
        best: Candidate | None,
        search: RefineSearch,
        options: PackOptions,
        device: str,
        deadline: Deadline,
    ) -> Stored:
        """The refined archive, unless one made without data serves the goal better.

        Beyond a ratio of 60 none ever does, and none is tried.

        Raises:
            TargetUnreachable: neither keeps to the goal.
        """
        checkpoint = scored.checkpoint
        if best is not None and checkpoint.original_bytes / best.n_bytes > _DATA_FREE_RATIO:
            reason = f"its ratio is above {_DATA_FREE_RATIO:g}, where packing without data is never better"
            self.decision = Decision("refined", reason, best.validation)
            return best.encoded
        try:
            encoded: Stored
            validation: Validation | None
            if best is None and goal.max_drop is not None:
                criterion = DropCriterion(scored, goal.max_drop)
                found = coarsest(Trials(checkpoint, criterion, options, device), None, deadline, self.warnings)
                encoded, validation = found.stored, found.reached.validation
            else:
                n_bytes = goal.n_bytes or (best.n_bytes - 1 if best else 1)
                at_size = encode(checkpoint, sized(options, ratio=checkpoint.original_bytes / n_bytes), device, None)
                encoded, validation = at_size, scored.restored_validation(at_size)
        except TargetUnreachable:
            if best is None:
                raise TargetUnreachable(_nearest(goal, search.nearest())) from None
            reason = f"packing without data does not come to {n_bytes:,} bytes"
            self.decision = Decision("refined", reason, best.validation)
            return best.encoded
        if best is None:
            self.decision = Decision("data-free", "no refined candidate kept to the goal", validation)
            return encoded
        assert validation is not None
        lost = f"{validation.drop:.2f} {scored.unit} on validation against {best.drop:.2f}"
        if goal.max_drop is None:
            better = validation.drop < best.drop
            reason = f"at the same size packing without data loses {lost}"
        else:
            better = validation.keeps(goal.max_drop)
            reason = f"just below {best.n_bytes:,} bytes packing without data loses {lost}"
        chosen = Decision("data-free" if better else "refined", reason, validation if better else best.validation)
        self.decision = chosen
        return encoded if better else best.encoded


def try_inputs(task: Task, checkpoint: Checkpoint) -> None:
    """Runs the original model on the task's first batch of inputs, so that what fails there fails at once.

    Raises:
        TaskError: the weights do not fit the task's network, or the task or the network fails.
    """
    model = build_model(task, checkpoint.tensors).float()
    next(understood(model, task.calibration()), None)


def _fixed_bytes(checkpoint: Checkpoint, refiner: Refiner) -> int:
    # Of an archive beside its symbols: what it takes when all of them are zero.
    given = refiner.weights.given({})
    nothing = {name: np.zeros_like(symbols) for name, symbols in given.symbols.items()}
    return archive_bytes(checkpoint, encode_given(checkpoint, replace(given, symbols=nothing), effort=1))


def goal_of(checkpoint: Checkpoint, options: PackOptions) -> Goal:
    """What the options ask of refinement: a size, or a drop, by default of `DEFAULT_MAX_DROP`."""
    n_bytes = options.archive_bytes(checkpoint.original_bytes, checkpoint.n_params)
    if n_bytes is not None:
        return Goal(n_bytes=max(1, n_bytes))
    return Goal(max_drop=DEFAULT_MAX_DROP if options.max_drop is None else options.max_drop)


def _written_well(scored: Scored, best: Candidate, options: PackOptions) -> Candidate:
    # With the effort asked for; the symbols are the same, and so is the score.
    encoded = encode_given(scored.checkpoint, best.given, effort=options.effort, seed=options.seed)
    n_bytes = archive_bytes(scored.checkpoint, encoded)
    return best if n_bytes >= best.n_bytes else replace(best, encoded=encoded, n_bytes=n_bytes)


def _nearest(goal: Goal, nearest: Candidate | None) -> str:
    wanted = f"{goal.n_bytes} bytes" if goal.max_drop is None else f"a drop of {goal.max_drop:g} points"
    if nearest is None:
        return f"{wanted}: nothing was found; allow more, or raise --effort"
    return (
        f"{wanted}: {nearest.n_bytes} bytes with a drop of {nearest.drop:.2f} points on validation is the nearest; "
        f"allow more, or raise --effort"
    )


def _fingerprint(checkpoint: Checkpoint, goal: Goal, options: PackOptions) -> str:
    # Of what must be the same for a checkpoint to be gone on from.
    told = f"2 {tensors_digest(checkpoint.tensors).hex()} {goal} {options.seed}"
    return hashlib.sha256(told.encode()).hexdigest()
