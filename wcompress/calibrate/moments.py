"""Second moments of what weights are multiplied by, collected while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wcompress.refine.inputs import call
from wcompress.tasks.protocol import Batch

_MOST_POSITIONS = 1 << 12
"""Places of a convolution, or steps of a sequence, that are looked at in one batch; of more a random part."""
_MOST_UNFOLDED = 1 << 24
_MOST_COLUMNS, _MOST_ENTRIES = 1 << 12, 1 << 27
"""Of one weight matrix, and of all moments together: beyond, only each input's own energy is collected."""
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@dataclass
class Moments:
    """Sums over inputs of one weight tensor.

    Attributes:
        is_full: whether products of different inputs are summed as well.
        transposed: the tensor's first dimension is that of its inputs.
        total: float64 `[n_groups, k, k]`, or `[n_groups, k]` of each input alone.
        n: inputs summed.
    """

    is_full: bool = True
    transposed: bool = False
    total: Tensor | None = None
    n: int = 0

    def add(self, x: Tensor) -> None:
        """Inputs `[n_groups, n, k]`."""
        x = x.float()
        self._sum((x.transpose(1, 2) @ x if self.is_full else x.square().sum(1)).double(), x.shape[1])

    def count(self, indices: Tensor, n_rows: int) -> None:
        """Rows of an embedding that were looked up."""
        self._sum(torch.bincount(indices.reshape(-1), minlength=n_rows).double()[None], indices.numel())

    def _sum(self, found: Tensor, n: int) -> None:
        self.total = found if self.total is None else self.total + found
        self.n += n

    @property
    def mean(self) -> Tensor:
        """The moments, as `total`."""
        assert self.total is not None
        return self.total / max(1, self.n)


class Collector:
    """Collects moments of a network's weights.

    Where it is not clear what a module multiplies a weight by, the weight is left out, and so is one that is computed.

    Args:
        model: the network, in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._by_input: dict[int, Moments] = {}
        self._looked_up: dict[int, Moments] = {}
        self._unclear: set[int] = set()
        self._n_entries = 0
        self._names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(name)

    @property
    def moments(self) -> Mapping[str, Moments]:
        """By each name of a weight; of one that is an embedding as well as a layer's, those of the embedding."""
        found = {**self._by_input, **self._looked_up}
        return {
            name: moments
            for place, moments in found.items()
            if place not in self._unclear and moments.total is not None and bool(moments.total.isfinite().all())
            for name in self._names[place]
        }

    def run(self, batches: Iterable[Batch]) -> None:
        """Run the network on some inputs."""
        handles = [
            module.register_forward_pre_hook(self._guarded(module, look), with_kwargs=True)
            for module in self.model.modules()
            for look in self._looks(module)
        ]
        try:
            with torch.no_grad():
                for batch in batches:
                    call(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _guarded(self, module: nn.Module, look: Callable[[list[Any]], None]) -> Callable[..., None]:
        # Whatever a module is given that is not understood must not end what the network does.
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            try:
                look([value.detach() if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())])
            except Exception:
                self._unclear |= {id(parameter) for parameter in module.parameters(recurse=False)}

        return hook

    def _looks(self, module: nn.Module) -> Iterator[Callable[[list[Any]], None]]:
        if isinstance(module, nn.Linear):
            yield lambda args: self._add(module.weight, _some(args[0].reshape(-1, args[0].shape[-1]))[None])
        elif isinstance(module, _CONVOLUTIONS):
            yield lambda args: self._convolution(module, args[0])
        elif isinstance(module, nn.Embedding):
            yield lambda args: self._count(module, args[0])
        elif isinstance(module, _RECURRENT):
            yield lambda args: self._recurrent(module, args)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield lambda args: self._attention(module.in_proj_weight, args)

    def _add(self, weight: Any, x: Tensor) -> None:
        if id(weight) not in self._names:
            return
        if id(weight) not in self._by_input:
            n_groups, _, k = x.shape
            is_full = k <= _MOST_COLUMNS and self._n_entries + n_groups * k * k <= _MOST_ENTRIES
            self._n_entries += n_groups * k * k if is_full else 0
            self._by_input[id(weight)] = Moments(is_full)
        self._by_input[id(weight)].add(x)

    def _count(self, module: nn.Embedding, indices: Tensor) -> None:
        if id(module.weight) in self._names:
            found = self._looked_up.setdefault(id(module.weight), Moments(is_full=False, transposed=True))
            found.count(indices, module.num_embeddings)

    def _convolution(self, module: nn.Conv1d | nn.Conv2d, x: Tensor) -> None:
        size, stride, dilation = (tuple(v) for v in (module.kernel_size, module.stride, module.dilation))
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        n_axes = len(size)
        x = x.reshape(-1, *x.shape[-n_axes - 1 :])
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode)
        if n_axes == 1:
            x, size, stride, dilation = x[:, :, None], (1, *size), (1, *stride), (1, *dilation)
        most = max(1, _MOST_POSITIONS // max(1, len(x)))
        places: Tensor | None = None
        for some in x.split(max(1, _MOST_UNFOLDED // max(1, x[0].numel() * size[0] * size[1]))):
            taps = functional.unfold(some, size, dilation, 0, stride)
            places = _places(taps.shape[2], most) if places is None else places
            taps = taps[:, :, places]
            k = taps.shape[1] // module.groups
            self._add(module.weight, taps.transpose(1, 2).reshape(-1, module.groups, k).transpose(0, 1))

    def _attention(self, weight: Any, args: list[Any]) -> None:
        # Query, key and value have a third of the rows each, and mostly the same inputs.
        query, key, value = args[:3]
        if key is not query or value is not query:
            raise NotImplementedError
        self._add(weight, query.reshape(1, -1, query.shape[-1]))

    def _recurrent(self, module: Any, args: list[Any]) -> None:
        x, state = args[0], args[1] if len(args) > 1 else None
        if not isinstance(x, Tensor) or state is not None or module.proj_size:
            raise NotImplementedError
        if x.ndim == 2:
            x = x.unsqueeze(0 if module.batch_first else 1)
        x = x if module.batch_first else x.transpose(0, 1)
        for layer in range(module.num_layers):
            outputs = []
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 2 if module.bidirectional else 1]:
                seen = x.flip(1) if suffix.endswith("reverse") else x
                output = _one_layer(module, suffix, seen)
                before = torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1)
                self._add(getattr(module, f"weight_ih{suffix}"), seen.reshape(1, -1, seen.shape[-1]))
                self._add(getattr(module, f"weight_hh{suffix}"), before.reshape(1, -1, before.shape[-1]))
                outputs.append(output.flip(1) if suffix.endswith("reverse") else output)
            x = torch.cat(outputs, -1)


def _places(n: int, most: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most].sort().values


def _some(x: Tensor) -> Tensor:
    return x if len(x) <= _MOST_POSITIONS else x[_places(len(x), _MOST_POSITIONS)]


def _one_layer(module: Any, suffix: str, x: Tensor) -> Tensor:
    """What one layer in one direction gives for inputs `[n, n_steps, k]`, from a state of zeros."""
    kind: Any = next(kind for kind in _RECURRENT if isinstance(module, kind))
    options: dict[str, Any] = {"nonlinearity": module.nonlinearity} if kind is nn.RNN else {}
    layer = kind(x.shape[-1], module.hidden_size, bias=module.bias, batch_first=True, **options)
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    layer.load_state_dict({f"{name}_l0": getattr(module, name + suffix).detach() for name in names})
    found: Tensor = layer.to(x.device, x.dtype)(x)[0].detach()
    return found
