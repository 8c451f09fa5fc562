"""Files of `torch.save` and plain pickles → what they hold, with nothing in them run."""

from __future__ import annotations

import mmap
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from wcompress.checkpoint.cursor import Cursor, PickleDamage
from wcompress.checkpoint.machine import Machine
from wcompress.checkpoint.messages import condensed, damaged, shown, unsafe, unsupported, without_known_warnings
from wcompress.checkpoint.rebuild import Rebuilder
from wcompress.checkpoint.sniff import Kind, check_zip
from wcompress.checkpoint.storages import Storage, StorageClass, aligned, storage_identifier
from wcompress.errors import CheckpointError

# Views let a tiny file claim tensors of any size. No real model repeats its bytes a hundredfold.
_EXPANSION = 100
_EXPANSION_FLOOR_BYTES = 64 << 20
# Of a pickle's own objects, of which even large checkpoints have few.
_OBJECTS_BYTES = 2 << 30
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, length of the name, length of the extra field
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

# torch's refusals that name what the pickle wanted.
_WANTED = (
    re.compile(r"GLOBAL\s+([^\s]+)"),
    re.compile(r"reduce for unrecognized function (<.*?>|[^\s]+)"),
    re.compile(r"allowlisted via `add_safe_globals`,? but got (<class '[^']*'>)"),
    re.compile(r"``(torch\.[\w.]+)``.* must be imported"),
)
_OPERAND = re.compile(r"Unsupported operand (\d+)")
# Opcodes that only pickle protocol 4 and later have: pickle.SHORT_BINUNICODE … pickle.READONLY_BUFFER.
_PROTOCOL_4 = range(0x8C, 0x99)


def limit_bytes(size_bytes: int) -> int:
    """Returns the most bytes that the tensors in a file of that size may take."""
    return _EXPANSION_FLOOR_BYTES + _EXPANSION * size_bytes


def load_pickled(path: Path, kind: Kind, *, strict: bool) -> object:
    """Reads what a file of torch or a plain pickle holds, without running or importing anything it names.

    Args:
        path: The file. Its tensors are mapped where they lie uncompressed, so that it must stay as it is.
        kind: `TORCH_ZIP`, `TORCH_LEGACY` or `PICKLE`.
        strict: Refuse what `torch.load(weights_only=True)` refuses.

    Returns:
        Dictionaries, lists, plain values and tensors; for everything else the records of `wcompress.checkpoint.inert`.

    Raises:
        UnsafeCheckpoint: It calls what only an attack calls; with `strict`, anything that is not needed for tensors.
        CheckpointError: It is damaged.
    """
    where = shown(path)
    size_bytes = path.stat().st_size
    stored = kind is not Kind.TORCH_ZIP or check_zip(path, limit_bytes(size_bytes))
    if strict:
        _check_strictly(path, kind, stored)
    try:
        with path.open("rb") as stream:
            # A private mapping: what torch writes to it, if ever, does not reach the file.
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        with without_known_warnings():
            if kind is Kind.TORCH_ZIP:
                return _load_zip(path, mapped, where)
            if kind is Kind.TORCH_LEGACY:
                return _load_legacy(mapped, where)
            return _run(Cursor(mapped), _rebuilder(where, _nothing_outside), size_bytes)
    except CheckpointError:
        raise
    except PickleDamage as error:
        raise damaged(where, f"is damaged ({condensed(error)}); copy or download it again") from error
    except (OSError, ValueError, RuntimeError, LookupError, struct.error, zipfile.BadZipFile, MemoryError) as error:
        problem = condensed(error) or type(error).__name__
        raise damaged(where, f"is damaged ({problem}); copy or download it again") from error


def _run(cursor: Cursor, rebuilder: Rebuilder, size_bytes: int) -> object:
    return Machine(cursor, rebuilder, min(limit_bytes(size_bytes), _OBJECTS_BYTES + 8 * size_bytes)).run()


def _rebuilder(where: str, outside: Callable[[object], object]) -> Rebuilder:
    return Rebuilder(where, outside, lambda data: _load_legacy(data, where, nested=True))


def _nothing_outside(_: object) -> object:
    raise PickleDamage("it refers to something outside it")


