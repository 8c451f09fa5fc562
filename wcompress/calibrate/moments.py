"""Second moments of what weights are multiplied by, collected while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wcompress.refine.inputs import call
from wcompress.tasks.protocol import Batch

_MOST_POSITIONS = 1 << 14
"""Of a convolution's places in one batch; more are thinned out evenly."""
_MOST_UNFOLDED = 1 << 24
_MOST_COLUMNS = 1 << 13
"""Of a weight matrix; of a wider one only each input's own energy is collected, since moments go with the square."""
_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@dataclass
class Moments:
    """Sums over inputs of one weight tensor.

    Attributes:
        total: float64 `[n_groups, k, k]`; `[n_groups, k]` where only the diagonal is collected.
        n: inputs summed.
        transposed: the tensor's first dimension is that of its inputs.
    """

    total: Tensor | None = None
    n: int = 0
    transposed: bool = False

    def add(self, x: Tensor) -> None:
        """Inputs `[n_groups, n, k]`."""
        x = x.double()
        wide = x.shape[-1] > _MOST_COLUMNS
        found = x.square().sum(1) if wide else x.transpose(1, 2) @ x
        self._sum(found, x.shape[1])

    def count(self, indices: Tensor, n_rows: int) -> None:
        """Rows of an embedding that were looked up."""
        self.transposed = True
        self._sum(torch.bincount(indices.reshape(-1), minlength=n_rows).double()[None], indices.numel())

    def _sum(self, found: Tensor, n: int) -> None:
        self.total = found if self.total is None else self.total + found
        self.n += n

    @property
    def mean(self) -> Tensor:
        """The moments, as `total`."""
        assert self.total is not None
        return self.total / max(1, self.n)


@dataclass
class Collector:
    """Collects moments of a network's weights, by the name of the tensor; shared ones together.

    Attributes:
        model: the network, in eval mode.
        moments: found so far.
    """

    model: nn.Module
    moments: dict[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # One name for each parameter, however many modules share it.
        self._names: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), name)

    def run(self, batches: Iterable[Batch]) -> None:
        """Run the network on some inputs."""
        handles = [
            module.register_forward_pre_hook(hook) for module in self.model.modules() for hook in self._hooks(module)
        ]
        try:
            with torch.no_grad():
                for batch in batches:
                    call(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, module: nn.Module) -> Iterator[Callable[[nn.Module, Any], None]]:
        if isinstance(module, nn.Linear):
            yield lambda _module, args: self._linear(module, args[0])
        elif isinstance(module, _CONVOLUTIONS):
            yield lambda _module, args: self._convolution(module, args[0])
        elif isinstance(module, nn.Embedding):
            yield lambda _module, args: self._of(module.weight).count(args[0], module.num_embeddings)
        elif isinstance(module, _RECURRENT):
            yield lambda _module, args: self._recurrent(module, args[0])
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield lambda _module, args: self._attention(module, args)

    def _of(self, parameter: Tensor) -> Moments:
        return self.moments.setdefault(self._names[id(parameter)], Moments())

    def _linear(self, module: nn.Linear, x: Tensor) -> None:
        found = self._of(module.weight)
        if not found.transposed:  # a weight that is an embedding as well is taken for that
            found.add(x.reshape(1, -1, x.shape[-1]))

    def _convolution(self, module: nn.Conv1d | nn.Conv2d, x: Tensor) -> None:
        flat = isinstance(module, nn.Conv1d)
        size, stride, dilation = (tuple(v) for v in (module.kernel_size, module.stride, module.dilation))
        padding = module.padding if not isinstance(module.padding, str) else (0,) * len(size)
        x = x.detach()
        if flat:
            x = x.reshape(-1, module.in_channels, 1, x.shape[-1])
            size, stride, dilation, padding = (1, *size), (1, *stride), (1, *dilation), (0, *padding)
        x = x.reshape(-1, *x.shape[-3:])
        for some in x.split(max(1, _MOST_UNFOLDED // max(1, x[0].numel() * size[0] * size[1]))):
            taps = functional.unfold(some, size, dilation, tuple(padding), stride)
            taps = taps[:, :, :: -(-len(some) * taps.shape[2] // _MOST_POSITIONS)]
            k = taps.shape[1] // module.groups
            self._of(module.weight).add(taps.transpose(1, 2).reshape(-1, module.groups, k).transpose(0, 1))

    def _attention(self, module: nn.MultiheadAttention, args: Any) -> None:
        # Query, key and value have a third of the rows each, and mostly the same inputs.
        weight = module.in_proj_weight
        if weight is not None and len(args) and all(a is args[0] for a in args[:3]):
            self._of(weight).add(args[0].detach().reshape(1, -1, weight.shape[1]))

    def _recurrent(self, module: nn.RNN | nn.LSTM | nn.GRU, x: Any) -> None:
        if not isinstance(x, Tensor) or int(getattr(module, "proj_size", False)):
            return
        x = x.detach()
        x = x[None] if x.ndim == 2 else x
        x = x if module.batch_first else x.transpose(0, 1)
        for layer in range(module.num_layers):
            outputs = []
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 2 if module.bidirectional else 1]:
                seen = x.flip(1) if suffix.endswith("reverse") else x
                output = _one_layer(module, suffix, seen)
                before = torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1)
                self._of(getattr(module, f"weight_ih{suffix}")).add(seen.reshape(1, -1, seen.shape[-1]))
                self._of(getattr(module, f"weight_hh{suffix}")).add(before.reshape(1, -1, before.shape[-1]))
                outputs.append(output.flip(1) if suffix.endswith("reverse") else output)
            x = torch.cat(outputs, -1)


def _one_layer(module: nn.RNN | nn.LSTM | nn.GRU, suffix: str, x: Tensor) -> Tensor:
    """What one layer in one direction gives for inputs `[n, n_steps, k]`, from a state of zeros."""
    kind: dict[str, Any] = {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
    layer = type(module)(x.shape[-1], module.hidden_size, bias=module.bias, batch_first=True, **kind)
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    layer.load_state_dict({f"{name}_l0": getattr(module, name + suffix).detach() for name in names})
    found: Tensor = layer.to(x.device, x.dtype)(x)[0]
    return found
