"""What a tensor must be to be stored, and the names of dtypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.parameter import is_lazy

from wcompress.checkpoint.messages import condensed, damaged, shown, unsupported, without_known_warnings

# Every dtype whose elements fill whole bytes and that torch can copy: such a tensor is fully described by
# its dtype, its shape and its bytes. Sub-byte integers (int4, …) cannot be copied by torch, and a quantised
# tensor has a scale besides its bytes. Older torch versions lack some of the names.
_NAMES = (
    *("float64", "float32", "float16", "bfloat16"),
    *(
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    ),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    *("complex128", "complex64", "complex32"),
    *("bits16", "bits8", "bits4x2", "bits2x4", "bits1x8"),
)
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}

MemoryKey = tuple[object, ...]

NESTED = "is a nested tensor: save its parts, tensor.unbind(), as ordinary tensors"
META = "is on the meta device and has no values: load the weights before saving"
DEQUANTIZE = "is quantised ({}): save tensor.dequantize(), or the float model"
LAZY = "has no values yet (lazy module): run a batch through the model, then save it"


@dataclass(frozen=True, eq=False)
class Unstorable:
    """Stands for a tensor that no plain tensor can stand for.

    Attributes:
        obstacle: What it is and what to do; follows "tensor 'NAME'" in a message.
    """

    obstacle: str


def sparse(layout: str) -> str:
    """Returns the obstacle of a sparse tensor."""
    return f"is sparse ({layout.removeprefix('torch.')}): save tensor.to_dense() instead"


def as_ordinary(kind: str) -> str:
    """Returns the obstacle of a tensor whose class keeps its values elsewhere."""
    return f"is a {shown(kind)}: convert it to an ordinary torch.Tensor and save that"


def not_copied(dtype: torch.dtype) -> str:
    """Returns the obstacle of a tensor with a dtype that torch defines but does not work with."""
    return f"has dtype {dtype_name(dtype)}, which torch cannot copy: convert it, for example to int8"


def dtype_name(dtype: torch.dtype) -> str:
    """Returns torch's own name of a dtype, such as `float32`."""
    return str(dtype).removeprefix("torch.")


def dtype_from_name(name: str) -> torch.dtype:
    """Returns the dtype of that name.

    Raises:
        ValueError: It is not the name of a dtype that can be stored.
    """
    try:
        return _DTYPES[name]
    except KeyError:
        raise ValueError(f"unknown dtype '{shown(name)}'; known are {', '.join(_DTYPES)}") from None


def n_bytes(tensor: torch.Tensor) -> int:
    """Returns the bytes that a tensor's elements fill when stored one after the other."""
    return tensor.numel() * tensor.element_size()


def memory_key(tensor: torch.Tensor) -> MemoryKey | None:
    """Returns what two tensors have in common when, and only when, they are the same view of the same memory.

    None for an empty tensor, which has no memory to share. Valid only while the tensor is alive.
    """
    if tensor.numel() == 0:
        return None
    return (
        tensor.device,
        tensor.data_ptr(),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def check_name(name: object, where: str) -> str:
    """Returns `name` if it can name a tensor.

    Raises:
        UnsupportedCheckpoint: It is not a string, or not one that UTF-8 can hold.
    """
    if not isinstance(name, str):
        raise unsupported(where, f"the name {condensed(repr(name))} is not a string; rename that tensor")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise unsupported(where, f"the name '{shown(name)}' is not valid Unicode; rename that tensor") from None
    return name


def check_tensor(name: str, tensor: torch.Tensor | Unstorable, where: str) -> torch.Tensor:
    """Returns a tensor that is fully described by dtype, shape and bytes.

    Raises:
        UnsupportedCheckpoint: It is not; the message says what it is and what to do.
    """
    obstacle = tensor.obstacle if isinstance(tensor, Unstorable) else _obstacle(tensor)
    if obstacle is not None or isinstance(tensor, Unstorable):
        raise unsupported(where, f"tensor '{shown(name)}' {obstacle}")
    return tensor


def _obstacle(tensor: torch.Tensor) -> str | None:
    """Returns why a tensor cannot be stored and what to do, or None."""
    kind = type(tensor)
    if is_lazy(tensor):
        return LAZY
    if tensor.is_nested:
        return NESTED
    if tensor.layout is not torch.strided:
        return sparse(str(tensor.layout))
    if tensor.ndim > 64:
        return f"has {tensor.ndim} dimensions: save it with at most 64"
    if tensor.is_quantized:
        return DEQUANTIZE.format(dtype_name(tensor.dtype))
    # A subclass with its own dispatch (DTensor, fake and packed tensors) keeps its data elsewhere, so its
    # bytes are not the tensor. Subclasses without one, such as Parameter, are ordinary tensors.
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return as_ordinary(kind.__name__)
    if tensor.is_meta:
        return META
    if _DTYPES.get(dtype_name(tensor.dtype)) is not tensor.dtype:
        return not_copied(tensor.dtype)
    return None


def plain(name: str, tensor: torch.Tensor, where: str) -> torch.Tensor:
    """Returns a tensor's values as a plain tensor: detached, on the CPU, contiguous, without lazy bits.

    Args:
        name: Its name, for messages.
        tensor: Any shape, any dtype, any device. Not changed; its memory is shared where it already is plain.
        where: What it was read from, for messages.

    Returns:
        A `torch.Tensor` (no subclass) of the same shape and dtype.

    Raises:
        UnsupportedCheckpoint: It has no plain form; the message names it.
        CheckpointError: There is no memory for a copy.
    """
    tensor = check_tensor(name, tensor, where)
    try:
        with without_known_warnings():
            values = tensor.detach()
            if type(values) is not torch.Tensor:
                values = values.as_subclass(torch.Tensor)
            return values.cpu().resolve_conj().resolve_neg().contiguous()
    except RuntimeError as error:
        raise damaged(where, f"tensor '{shown(name)}' cannot be copied: {condensed(error)}") from error
