"""Files ↔ ordered named tensors.

`read_checkpoint` recognises a file by its bytes, never by its suffix, and never runs code that a file
carries; `write_checkpoint` writes safetensors or a plain `.pt`.

    messages        one-line errors and the warnings of torch that are no news
    tensors         what a tensor must be to be stored, and the names of dtypes
    onnx            how an ONNX model is recognised
    sniff           what kind of file this is, and why some kinds are refused
    folder          which file of a folder is the model
    inert           values of a pickle that nothing was run for
    cursor          reads a pickle's bytes
    machine         follows a pickle's instructions
    storages        runs of numbers that a pickle refers to, and tensors over them
    rebuild         the fixed list of what a pickle may call, done by our own code; its two parts are
    rebuild_torch   functions of torch
    rebuild_python  functions of NumPy and Python
    torch_file      files of torch.save and plain pickles → what they hold
    modules         a pickled module → its state dictionary
    content         looking through what a checkpoint holds
    state_metadata  versions of modules ↔ text
    select          which entries of a training checkpoint are the weights
    sharing         tensors that share a part of their memory
    read            the above, composed
    write           tensors → a file
"""

from __future__ import annotations

from wcompress.checkpoint import state_metadata
from wcompress.checkpoint.read import Checkpoint, read_checkpoint
from wcompress.checkpoint.tensors import dtype_from_name, dtype_name
from wcompress.checkpoint.write import write_checkpoint

__all__ = ["Checkpoint", "dtype_from_name", "dtype_name", "read_checkpoint", "state_metadata", "write_checkpoint"]
