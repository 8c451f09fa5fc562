"""What a model is refined on: a task's calibration inputs, or synthetic ones, in batches of a size of our own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wcompress.errors import TaskError
from wcompress.refine.variation import varied
from wcompress.tasks.protocol import Batch

_HELD_OUT_SHARE, _MAX_HELD_OUT = 10, 1000
_MAX_INPUT_BYTES = 1 << 31


class Inputs:
    """A pool of inputs, a part of it held out.

    Args:
        batches: as a task's `calibration` gives them.
        batch_size: of the batches to draw, where inputs are all of one shape; others stay as they come.
        augment: changes a batch at random; None for what its shape suggests, see `varied`.
        max_shift: pixels that images are moved by at most, where `augment` is None.
        few: vary inputs more, where `augment` is None.
        held_out_share: one input in so many is held out.
        seed: of the order.

    Attributes:
        held_out: batches that are never drawn, 1,000 inputs at most.
        n_inputs: inputs that are drawn from.
        drawn: which inputs of `pool` the last batch was made of; None where inputs are varied, or have no pool.

    Raises:
        TaskError: there are no inputs.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        batch_size: int,
        augment: Callable[[Batch, torch.Generator], Batch] | None = None,
        max_shift: int = 1,
        few: bool = False,
        held_out_share: int = _HELD_OUT_SHARE,
        seed: int = 0,
    ) -> None:
        found = list(batches)
        if not found:
            raise TaskError("calibration() gave no batches; refining needs inputs, or a task that names an input_shape")
        self.generator = torch.Generator().manual_seed(seed)
        self._augment = augment
        self._max_shift, self._few = max_shift, few
        self._pool = _joined(found)
        self._batch_size = batch_size
        if self._pool is not None:
            n = len(tensors_of(self._pool)[0])
            n_held = min(_MAX_HELD_OUT, n // held_out_share)
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
            self.n_inputs = n - n_held
            self.held_out: list[Batch] = [taken(self._pool, part) for part in order[:n_held].split(batch_size)]
            self._chosen = order[n_held:]
        else:
            n_held = max(1, len(found) // held_out_share) if len(found) > 1 else 0
            self.held_out = found[len(found) - n_held :]
            self._ragged = found[: len(found) - n_held]
            self.n_inputs = sum(len(tensors_of(batch)[0]) for batch in self._ragged)
        self._order = torch.zeros(0, dtype=torch.int64)
        self.drawn: Tensor | None = None

    @property
    def pool(self) -> Batch | None:
        """All inputs, those held out among them, as one batch; None where they differ in shape."""
        return self._pool

    def draw(self) -> Batch:
        """The next batch, varied; every input once before any comes again."""
        if self._pool is None:
            if not len(self._order):
                self._order = torch.randperm(len(self._ragged), generator=self.generator)
            batch, self._order = self._ragged[int(self._order[0])], self._order[1:]
        else:
            size = min(self._batch_size, self.n_inputs)
            if len(self._order) < size:
                self._order = torch.randperm(self.n_inputs, generator=self.generator)
            self.drawn, self._order = self._chosen[self._order[:size]], self._order[size:]
            batch = taken(self._pool, self.drawn)
        if self._augment is not None:
            self.drawn = None
            return self._augment(batch, self.generator)
        changed = varied(batch, self.generator, self._max_shift, few=self._few)
        if changed is not batch:
            self.drawn = None
        return changed

    def plain(self, n_batches: int) -> list[Batch]:
        """The first batches as they are, for statistics."""
        if self._pool is None:
            return self._ragged[:n_batches]
        return [taken(self._pool, part) for part in self._chosen.split(self._batch_size)[:n_batches]]

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"generator": self.generator.get_state(), "order": self._order}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where a `state` was taken."""
        self.generator.set_state(state["generator"])
        self._order = state["order"]


def blobs(shape: Sequence[int], n: int, generator: torch.Generator) -> Tensor:
    """Synthetic inputs: coarse noise, smoothly enlarged, through a sigmoid.

    Args:
        shape: of one input; its last two dimensions are enlarged, or its last, where there is but one.
        n: how many.
        generator: of the noise.

    Returns:
        float32 `[n, *shape]` in (0, 1).
    """
    sides = list(shape[-2:]) if len(shape) > 1 else [1, *shape]
    n_channels = 1
    for size in shape[:-2]:
        n_channels *= size
    coarse = [max(2, side // 4) if side > 1 else 1 for side in sides]
    noise = torch.randn(n, n_channels, *coarse, generator=generator)
    strength = 2 + 6 * torch.rand(n, 1, 1, 1, generator=generator)
    offset = 2 * torch.randn(n, 1, 1, 1, generator=generator) - 2
    smooth = functional.interpolate(noise, size=tuple(sides), mode="bicubic", align_corners=False)
    return torch.sigmoid(strength * smooth + offset).reshape(n, *shape)


def call(model: nn.Module, batch: Batch) -> Any:
    """Runs a model on a batch, by the batch's type."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def understood(model: nn.Module, batches: Iterable[Any]) -> Iterator[Batch]:
    """Batches as the model takes them, up to 2 GiB; the first one is tried.

    A loader often gives labels beside the inputs. Where the model does not take a batch as it is, the first entry of a
    tuple or list alone is tried, or of a dict or another mapping the entries that the model's `forward` names.

    Args:
        model: in eval mode, on the CPU.
        batches: as a task's `calibration` gives them.

    Raises:
        TaskError: a batch is of another kind, or the model takes it neither way.
    """
    reduce: Callable[[Any], Any] | None = None
    n_bytes = 0
    for number, given in enumerate(batches):
        # Tokenizers give mappings that are no dicts.
        batch = dict(given) if isinstance(given, Mapping) else given
        if reduce is None:
            reduce = _reduction(model, batch)
        try:
            reduced = reduce(batch)
        except (LookupError, TypeError):
            reduced = batch
        _check_batch(reduced, number)
        yield reduced
        n_bytes += sum(t.numel() * t.element_size() for t in tensors_of(reduced))
        if n_bytes > _MAX_INPUT_BYTES:
            return


def _reduction(model: nn.Module, batch: Any) -> Callable[[Any], Any]:
    taken_by_name = _names_of(model)
    ways: list[Callable[[Any], Any]] = [lambda b: b]
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        ways = [lambda b: b[0]]
    elif isinstance(batch, (tuple, list)) and batch:
        ways.append(lambda b: b[0])
    elif isinstance(batch, dict) and taken_by_name & set(batch):
        ways.append(lambda b: {name: value for name, value in b.items() if name in taken_by_name})
    errors: list[str] = []
    for way in ways:
        reduced = way(batch)
        try:
            _check_batch(reduced, 0)
            with torch.no_grad():
                call(model, mapped(reduced, lambda t: t.float() if t.is_floating_point() else t))
            return way
        except TaskError as error:
            errors.append(str(error))
        except Exception as error:
            detail = " ".join(f"{type(error).__name__}: {error}".split())
            errors.append(f"calibration(): the model fails on the first batch, {_described(reduced)} ({detail:.200})")
    # The last way is the likeliest to be meant, unless it is no tensor at all.
    raise TaskError(errors[-1] + "; give inputs as model(x), model(*x) or model(**x) takes them")


def _names_of(model: nn.Module) -> set[str]:
    try:
        return set(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return set()


def _check_batch(batch: Any, number: int) -> None:
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else [batch]
    wrong = [part for part in parts if not isinstance(part, Tensor)]
    if wrong or not len(parts):
        got = f"a {type(wrong[0]).__name__}" if wrong else "an empty one"
        raise TaskError(f"calibration(): batch {number} should be a tensor, or a tuple or dict of tensors, got {got}")
    if next(iter(parts)).ndim == 0:
        raise TaskError(f"calibration(): batch {number} has no dimension of examples")


def _described(batch: Batch) -> str:
    shapes = [str(tuple(t.shape)) for t in tensors_of(batch)]
    if isinstance(batch, dict):
        shapes = [f"{name} {shape}" for name, shape in zip(batch, shapes, strict=True)]
    return f"of shape {', '.join(shapes)}"


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


def mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with each tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: change(value) for name, value in batch.items()}
    return tuple(change(value) for value in batch)


def _joined(batches: list[Batch]) -> Batch | None:
    # One batch of all, where all are alike in structure and shape; None otherwise.
    first = batches[0]
    keys = list(first) if isinstance(first, dict) else None
    for batch in batches:
        if type(batch) is not type(first) or (keys is not None and list(batch) != keys):
            return None
    columns = list(zip(*(tensors_of(batch) for batch in batches), strict=False))
    if any(len(tensors_of(batch)) != len(columns) for batch in batches):
        return None
    for column in columns:
        if any(t.ndim == 0 or t.shape[1:] != column[0].shape[1:] or t.dtype != column[0].dtype for t in column):
            return None
    lengths = {tuple(len(t) for t in tensors_of(batch)) for batch in batches}
    if any(len(set(row)) != 1 for row in lengths):
        return None
    joined = [torch.cat(column) for column in columns]
    if isinstance(first, Tensor):
        return joined[0]
    if keys is not None:
        return dict(zip(keys, joined, strict=True))
    return tuple(joined)


def taken(batch: Batch, chosen: Tensor) -> Batch:
    """Some inputs of a batch, by their numbers."""
    return mapped(batch, lambda t: t[chosen])
