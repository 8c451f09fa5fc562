"""What kind of file this is, told by its bytes, and why most kinds are refused."""

from __future__ import annotations

import json
import os
import pickletools
import stat
import zipfile
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from wcompress.checkpoint.messages import condensed, damaged, shown, unsupported, usage
from wcompress.checkpoint.onnx import is_onnx
from wcompress.errors import CheckpointError, WCompressError


class Kind(Enum):
    """The kinds of file that are read."""

    TORCH_ZIP = "torch.save, since torch 1.6"
    TORCH_LEGACY = "torch.save, before torch 1.6"
    PICKLE = "a plain pickle"
    SAFETENSORS = "safetensors"
    SHARD_INDEX = "Hugging Face index of shards"


_HEAD_BYTES = 4096
_SMALL_BYTES = 1 << 20
_JSON_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
# torch.serialization.MAGIC_NUMBER as a pickle writes it: ten bytes, little-endian.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
# The safetensors library refuses longer headers.
_SAFETENSORS_HEADER_BYTES = 100_000_000

_CONVERT = "export the weights as safetensors or with torch.save(model.state_dict(), …)"
_COMPRESSED = "decompress it first"
# (offset, bytes found there, what it is, what to do)
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89WCZ", "already a wcompress archive", "use unpack to restore it"),
    (0, b"GGUF", "a GGUF model", f"{_CONVERT} from the model it was converted from"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the weights", "run git lfs pull to fetch them"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras?)", f"load it there and {_CONVERT}"),
    (0, b"\x93NUMPY", "a NumPy array without a name", "save a dictionary of torch tensors with torch.save"),
    (4, b"TFL3", "a TensorFlow Lite model", f"{_CONVERT} from the model it was converted from"),
    (0, b"\x1f\x8b", "compressed with gzip", _COMPRESSED),
    (0, b"BZh", "compressed with bzip2", _COMPRESSED),
    (0, b"\xfd7zXZ\x00", "compressed with xz", _COMPRESSED),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _COMPRESSED),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", _COMPRESSED),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "extract the checkpoint first"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "extract the checkpoint first"),
    (257, b"ustar", "a tar archive", "extract it, or save a checkpoint of a very old torch again"),
)


