"""Packing with refinement: a task and a goal in, what the archive stores out.

`RefineEncoder` stands where the codec's own `encode` would: it finds the symbols, the codec writes them, and nothing
in the archive tells of it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wcompress.checkpoint import Checkpoint
from wcompress.codec.encoding import Encoded, Progress, encode
from wcompress.codec.given import GivenSymbols, archive_bytes, encode_given
from wcompress.codec.options import PackOptions
from wcompress.codec.reading import tensors_digest
from wcompress.codec.restoring import restore_encoded
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.evaluate import build_model
from wcompress.refine.distil import distance_of
from wcompress.refine.engine import RefineConfig, Refiner
from wcompress.refine.inputs import Inputs, blobs, tensors_of
from wcompress.refine.resume import load_state, save_state
from wcompress.refine.search import Candidate, Goal, RefineSearch
from wcompress.refine.variation import are_images
from wcompress.tasks import Task

DEFAULT_MAX_DROP = 0.5
"""Points, where refinement is asked for and no target is."""

_LIMIT_S = {1: 8.0, 2: 20.0, 3: 60.0, 4: 120.0, 5: 220.0, 6: 480.0, 7: 900.0, 8: 1800.0, 9: 3600.0}
_STEPS = {1: 300, 2: 1000, 3: 3000, 4: 6000, 5: 12000, 6: 24000, 7: 48000, 8: 96000, 9: 192000}
_BATCH = 128
_N_BLOBS = 20_000
_FEW_INPUTS = 10_000
"""Fewer than this are varied strongly."""
_PULL = 10.0
"""Where few inputs cannot be deformed as images are; a deformed image says enough, and a pull only costs bits."""
_FEW_STRENGTH = 0.6
"""λ at first where inputs are few: what goes too early for want of inputs does not come back."""
_PLAIN_RECURRENT: dict[str, Any] = {"lr": 0.04, "start_step": 1.5, "start_strength": 1.0, "clip": 2.0}
"""For recurrent layers without gates, which pass errors on through all time steps, so that gradients explode."""
_MEASURING_EFFORT = 2
_DATA_FREE_RATIO = 60.0
_DATA_FREE_BITS = (0.35, 8.0)
_DATA_FREE_ROUNDS = 6


class RefineEncoder:
    """Finds what to store by training on a task's inputs, or, with `refine="off"`, by its validation score alone.

    Args:
        task: builds the network, gives inputs, and validates.
        state_path: where to keep a checkpoint of long work; None for nowhere.
        resume: go on from the checkpoint that is there.
    """

    def __init__(self, task: Task, *, state_path: Path | None = None, resume: bool = False) -> None:
        self.task = task
        self._state_path = state_path
        self._resume = resume

    def __call__(self, checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None) -> Encoded:
        """What to store; see `wcompress.codec.encoding.encode`.

        Raises:
            TargetUnreachable: no archive that was found keeps to the goal.
            TaskError: the task fails, or does not fit the model.
            OptionError: there is nothing to resume.
        """
        before = self.task.validate(build_model(self.task, checkpoint.tensors))
        scored = _Scored(self.task, checkpoint, before, options)
        goal = _goal(checkpoint, options)
        if options.refine == "off":
            return _data_free(scored, goal, options, device, progress)
        search = self._search(scored, goal, options, device, progress)
        search.run()
        best = search.best()
        if best is not None:
            best = _written_well(scored, best, options)
        found = _against_data_free(scored, goal, best, options, device)
        if found is None:
            raise TargetUnreachable(_nearest(goal, search.nearest()))
        if self._state_path is not None:
            self._state_path.unlink(missing_ok=True)
        return found

    def _search(
        self, scored: _Scored, goal: Goal, options: PackOptions, device: str, progress: Progress | None
    ) -> RefineSearch:
        task = self.task
        generator = torch.Generator().manual_seed(options.seed)
        batches = list(task.calibration())
        shape = getattr(task, "input_shape", None)
        if not batches and shape is not None:
            batches = list(blobs(shape, _N_BLOBS, generator).split(1000))
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
            n_steps=_STEPS[options.effort],
            limit_s=_LIMIT_S[options.effort],
            fixed_bytes=_fixed_bytes(scored.checkpoint, refiner),
            progress=progress,
            save=None if path is None else lambda state: save_state(path, key, state),
        )
        if self._resume:
            if path is None:
                raise OptionError("resume: a dry run keeps no checkpoint; leave --dry-run out")
            search.restore(load_state(path, key))
        return search


class _Scored:
    """Measures archives of one model by a task."""

    def __init__(self, task: Task, checkpoint: Checkpoint, before: float, options: PackOptions) -> None:
        self.task, self.checkpoint, self.before = task, checkpoint, before
        self._effort, self._seed = min(options.effort, _MEASURING_EFFORT), options.seed

    def measure(self, given: GivenSymbols) -> tuple[Encoded, int, float]:
        """See `wcompress.refine.search.Measure`; quickly written."""
        encoded = encode_given(self.checkpoint, given, effort=self._effort, seed=self._seed)
        return encoded, archive_bytes(self.checkpoint, encoded), self.drop(encoded)

    def drop(self, encoded: Encoded) -> float:
        """Points lost on validation by what an archive restores to."""
        restored = restore_encoded(self.checkpoint, encoded)
        return self.before - self.task.validate(build_model(self.task, restored))


def _fixed_bytes(checkpoint: Checkpoint, refiner: Refiner) -> int:
    # Of an archive beside its symbols: what it takes when all of them are zero.
    given = refiner.weights.given({})
    nothing = {name: np.zeros_like(symbols) for name, symbols in given.symbols.items()}
    return archive_bytes(checkpoint, encode_given(checkpoint, replace(given, symbols=nothing), effort=1))


def _goal(checkpoint: Checkpoint, options: PackOptions) -> Goal:
    n_bytes = options.archive_bytes(checkpoint.original_bytes, checkpoint.n_params)
    if n_bytes is not None:
        return Goal(n_bytes=max(1, n_bytes))
    return Goal(max_drop=DEFAULT_MAX_DROP if options.max_drop is None else options.max_drop)


def _written_well(scored: _Scored, best: Candidate, options: PackOptions) -> Candidate:
    # With the effort asked for; the symbols are the same, and so is the score.
    encoded = encode_given(scored.checkpoint, best.given, effort=options.effort, seed=options.seed)
    n_bytes = archive_bytes(scored.checkpoint, encoded)
    return best if n_bytes >= best.n_bytes else replace(best, encoded=encoded, n_bytes=n_bytes)


def _against_data_free(
    scored: _Scored, goal: Goal, best: Candidate | None, options: PackOptions, device: str
) -> Encoded | None:
    """The refined archive, unless one made without data serves the goal better.

    Beyond a ratio of 60 none ever does, and none is tried.
    """
    checkpoint = scored.checkpoint
    if best is not None and checkpoint.original_bytes / best.n_bytes > _DATA_FREE_RATIO:
        return best.encoded
    plain = replace(options, max_drop=None, refine="off", resume=False, effort=min(options.effort, 2))
    try:
        if best is None and goal.max_drop is not None:
            return _data_free(scored, goal, options, device, None)
        n_bytes = goal.n_bytes or (best.n_bytes - 1 if best else 1)
        sized = replace(plain, sqnr=None, bits_per_weight=None, ratio=checkpoint.original_bytes / n_bytes)
        encoded = encode(checkpoint, sized, device, None)
    except TargetUnreachable:
        return None if best is None else best.encoded
    if best is None:
        return encoded
    wanted = best.drop if goal.max_drop is None else goal.allowed
    return encoded if scored.drop(encoded) < wanted else best.encoded


def _data_free(scored: _Scored, goal: Goal, options: PackOptions, device: str, progress: Progress | None) -> Encoded:
    """The coarsest quantisation that keeps to the drop, by halving between bits a weight.

    Raises:
        TargetUnreachable: not even the finest does.
    """
    plain = replace(options, max_drop=None, refine="off", resume=False)
    if goal.max_drop is None:
        return encode(scored.checkpoint, plain, device, progress)
    low, high = (math.log2(bits) for bits in _DATA_FREE_BITS)
    best: Encoded | None = None
    least = math.inf
    for number in range(_DATA_FREE_ROUNDS + 1):
        middle = high if number == 0 else (low + high) / 2
        try:
            encoded = encode(scored.checkpoint, replace(plain, bits_per_weight=2.0**middle), device, None)
        except TargetUnreachable:  # a small model's archive is never that small
            low = middle
            continue
        drop = scored.drop(encoded)
        least = min(least, drop)
        if progress is not None:
            progress(number + 1, _DATA_FREE_ROUNDS + 1, {"bits": 2.0**middle, "drop": drop})
        if drop <= goal.allowed:
            best, high = encoded, middle
        elif number == 0:
            break
        else:
            low = middle
    if best is None:
        raise TargetUnreachable(f"a drop of {goal.max_drop:g} points: {least:.2f} on validation is the nearest")
    return best


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
    told = f"{tensors_digest(checkpoint.tensors).hex()} {goal} {options.seed}"
    return hashlib.sha256(told.encode()).hexdigest()