# --- since torch 1.6 --------------------------------------------------------------------------------------------


def _load_zip(path: Path, mapped: mmap.mmap, where: str) -> object:
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        if len(records) != len(archive.infolist()):
            raise PickleDamage("two of its records have the same name")
        folder = next(name for name in records if name.endswith("/data.pkl")).removesuffix("data.pkl")
        order = records.get(f"{folder}byteorder")
        is_foreign = order is not None and _record_bytes(archive, order, mapped).numpy().tobytes() == b"big"
        storages: dict[str, torch.Tensor] = {}

        def data_of(key: str, dtype: torch.dtype) -> torch.Tensor:
            record = records.get(f"{folder}data/{key}")
            if record is None:
                raise PickleDamage(f"the record 'data/{key[:80]}' is missing")
            if key not in storages:
                storages[key] = aligned(_record_bytes(archive, record, mapped))
                if is_foreign:
                    storages[key] = storages[key].clone()
                    storages[key].untyped_storage().byteswap(dtype)
            return storages[key]

        def outside(identifier: object) -> object:
            storage_class, key, _location, n_elements, *view = storage_identifier(identifier)
            dtype = storage_class.dtype if isinstance(storage_class, StorageClass) else torch.uint8
            if view or type(n_elements) is not int:
                raise PickleDamage("a storage without a size")
            name = key.decode("latin-1") if isinstance(key, bytes) else str(key)
            return Storage(dtype, n_elements, data_of(name, dtype))

        content = _record_bytes(archive, records[f"{folder}data.pkl"], mapped).numpy().tobytes()
        return _run(Cursor(content), _rebuilder(where, outside), len(mapped))


def _record_bytes(archive: zipfile.ZipFile, record: zipfile.ZipInfo, mapped: mmap.mmap) -> torch.Tensor:
    """The bytes of a record: in the file where they are stored as they are, else in memory."""
    if record.file_size == 0:
        return torch.empty(0, dtype=torch.uint8)
    if record.compress_type != zipfile.ZIP_STORED:
        return torch.frombuffer(bytearray(archive.read(record)), dtype=torch.uint8)
    start = record.header_offset
    signature, n_name, n_extra = _LOCAL_HEADER.unpack(mapped[start : start + _LOCAL_HEADER.size])
    start += _LOCAL_HEADER.size + n_name + n_extra
    if signature != b"PK\x03\x04" or start + record.file_size > len(mapped):
        raise PickleDamage(f"the record '{record.filename[:80]}' is not where the index says")
    return torch.frombuffer(mapped, dtype=torch.uint8, offset=start, count=record.file_size)


# --- before torch 1.6 -------------------------------------------------------------------------------------------


def _load_legacy(data: bytes | mmap.mmap, where: str, *, nested: bool = False) -> object:
    """Pickles one after the other: a number, a version, facts on the machine, the content, the storages' order.

    The storages' bytes follow, each after its number of elements.
    """
    cursor = Cursor(data)
    storages: dict[object, Storage] = {}
    views: dict[object, tuple[Storage, Storage, int]] = {}

    def outside(identifier: object) -> object:
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] in ("module", b"module"):
            return identifier[1]  # a class, with its source code
        storage_class, key, _location, n_elements, *view = storage_identifier(identifier)
        dtype = storage_class.dtype if isinstance(storage_class, StorageClass) else torch.uint8
        if type(n_elements) is not int:
            raise PickleDamage("a storage without a size")
        whole = storages.setdefault(key, Storage(dtype, n_elements))
        if view and view[0] is not None:
            return _legacy_view(whole, dtype, view[0], views)
        return whole

    def unexpected(_: bytes) -> object:
        raise PickleDamage("a file within a file within a file")

    rebuilder = Rebuilder(where, outside, unexpected) if nested else _rebuilder(where, outside)
    plain = Rebuilder(where, _nothing_outside, unexpected)
    if _run(cursor, plain, len(data)) != _MAGIC or _run(cursor, plain, len(data)) != _LEGACY_VERSION:
        raise PickleDamage("it does not start as a file of torch does")
    _run(cursor, plain, len(data))
    content = _run(cursor, rebuilder, len(data))
    keys = _run(cursor, plain, len(data))
    if not isinstance(keys, list):
        raise PickleDamage("the order of its storages is missing")
    for key in keys:
        storage = storages.get(key) if isinstance(key, (str, int, bytes)) else None
        if storage is None or cursor.unsigned(8) != storage.n_elements:
            raise PickleDamage("its storages are not those its tensors need")
        start = cursor.position
        if not 0 <= storage.n_bytes <= cursor.end - start:
            raise PickleDamage("a storage is cut short")
        cursor.position += storage.n_bytes
        if storage.data is None:
            storage.fill(_bytes_at(data, start, storage.n_bytes))
    if any(storage.data is None for storage in storages.values()):
        raise PickleDamage("the bytes of a storage are missing")
    for whole, part, offset in views.values():
        if whole.data is not None and part.data is None:
            end = offset + part.n_bytes
            # Its own storage object over the same memory, for tensors are placed from a storage's start.
            part.fill(torch.empty(0, dtype=torch.uint8).set_(whole.data.untyped_storage()[offset:end]))
    return content


