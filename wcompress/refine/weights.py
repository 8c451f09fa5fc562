"""The weights that refinement moves: whole numbers times a step for each tensor, with a real number behind each.

A tensor is `symbol · step`; the symbol is a latent real number, rounded. The model's own parameters always hold what
an archive would restore, so any architecture runs as it is; their gradients are passed straight through the rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wcompress.checkpoint import Checkpoint
from wcompress.codec.given import GivenSymbols
from wcompress.codec.kinds import VaeKinds
from wcompress.codec.plan import plan_tensors

_BIAS_STEP = 1.0
_QUARTERS = 4


@dataclass(frozen=True)
class Slot:
    """A coded tensor.

    Attributes:
        name: in the checkpoint.
        shape: of the tensor.
        targets: the model's tensors that hold it, several where weights are tied.
    """

    name: str
    shape: tuple[int, ...]
    targets: tuple[Tensor, ...]

    @property
    def numel(self) -> int:
        """Weights."""
        return math.prod(self.shape)


class LatentWeights:
    """All coded tensors of a model as one row of latents, and its other parameters beside them.

    Args:
        model: holds the checkpoint's weights; from now on it holds quantised ones.
        checkpoint: the same weights, with their ties.
        start_step: of tensors of two or more dimensions, in units of their root mean square.

    Attributes:
        slots: coded tensors, in the checkpoint's order.
        sizes: their weights.
        latents: float32 `[n_weights]`, in steps.
        log_steps: log₂ of each tensor's step, float32 `[n_slots]`.
        loose: parameters that are refined as they are, by name: norm gains and single numbers.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, *, start_step: float) -> None:
        self.slots, self.loose = _sort(model, checkpoint)
        self.sizes = [slot.numel for slot in self.slots]
        latents, log_steps = [], []
        for slot in self.slots:
            values = slot.targets[0].detach().float().reshape(-1)
            rms = float(values.square().mean().sqrt()) or 1.0
            log_steps.append(math.log2(rms * (start_step if len(slot.shape) > 1 else _BIAS_STEP)))
            latents.append(values / 2.0 ** log_steps[-1])
        device = self.slots[0].targets[0].device if self.slots else None
        self.latents = torch.cat(latents) if latents else torch.zeros(0)
        self.original = self.latents * 1.0
        self.log_steps = torch.tensor(log_steps, dtype=torch.float32, device=device)
        self.original_log_steps = self.log_steps.clone()
        for slot in self.slots:
            for target in slot.targets:
                target.requires_grad_(True)

    @property
    def n_weights(self) -> int:
        """Coded weights."""
        return self.latents.numel()

    def symbols(self) -> Tensor:
        """Whole numbers, float32 `[n_weights]`."""
        return self.latents.round()

    def steps(self) -> list[float]:
        """Of each tensor, as an archive restores it once they are on the grid."""
        return [2.0 ** float(value) for value in self.log_steps]

    def write(self, symbols: Tensor) -> None:
        """Puts quantised weights into the model."""
        with torch.no_grad():
            for slot, part, step in zip(self.slots, symbols.split(self.sizes), self.steps(), strict=True):
                for target in slot.targets:
                    target.copy_((part * step).view(slot.shape))

    def gradient(self) -> Tensor:
        """Of the loss with respect to each latent, passed straight through the rounding, float32 `[n_weights]`."""
        parts = []
        for slot, step in zip(self.slots, self.steps(), strict=True):
            found = [target.grad.reshape(-1).float() for target in slot.targets if target.grad is not None]
            parts.append(
                sum(found[1:], found[0]) * step if found else torch.zeros(slot.numel, device=self.latents.device)
            )
        return torch.cat(parts)

    def clear_gradients(self) -> None:
        """Before the next backward pass."""
        for slot in self.slots:
            for target in slot.targets:
                target.grad = None
        for value in self.loose.values():
            value.grad = None

    def snap_steps(self) -> None:
        """Moves the steps to the grid that an archive has: quarter octaves from the first tensor's."""
        if not len(self.log_steps):
            return
        base = self.log_steps[0].clone()
        self.log_steps = base + ((self.log_steps - base) * _QUARTERS).round() / _QUARTERS

    def given(self, fine: dict[str, Tensor]) -> GivenSymbols:
        """The symbols as the codec takes them; the steps are on the grid.

        Args:
            fine: values of float tensors that are not coded, by name.
        """
        if not self.slots:
            return GivenSymbols(1.0, {}, {}, fine)
        base = float(self.log_steps[0])
        symbols, exponents = {}, {}
        for slot, part, log_step in zip(self.slots, self.symbols().split(self.sizes), self.log_steps, strict=True):
            symbols[slot.name] = part.view(slot.shape).cpu().numpy().astype(np.int32)
            exponents[slot.name] = round(_QUARTERS * (float(log_step) - base))
        return GivenSymbols(2.0**base, symbols, exponents, fine)

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        loose = {name: value.detach().clone() for name, value in self.loose.items()}
        return {"latents": self.latents.clone(), "log_steps": self.log_steps.clone(), "loose": loose}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a `state`."""
        self.latents = state["latents"].to(self.latents.device).clone()
        self.log_steps = state["log_steps"].to(self.latents.device).clone()
        with torch.no_grad():
            for name, value in state["loose"].items():
                self.loose[name].copy_(value)


def _sort(model: nn.Module, checkpoint: Checkpoint) -> tuple[list[Slot], dict[str, Tensor]]:
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    followers: dict[str, list[str]] = {}
    for name, owner in checkpoint.ties.items():
        followers.setdefault(owner, []).append(name)
    slots: list[Slot] = []
    loose: dict[str, Tensor] = {}
    for entry in plan_tensors(checkpoint, VaeKinds(checkpoint)).entries:
        name = entry.name
        if entry.kind not in ("coded", "fine") or name not in held or not entry.numel:
            continue
        if len(entry.shape) > 1 or (name in parameters and entry.shape and _may_vanish(name, checkpoint.tensors[name])):
            names = [name, *followers.get(name, [])]
            targets = {id(held[n]): held[n] for n in names if n in held}
            slots.append(Slot(name, entry.shape, tuple(targets.values())))
        elif name in parameters:
            loose[name] = parameters[name]
    return slots, loose


def _may_vanish(name: str, tensor: Tensor) -> bool:
    # A bias may well become zero; a norm's gain, which is about one, may not.
    if "bias" in name.rsplit(".", 1)[-1]:
        return True
    values = tensor.double()
    return float(values.mean().abs()) <= 0.5 * float(values.square().mean().sqrt()) + 1e-12
