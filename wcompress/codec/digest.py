"""The SHA-256 of restored tensors, which an archive records; docs/format.md is the norm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from wcompress.fidelity import as_bytes
from wcompress.wire import encode_varint


class TensorsDigest:
    """SHA-256 over names, dtypes, shapes and bytes of tensors in order, as docs/format.md defines it."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """The next tensor; its bytes follow.

        Args:
            name: of it.
            dtype: torch's name without `torch.`.
            shape: of it.
        """
        for text in (name.encode(), dtype.encode()):
            self._sha.update(encode_varint(len(text)) + text)
        self._sha.update(b"".join(encode_varint(size) for size in (len(shape), *shape)))

    def add(self, tensor: torch.Tensor) -> None:
        """Further elements of the tensor begun, contiguous, on the CPU."""
        if tensor.numel():
            self._sha.update(as_bytes(tensor).numpy().data)

    def digest(self) -> bytes:
        """Of what was added so far, 32 bytes."""
        return self._sha.digest()


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """`TensorsDigest` of tensors by name, 32 bytes."""
    digest = TensorsDigest()
    for name, tensor in tensors.items():
        digest.begin(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        digest.add(tensor)
    return digest.digest()
