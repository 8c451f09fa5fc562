"""Files ↔ ordered named tensors.

`read_checkpoint` recognises a file by its bytes, never by its suffix, and never runs code that a file
carries; `write_checkpoint` writes safetensors or a plain `.pt`.

    messages   one-line errors and the warnings of torch that are no news
    tensors    what a tensor must be to be stored, and the names of dtypes
    onnx       how an ONNX model is recognised
    sniff      what kind of file this is, and why most kinds are refused
    select     which entries of a training checkpoint are the weights
    read       the above, composed
    write      tensors → a file
"""

from __future__ import annotations

from wcompress.checkpoint.read import Checkpoint, read_checkpoint
from wcompress.checkpoint.tensors import dtype_from_name, dtype_name
from wcompress.checkpoint.write import write_checkpoint

__all__ = ["Checkpoint", "dtype_from_name", "dtype_name", "read_checkpoint", "write_checkpoint"]
