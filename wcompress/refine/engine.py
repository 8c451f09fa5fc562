"""Distilling while quantising: steps of gradient descent on distance plus the bits that the symbols take.

The loss is the distance of the outputs to the original model's, plus λ times the mean bits of a weight. The bits are
read from a `RateModel`, linearly between whole numbers, so that every latent is pulled towards zero as hard as zero
would save; the distance's gradient passes straight through the rounding. Steps follow both.

Source: entropy-penalised reparameterisation as in Oktay et al., arXiv 1906.06624, with learned steps (LSQ) as in Esser
et al., arXiv 1902.08153.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wcompress.checkpoint import Checkpoint
from wcompress.codec.given import GivenSymbols
from wcompress.errors import TaskError
from wcompress.evaluate import build_model
from wcompress.refine.budget import step_cost
from wcompress.refine.distil import Distance
from wcompress.refine.inputs import Inputs, call, mapped, taken, tensors_of
from wcompress.refine.rate import ActivityRates, RateModel, total_bits
from wcompress.refine.weights import LatentWeights
from wcompress.tasks import Task, seed_all
from wcompress.tasks.protocol import Batch

_BETA_1, _BETA_2, _EPS = 0.9, 0.99, 1e-10
_NORMS = (nn.modules.batchnorm._BatchNorm,)
_STATISTICS_BATCHES = 20
_LOOSE_LR = 1e-3
_MAX_LATENT = 127.0
_MAX_ANSWER_BYTES = 1 << 28


@dataclass(frozen=True)
class RefineConfig:
    """How a model is refined.

    Attributes:
        lr: how far Adam moves a latent at most in a step of training, in quantisation steps.
        step_lr: the same of the logarithm of a step, in octaves.
        start_step: quantisation step of a tensor at first, in its weights' root mean square.
        start_strength: λ of the first cycle.
        keep_weights: as a step moves, its weights stay and their symbols follow; else the symbols stay.
        refresh: training steps between fits of the rate model.
        clip: how long the distance's gradient may be, in its usual length; 0 for however long.
        pull: what half the mean square of the latents' ways from the original weights costs, in steps; 0 with enough
            data.
        seed: of the order of the inputs, and of what the task's own code draws.
    """

    lr: float = 0.05
    step_lr: float = 0.003
    start_step: float = 2.5
    start_strength: float = 1.2
    keep_weights: bool = False
    refresh: int = 20
    clip: float = 0.0
    pull: float = 0.0
    seed: int = 0


class Refiner:
    """A model on its way to becoming small.

    Args:
        task: builds the network.
        checkpoint: the trained weights.
        inputs: what to distil on.
        distance: of a batch of outputs to the original's.
        config: how.
        device: a torch device name.
        rate_model: estimates bits; by default from the activity of rows and columns.

    Raises:
        TaskError: the weights do not fit the task's network, or it fails on its inputs.
    """

    def __init__(
        self,
        task: Task,
        checkpoint: Checkpoint,
        inputs: Inputs,
        distance: Distance,
        config: RefineConfig,
        device: str = "cpu",
        rate_model: Callable[[list[tuple[int, ...]]], RateModel] = ActivityRates,
    ) -> None:
        self.inputs, self.config, self._distance, self._device = inputs, config, distance, torch.device(device)
        # In float32 whatever the checkpoint's type: symbols times steps are rounded to it when they are restored.
        self.original = _quiet(build_model(task, checkpoint.tensors).float().to(device))
        self.model = _quiet(copy.deepcopy(self.original))
        for parameter in [*self.original.parameters(), *self.model.parameters()]:
            parameter.requires_grad_(False)
        self._checkpoint = checkpoint
        self.weights = LatentWeights(self.model, checkpoint, start_step=config.start_step)
        for value in self.weights.loose.values():
            value.requires_grad_(True)
        self._norms = [m for m in self.model.modules() if isinstance(m, _NORMS) and m.track_running_stats]
        self._rate_model = rate_model([slot.shape for slot in self.weights.slots])
        self.n_steps = 0
        self._moments = [torch.zeros_like(self.weights.latents) for _ in range(2)]
        self._step_moments = [torch.zeros_like(self.weights.log_steps) for _ in range(2)]
        self._loose_optimizer = (
            torch.optim.Adam(self.weights.loose.values(), lr=_LOOSE_LR) if self.weights.loose else None
        )
        sizes = torch.tensor(self.weights.sizes, dtype=torch.int64, device=self._device)
        self._owner = torch.repeat_interleave(torch.arange(len(sizes), device=self._device), sizes)
        self._slopes: tuple[Tensor, Tensor, Tensor] | None = None
        self.distance_ema = math.nan
        self._usual_length = 0.0
        self._answers: Tensor | None = None
        self._may_remember = True

    def step(self, strength: float, lr: float, *, move_steps: bool = True) -> float:
        """One step of training.

        Args:
            strength: λ, what a bit a weight costs, in units of the distance.
            lr: factor of the configuration's rates, from 0 to 1.
            move_steps: whether quantisation steps move too.

        Returns:
            The distance on this batch.

        Raises:
            TaskError: the model or the distance fails.
        """
        # Whatever the task's code draws from the global generators depends on the seed and the step alone.
        seed_all(self.config.seed + self.n_steps)
        weights = self.weights
        symbols = weights.symbols()
        weights.write(symbols)
        if self._slopes is None or self.n_steps % self.config.refresh == 0:
            self._fit(symbols)
        distance = self._backward()
        gradient = self._clipped(weights.gradient())
        latents = weights.latents
        pull = (strength / max(1, weights.n_weights)) * self._slope(latents)
        if self.config.keep_weights:
            of_steps = (gradient * (symbols - latents) - pull * latents.abs()) * math.log(2)
        else:
            of_steps = gradient * symbols * math.log(2)
        gradient.add_(torch.sign(latents) * pull)
        if self.config.pull:
            gradient.add_(latents - self._anchor(), alpha=self.config.pull / max(1, weights.n_weights))
        self.n_steps += 1
        latents.sub_(_adam(self._moments, gradient, self.n_steps), alpha=lr * self.config.lr)
        latents.clamp_(-_MAX_LATENT, _MAX_LATENT)
        if move_steps and len(weights.sizes):
            per_tensor = torch.zeros_like(weights.log_steps).index_add_(0, self._owner, of_steps)
            moved = lr * self.config.step_lr * _adam(self._step_moments, per_tensor, self.n_steps)
            weights.log_steps = weights.log_steps - moved
            if self.config.keep_weights:
                latents.mul_(torch.exp2(moved)[self._owner])
        if self._loose_optimizer is not None:
            for group in self._loose_optimizer.param_groups:
                group["lr"] = _LOOSE_LR * lr
            self._loose_optimizer.step()
        self.distance_ema = distance if math.isnan(self.distance_ema) else 0.98 * self.distance_ema + 0.02 * distance
        return distance

    def step_cost(self) -> float:
        """About what a step takes, in multiply-adds; see `wcompress.refine.budget`."""
        return step_cost(self.model, self._placed(self.inputs.plain(1)[0]), self.weights.n_weights)

    def n_bits(self) -> float:
        """Bits of all symbols as the rate model sees them now."""
        symbols = self.weights.symbols()
        return total_bits(self._rate_model.fit(symbols), symbols, self.weights.sizes)

    @torch.no_grad()
    def held_out_distance(self) -> float:
        """Mean distance on inputs that are never trained on; nan where none are held out."""
        self.weights.write(self.weights.symbols())
        found = [float(self._compare(batch)) for batch in self.inputs.held_out]
        return sum(found) / len(found) if found else math.nan

    def settle(self) -> GivenSymbols:
        """The model as it would be stored now: steps on their grid, the norms' statistics measured again."""
        self.weights.snap_steps()
        self.weights.write(self.weights.symbols())
        self._measure_statistics()
        fine = {name: value.detach().clone() for name, value in self.weights.loose.items()}
        if self._norms:
            coded = {slot.name for slot in self.weights.slots}
            for name, value in self.model.state_dict().items():
                if value.is_floating_point() and name not in coded:
                    fine[name] = value.detach().clone()
        kept = self._checkpoint.tensors
        moved = {name: value.cpu().to(kept[name].dtype) for name, value in fine.items() if name in kept}
        return self.weights.given(moved)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on as if nothing had been in between."""
        return {
            "weights": self.weights.state(),
            "moments": [m.clone() for m in self._moments],
            "step_moments": [m.clone() for m in self._step_moments],
            "slopes": None if self._slopes is None else [slope.clone() for slope in self._slopes],
            "loose_optimizer": None if self._loose_optimizer is None else self._loose_optimizer.state_dict(),
            "n_steps": self.n_steps,
            "usual_length": self._usual_length,
            "inputs": self.inputs.state(),
            "buffers": {name: value.clone() for name, value in self.model.named_buffers()} if self._norms else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a `state`."""
        self.weights.restore(state["weights"])
        self._moments = [m.to(self._device).clone() for m in state["moments"]]
        self._step_moments = [m.to(self._device).clone() for m in state["step_moments"]]
        self.n_steps = int(state["n_steps"])
        self._usual_length = float(state["usual_length"])
        self.inputs.restore(state["inputs"])
        for name, value in self.model.named_buffers():
            if name in state["buffers"]:
                value.copy_(state["buffers"][name])
        slopes = state["slopes"]
        self._slopes = None if slopes is None else tuple(slope.to(self._device) for slope in slopes)
        if self._loose_optimizer is not None:
            self._loose_optimizer.load_state_dict(state["loose_optimizer"])

    def _clipped(self, gradient: Tensor) -> Tensor:
        if not self.config.clip:
            return gradient
        length = float(gradient.norm())
        if not math.isfinite(length):
            return torch.zeros_like(gradient)
        if self._usual_length and length > self.config.clip * self._usual_length:
            gradient.mul_(self.config.clip * self._usual_length / length)
            length = self.config.clip * self._usual_length
        self._usual_length = length if not self._usual_length else 0.98 * self._usual_length + 0.02 * length
        return gradient

    def _fit(self, symbols: Tensor) -> None:
        rates = self._rate_model.fit(symbols)
        # Never pushed away from zero: where most are not zero, zeros are dear, and would never come about.
        first = (rates.nonzero - rates.zero + rates.further[self._owner, 0]).clamp(min=1.0)
        second = (rates.further[:, 1] - rates.further[:, 0]).clamp(min=0.5)[self._owner]
        third = (rates.further[:, 2] - rates.further[:, 1]).clamp(min=0.5)[self._owner]
        self._slopes = (first, second, third)

    def _slope(self, latents: Tensor) -> Tensor:
        # Bits that one more unit of magnitude takes, for each weight.
        assert self._slopes is not None
        first, second, third = self._slopes
        magnitude = latents.abs()
        return torch.where(magnitude < 1, first, torch.where(magnitude < 2, second, third))

    def _anchor(self) -> Tensor:
        moved = torch.exp2(self.weights.original_log_steps - self.weights.log_steps)
        return self.weights.original * moved[self._owner]

    def _backward(self) -> float:
        batch = self._placed(self.inputs.draw())
        self.weights.clear_gradients()
        loss = self._compare(batch, self.inputs.drawn)
        try:
            loss.backward()
        except RuntimeError as error:
            raise TaskError(f"refining: the model cannot be trained ({error}); use --refine off") from error
        return float(loss.detach())

    @torch.no_grad()
    def _wanted(self, batch: Batch, drawn: Tensor | None) -> Any:
        # Of inputs that come again as they are, the original's outputs are computed once.
        if drawn is not None and self._may_remember:
            if self._answers is None:
                self._answers = self._all_answers(len(drawn))
                self._may_remember = self._answers is not None
            if self._answers is not None:
                return self._answers[drawn.to(self._device)]
        return call(self.original, batch)

    def _all_answers(self, n: int) -> Tensor | None:
        pool = self.inputs.pool
        if pool is None:
            return None
        n_inputs = len(tensors_of(pool)[0])
        parts: list[Tensor] = []
        for numbers in torch.arange(n_inputs).split(n):
            found = call(self.original, self._placed(taken(pool, numbers)))
            # One row for each input, or it is not known which part of an output belongs to which.
            if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != len(numbers):
                return None
            if found.numel() // len(found) * found.element_size() * n_inputs > _MAX_ANSWER_BYTES:
                return None
            parts.append(found)
        return torch.cat(parts)

    def _compare(self, batch: Batch, drawn: Tensor | None = None) -> Tensor:
        batch = self._placed(batch)
        try:
            wanted = self._wanted(batch, drawn)
            for norm in self._norms:
                norm.train(torch.is_grad_enabled())
            loss = self._distance(wanted, call(self.model, batch))
        except TaskError:
            raise
        except Exception as error:
            detail = " ".join(f"{type(error).__name__}: {error}".split())
            raise TaskError(f"refining: the model fails on the task's calibration inputs ({detail:.300})") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TaskError("refining: the task's distance should give one number, a tensor that can be differentiated")
        return loss.reshape(())

    @torch.no_grad()
    def _measure_statistics(self) -> None:
        if not self._norms:
            return
        momenta = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        for batch in self.inputs.plain(_STATISTICS_BATCHES):
            call(self.model, self._placed(batch))
        for norm, momentum in zip(self._norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

    def _placed(self, batch: Batch) -> Batch:
        return mapped(batch, lambda t: t.to(self._device, torch.float32 if t.is_floating_point() else t.dtype))


def _adam(moments: list[Tensor], gradient: Tensor, n_steps: int) -> Tensor:
    # The direction of Adam's step, about one in size.
    first, second = moments
    first.lerp_(gradient, 1 - _BETA_1)
    second.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
    scale = (second / (1 - _BETA_2**n_steps)).sqrt_().add_(_EPS)
    return first / scale / (1 - _BETA_1**n_steps)


def _quiet(model: nn.Module) -> nn.Module:
    # In eval mode; recurrent layers in training mode without dropout, since cuDNN differentiates them in no other.
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
            module.train()
    return model
