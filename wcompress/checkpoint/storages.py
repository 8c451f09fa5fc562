"""Runs of numbers that a pickle refers to, and the tensors over them, every index checked."""

from __future__ import annotations

import math

import torch

from wcompress.checkpoint.cursor import PickleDamage

MAX_DIMS = 64
_MAX_SIZE = 1 << 62

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QUInt8Storage": torch.quint8,
    "QInt8Storage": torch.qint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
    "UntypedStorage": torch.uint8,
    "TypedStorage": torch.uint8,
}
"""Names of torch's storage classes → dtype of their elements."""


class StorageClass:
    """A class of storages: the dtype of what lies in them."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class Storage:
    """A run of numbers outside the pickle. Tensors over it get their memory when its bytes are known.

    Attributes:
        dtype: Of its elements.
        n_elements: So many.
        data: Its bytes, uint8 `[n_elements * itemsize]`; None while they are not known.
    """

    __slots__ = ("_waiting", "data", "dtype", "n_elements")

    def __init__(self, dtype: torch.dtype, n_elements: int, data: torch.Tensor | None = None) -> None:
        if type(n_elements) is not int or not 0 <= n_elements < _MAX_SIZE:
            raise PickleDamage(f"a storage of {n_elements!r:.40} elements")
        self.dtype = dtype
        self.n_elements = n_elements
        self.data: torch.Tensor | None = None
        self._waiting: list[tuple[torch.Tensor, int, tuple[int, ...], tuple[int, ...], dict[str, bool]]] = []
        if data is not None:
            self.fill(data)

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return self.n_elements * self.dtype.itemsize

    def fill(self, data: torch.Tensor) -> None:
        """Gives the storage its bytes, uint8 and at the start of their own memory, and each tensor its part."""
        if data.numel() < self.n_bytes:
            raise PickleDamage(f"a storage of {self.n_bytes} bytes wanted, {data.numel()} are there")
        self.data = aligned(data)
        for waiting in self._waiting:
            self._bind(*waiting)
        self._waiting.clear()

    def tensor(
        self, dtype: torch.dtype, offset: int, size: tuple[int, ...], stride: tuple[int, ...], bits: dict[str, bool]
    ) -> torch.Tensor:
        """A tensor over it; `offset` and `stride` in elements. All must lie within.

        Args:
            dtype: Of the tensor.
            offset, size, stride: Which elements.
            bits: torch's lazy bits, `conj` and `neg`.
        """
        numbers = (offset, *size, *stride)
        if any(type(number) is not int or not 0 <= number < _MAX_SIZE for number in numbers):
            raise PickleDamage(f"a tensor with the impossible shape {size!r:.80}")
        if len(size) != len(stride) or len(size) > MAX_DIMS:
            raise PickleDamage(f"a tensor with {len(size)} sizes and {len(stride)} strides")
        if math.prod(size) >= _MAX_SIZE or math.prod(max(n, 1) for n in size) >= _MAX_SIZE:
            raise PickleDamage(f"a tensor with the impossible shape {size!r:.80}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and (last + 1) * dtype.itemsize > self.n_bytes:
            raise PickleDamage(f"a tensor of shape {size!r:.80} reaches beyond its storage of {self.n_bytes} bytes")
        tensor = torch.empty(0, dtype=dtype)
        waiting = (tensor, 0 if 0 in size else offset, size, stride, bits)
        if self.data is None:
            self._waiting.append(waiting)
        else:
            self._bind(*waiting)
        return tensor

    def _bind(
        self, tensor: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], bits: dict[str, bool]
    ) -> None:
        if 0 in size:
            tensor.resize_(size)
        elif self.data is not None:
            tensor.set_(self.data.untyped_storage(), offset, size, stride)
        if bits:
            torch._utils.set_tensor_metadata(tensor, bits)


def aligned(data: torch.Tensor) -> torch.Tensor:
    """Returns bytes at an address from which numbers of any size may be read; a copy where they are at another."""
    return data if data.numel() == 0 or data.data_ptr() % 16 == 0 else data.clone()


def storage_identifier(identifier: object) -> tuple[object, ...]:
    """Returns the parts of a storage's persistent identifier: class, key, location, number of elements, view.

    Raises:
        PickleDamage: It is something else.
    """
    if isinstance(identifier, tuple) and len(identifier) in (5, 6):
        kind, storage_class, key, *_ = identifier
        if (
            kind in ("storage", b"storage")
            and isinstance(storage_class, StorageClass)
            and type(key) in (str, int, bytes)
        ):
            return identifier[1:]
    raise PickleDamage("it refers to something outside it that is no storage")


def as_numbers(value: object) -> tuple[int, ...]:
    """Returns the sizes or strides of a tensor; whether they are possible is checked where they are used."""
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMS:
        raise PickleDamage("a tensor whose shape is no list of numbers")
    return tuple(value)