def _legacy_view(
    whole: Storage, dtype: torch.dtype, view: object, views: dict[object, tuple[Storage, Storage, int]]
) -> Storage:
    """A part of a storage that is pickled as a storage of its own."""
    if not isinstance(view, tuple) or len(view) != 3 or any(type(number) is not int for number in view[1:]):
        raise PickleDamage("a part of a storage without a place")
    key, offset, n_elements = view
    if not isinstance(key, (str, int, bytes)) or offset < 0 or (offset + n_elements) * dtype.itemsize > whole.n_bytes:
        raise PickleDamage("a part of a storage that reaches beyond it")
    if key not in views:
        views[key] = (whole, Storage(dtype, n_elements), offset * dtype.itemsize)
    return views[key][1]


def _bytes_at(data: bytes | mmap.mmap, start: int, n_bytes: int) -> torch.Tensor:
    if n_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    buffer = data if isinstance(data, mmap.mmap) else bytearray(data[start : start + n_bytes])
    return torch.frombuffer(buffer, dtype=torch.uint8, offset=start if buffer is data else 0, count=n_bytes)


# --- strictness -------------------------------------------------------------------------------------------------


def _check_strictly(path: Path, kind: Kind, stored: bool) -> None:
    """Asks torch's own restricted unpickler. A refusal is final: nothing here loads a file unsafely."""
    where = shown(path)
    if kind is Kind.PICKLE:
        what = "is a plain pickle, which can run any code when it is loaded"
        raise unsafe(where, f"{what}; load it where you trust it and save only model.state_dict() with torch.save")
    # Mapping needs a name, and torch judges a file called .safetensors by that name.
    mapped = kind is Kind.TORCH_ZIP and stored and path.suffix != ".safetensors" and _is_utf8(os.fspath(path))
    try:
        with without_known_warnings():
            if mapped:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                return
            with path.open("rb") as stream:
                torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly anything
        raise _refusal(error, where) from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refusal(error: Exception, where: str) -> CheckpointError:
    """Turns torch's many lines into one: what the file wanted, or that it is damaged."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        wanted = next((match[1] for pattern in _WANTED if (match := pattern.search(text))), None)
        if wanted is not None:
            advice = "load it where you trust it and save only model.state_dict(), or leave out `strict` (--strict)"
            return unsafe(where, f"needs {condensed(wanted)}, which could run code, to be loaded; {advice}")
        operand = _OPERAND.search(text)
        if operand is not None and int(operand[1]) in _PROTOCOL_4:
            advice = "save it again with torch.save and its default protocol, or leave out `strict` (--strict)"
            return unsupported(where, f"uses pickle protocol 4 or newer, which torch does not read safely; {advice}")
        if operand is not None:
            text = f"unknown pickle instruction {operand[1]}"
    # The restricted unpickler puts its advice to load unsafely before the reason; the reason follows a colon.
    text = text.rpartition("WeightsUnpickler error:")[2] or text
    return damaged(where, f"is damaged ({condensed(text) or type(error).__name__}); copy or download it again")