def recognise(path: Path) -> Kind:
    """Tells a file's kind from its bytes.

    Raises:
        CheckpointError: There is no such file or it cannot be opened (exit code 2), it is damaged, or it is
            of a kind that is not read (`UnsafeCheckpoint`, `UnsupportedCheckpoint`).
    """
    where = shown(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise usage(unsupported(where, "is not a regular file; copy its content to a file first"))
        with path.open("rb") as stream:
            return _recognise(stream, where)
    except FileNotFoundError:
        raise usage(CheckpointError(f"{where}: no such file")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise usage(CheckpointError(f"{where}: cannot be read: {condensed(reason)}")) from error


def _recognise(stream: BinaryIO, where: str) -> Kind:
    size = os.fstat(stream.fileno()).st_size
    head = stream.read(_HEAD_BYTES)
    if not head:
        raise unsupported(where, "is empty; copy or download it again")
    for offset, signature, what, advice in _SIGNATURES:
        if head.startswith(signature, offset):
            raise unsupported(where, f"is {what}; {advice}")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _recognise_zip(stream, where)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER_BYTES:
        return Kind.SAFETENSORS
    if head[0] == 0x80 and _LEGACY_MAGIC in head[:32]:
        return Kind.TORCH_LEGACY
    if (head[0] == 0x80 and head[1:2] <= b"\x05") or (size <= _SMALL_BYTES and _is_text_pickle(stream)):
        return Kind.PICKLE
    if is_onnx(stream, size):
        raise unsupported(where, f"is an ONNX model; {_CONVERT} from the model it was exported from")
    if not any(head) and _is_all_zero(stream):
        raise unsupported(where, "holds nothing but zero bytes; copy or download it again")
    return _recognise_text(stream, head, size, where)


def _recognise_text(stream: BinaryIO, head: bytes, size: int, where: str) -> Kind:
    """Tells an index of shards from other texts, and those from unknown binaries."""
    if not _is_text(head):
        raise unsupported(where, f"is of no known kind (it starts with {head[:8].hex(' ')}); {_CONVERT}")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise unsupported(where, "is a web page, not a model; download it again (a sign-in page is saved like this)")
    if start[:1] in (b"{", b"[") and size <= _JSON_BYTES:
        stream.seek(0)
        try:
            content = json.loads(stream.read())
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict) and "weight_map" in content:
            return Kind.SHARD_INDEX
        if content is not None:
            raise unsupported(where, "is a JSON file without weights; give the model file beside it")
    raise unsupported(where, "is a text file, not a model")


def _is_text(head: bytes) -> bool:
    # The head may end inside a character, which takes at most four bytes.
    for cut in range(4):
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return all(c.isprintable() or c in "\t\n\r\f\ufeff" for c in text)
    return False


def _is_text_pickle(stream: BinaryIO) -> bool:
    """Tells whether a small file is a pickle of protocol 0 or 1, which has no signature. Nothing is run."""
    stream.seek(0)
    data = stream.read()
    if not data.endswith(b"."):
        return False
    try:
        n_read = max(position + 1 for _, _, position in pickletools.genops(data) if position is not None)
    except Exception:  # pickletools raises whatever a malformed argument happens to cause
        return False
    return n_read == len(data) and len(data) > 1


def _is_all_zero(stream: BinaryIO) -> bool:
    stream.seek(0)
    while chunk := stream.read(_CHUNK_BYTES):
        if chunk.count(0) != len(chunk):
            return False
    return True


def _recognise_zip(stream: BinaryIO, where: str) -> Kind:
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        problem = f"the index at its end is missing or damaged ({condensed(error)})"
        raise damaged(where, f"{problem}; copy or download it again") from error
    last = {name.rsplit("/", 1)[-1] for name in names}
    if last & {"archive_format", "serialized_exported_program.json"}:
        raise unsupported(where, "is a torch.export program (.pt2); save model.state_dict() instead")
    if "constants.pkl" in last or any("/code/" in name for name in names):
        advice = "load it with torch.jit.load and save its state_dict() with torch.save"
        raise unsupported(where, f"is a TorchScript program; {advice}")
    if "extern_modules" in last:
        raise unsupported(where, "is a torch.package archive; load it and save model.state_dict()")
    if any(name.endswith("/data.pkl") for name in names):
        return Kind.TORCH_ZIP
    if names and all(name.endswith(".npy") for name in names):
        raise unsupported(where, "is a NumPy .npz file; save its arrays as torch tensors with torch.save")
    if "model.weights.h5" in last:
        raise unsupported(where, f"is a Keras model; load it there and {_CONVERT}")
    raise unsupported(where, "is a zip archive but no checkpoint of torch; extract the model file from it first")


def check_zip(path: Path, limit_bytes: int) -> bool:
    """Checks the records of a torch zip against their checksums, which torch itself does not.

    Args:
        path: A file of the kind `TORCH_ZIP`.
        limit_bytes: The most bytes that its records may claim to hold together.

    Returns:
        Whether every record is stored uncompressed, so that the file can be mapped into memory.

    Raises:
        CheckpointError: A record is damaged, or the records claim too much.
    """
    where = shown(path)
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            claimed = sum(record.file_size for record in records)
            if claimed > limit_bytes:
                raise damaged(where, f"its records claim {claimed} bytes, more than a file of its size can hold")
            for record in records:
                # torch writes zero where it was told to compute no checksums.
                if record.CRC != 0:
                    with archive.open(record) as stream:
                        while stream.read(_CHUNK_BYTES):
                            pass
            return all(record.compress_type == zipfile.ZIP_STORED for record in records)
    except WCompressError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds of errors for damaged records
        raise damaged(where, f"is damaged ({condensed(error)}); copy or download it again") from error
