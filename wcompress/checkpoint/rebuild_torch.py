"""What torch's own functions make when a pickle calls them, done by our own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from wcompress.checkpoint.cursor import PickleDamage
from wcompress.checkpoint.inert import Global, Inert, Known, TensorLike, tensor_like, to_tensor
from wcompress.checkpoint.machine import called_name
from wcompress.checkpoint.messages import shown
from wcompress.checkpoint.storages import STORAGE_DTYPES, Storage, as_numbers
from wcompress.checkpoint.tensors import DEQUANTIZE, META, NESTED, Unstorable, as_ordinary, not_copied, sparse


def as_storage(value: object) -> Storage:
    """Returns a storage, and refuses anything else."""
    if not isinstance(value, Storage):
        raise PickleDamage(f"a tensor over a {type(value).__name__}, not over a storage")
    return value


def _tensor(
    storage: object, offset: object, size: object, stride: object, dtype: torch.dtype, metadata: object = None
) -> TensorLike:
    bits: dict[str, bool] = {}
    if isinstance(metadata, Mapping):
        bits = {bit: True for bit in ("conj", "neg") if metadata.get(bit) is True}
    if str(dtype).startswith(("torch.q", "torch.quint")):
        return Unstorable(DEQUANTIZE.format(str(dtype).removeprefix("torch.")))
    if type(offset) is not int:
        raise PickleDamage("a tensor that starts nowhere")
    try:
        return as_storage(storage).tensor(dtype, offset, as_numbers(size), as_numbers(stride), bits)
    except RuntimeError:
        # For some dtypes torch cannot even make an empty tensor.
        return Unstorable(not_copied(dtype))


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> TensorLike:
    return _tensor(storage, offset, size, stride, as_storage(storage).dtype)


def _rebuild_tensor_v2(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    metadata: object = None,
) -> TensorLike:
    return _tensor(storage, offset, size, stride, as_storage(storage).dtype, metadata)


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorLike:
    if not isinstance(dtype, torch.dtype):
        raise PickleDamage("a tensor without a dtype")
    return _tensor(storage, offset, size, stride, dtype, metadata)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _rebuild_from_type(function: object, kind: object, args: object, state: object = None) -> object:
    """A tensor of a subclass: what its values are made of, where that is ordinary memory."""
    if isinstance(function, Known) and isinstance(args, tuple):
        return function.make(*args)
    return Inert(called_name(function), (kind, args, state))


def _rebuild_wrapper(kind: object, *_: object) -> Unstorable:
    name = called_name(kind) if isinstance(kind, (Global, Inert, Known)) else "tensor subclass"
    return Unstorable(as_ordinary(shown(name)[:200].rpartition(".")[2]))


def _rebuild_sparse(layout: object, *_: object) -> Unstorable:
    return Unstorable(sparse(shown(layout)[:40] if isinstance(layout, str) else "coo"))


def _rebuild_from_values(data: object, dtype: object = None, *_: object) -> object:
    """A tensor of another device, which was saved by its values."""
    found = tensor_like(data)
    if found is None:
        raise PickleDamage("a tensor without values")
    tensor = to_tensor(found)
    if isinstance(tensor, torch.Tensor) and isinstance(dtype, torch.dtype):
        return tensor.to(dtype)
    return tensor


def _parameter_class(data: object = None, *_: object) -> object:
    return torch.empty(0) if data is None else data


def tensor_class(name: str) -> Callable[..., object]:
    """Returns what the class of that name makes: an empty tensor, which gets its content later."""
    storage = STORAGE_DTYPES.get(name.replace("Tensor", "Storage"), torch.float32)

    def make(*args: object) -> object:
        if args:
            raise PickleDamage("a tensor that is made by its class")
        return torch.empty(0, dtype=storage)

    return make


def is_old_state(state: object) -> bool:
    """Tells whether a state is what the first versions of torch gave a tensor: storage, offset, size, stride."""
    return isinstance(state, tuple) and len(state) == 4 and isinstance(state[0], Storage)


def set_old_state(tensor: torch.Tensor, state: object) -> None:
    """Makes an empty tensor what such a state says."""
    if not isinstance(state, tuple) or len(state) != 4:
        raise PickleDamage("a tensor without a storage, a shape and strides")
    storage, offset, size, stride = state
    made = _tensor(storage, offset, size, stride, tensor.dtype)
    if isinstance(made, torch.Tensor) and as_storage(storage).data is not None:
        tensor.set_(made)  # type: ignore[call-overload]


TORCH_FUNCTIONS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils._rebuild_qtensor": lambda storage, *_: Unstorable(
        DEQUANTIZE.format(str(as_storage(storage).dtype).removeprefix("torch."))
    ),
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _rebuild_sparse,
    "torch._utils._rebuild_nested_tensor": lambda *_: Unstorable(NESTED),
    "torch.nested._internal.nested_tensor._rebuild_njt": lambda *_: Unstorable(NESTED),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: Unstorable(META),
    "torch._utils._rebuild_wrapper_subclass": _rebuild_wrapper,
    "torch._utils._rebuild_device_tensor_from_numpy": _rebuild_from_values,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _rebuild_from_values,
    "torch._utils._rebuild_xla_tensor": _rebuild_from_values,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.nn.parameter.Parameter": _parameter_class,
    "torch.nn.parameter.Buffer": _parameter_class,
    "torch.serialization._get_layout": lambda name, *_: str(name)[:40] if isinstance(name, str) else "",
    "torch.Size": lambda sizes=(): as_numbers(sizes),
}
