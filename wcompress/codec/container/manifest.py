"""What an archive holds, as JSON under deflate: see docs/format.md, "Manifest"."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from typing import Any

from wcompress.errors import ArchiveError
from wcompress.fidelity import Worst

METHODS = ("paper", "vae", "lossless")
"""Literal, append-only identifiers of how float tensors are coded."""

METHOD_VERSIONS = {"paper": 5, "vae": 5, "lossless": 5}
"""The format version in which each method is written now, where the model is one group."""

GROUPED_VERSION = 6
"""The one in which a model of several groups is written."""

QUICK_VERSION = 7
"""The one in which method `lossless` is written for speed, whether in groups or not."""

CODED_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
)
"""Dtypes whose tensors may be coded or fine; all others are raw."""

_MAX_DIMS = 64  # as torch has it

KINDS = ("coded", "raw", "fine", "tie")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor.

    Attributes:
        name: its name.
        dtype: its torch dtype without "torch.".
        shape: its shape.
        kind: `coded` by the method, `raw` for bit-exact bytes, `fine` for nearly exact ones, `tie` for another name
            of an earlier tensor.
        tie_to: for a tie, the index of that earlier entry, itself no tie.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str = "coded"
    tie_to: int | None = None

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """A whole tensor, or some indices of its first dimension.

    Attributes:
        index: of the tensor's entry.
        start, stop: of the first dimension; 0 and None for the whole.
    """

    index: int
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything about the restored tensors except their values.

    Attributes:
        method: one of `METHODS`.
        source: file name of the model, "" for a dict of tensors.
        tensors: in the order in which they are restored.
        padding: zeros at the end of the last block.
        n_latents: numbers in all latents, 0 where the method has none.
        sqnr_db: as measured when packing, None where it has no meaning.
        metadata: the safetensors metadata of the source.
        refined: the values were trained while they were quantised, or moved to make errors good: they need not be near
            the source's.
        worst: the poorest of what is coded with loss, as measured when packing; None where there is none, or where
            it was not the weights that were to be kept.
        groups: the parts that each group holds, in order; empty where all tensors are one group.
        quick: method `lossless` wrote for speed; not recorded.
    """

    method: str
    source: str
    tensors: tuple[TensorEntry, ...]
    padding: int = 0
    n_latents: int = 0
    sqnr_db: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    refined: bool = False
    worst: Worst | None = None
    groups: tuple[tuple[Part, ...], ...] = ()
    quick: bool = False

    @property
    def version(self) -> int:
        """The format version in which an archive with this manifest is written."""
        if self.quick:
            return QUICK_VERSION
        return GROUPED_VERSION if self.groups else METHOD_VERSIONS[self.method]

    def of_kind(self, kind: str) -> tuple[TensorEntry, ...]:
        """The tensors of one kind, in order."""
        return tuple(entry for entry in self.tensors if entry.kind == kind)

    def to_bytes(self) -> bytes:
        """The `manifest` section."""
        rows: list[list[Any]] = []
        for entry in self.tensors:
            if entry.kind == "tie":
                rows.append([entry.name, entry.tie_to])
            elif entry.kind != "coded":
                rows.append([entry.name, entry.dtype, list(entry.shape), entry.kind])
            else:
                rows.append([entry.name, entry.dtype, list(entry.shape)])
        document: dict[str, Any] = {"method": self.method, "tensors": rows}
        if self.source:
            document["source"] = self.source
        if self.padding:
            document["padding"] = self.padding
        if self.n_latents:
            document["latents"] = self.n_latents
        if self.sqnr_db is not None:
            document["sqnr"] = round(self.sqnr_db, 3)
        if self.worst is not None:
            document["worst"] = self._worst_row()
        if self.metadata:
            document["metadata"] = self.metadata
        if self.refined:
            document["refined"] = True
        if self.groups:
            document["groups"] = [[_part_row(part) for part in parts] for parts in self.groups]
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(text) + packer.flush()

    def _worst_row(self) -> list[float]:
        assert self.worst is not None
        names = [entry.name for entry in self.tensors]
        row: list[float] = [names.index(self.worst.tensor), round(self.worst.sqnr_db, 1)]
        if self.worst.row_tensor is not None and self.worst.row_sqnr_db is not None:
            row += [names.index(self.worst.row_tensor), round(self.worst.row_sqnr_db, 1)]
        return row

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read the `manifest` section.

        Raises:
            ArchiveError: it is malformed.
        """
        try:
            # Deflate grows at most 1032-fold, so the file's own size bounds what is allocated here.
            unpacker = zlib.decompressobj(-15)
            text = unpacker.decompress(data)
            if not unpacker.eof or unpacker.unused_data:
                raise ValueError("the deflate stream does not end where the section does")
            return cls._from_document(json.loads(text.decode()))
        except (
            zlib.error,
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
            RecursionError,
            AttributeError,
        ) as error:
            raise ArchiveError(f"manifest: cannot be read ({error}); the archive is damaged") from error

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Manifest:
        method = document["method"]
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}, update wcompress")
        entries: list[TensorEntry] = []
        for row in document["tensors"]:
            entries.append(_entry(row, entries))
        if len({entry.name for entry in entries}) != len(entries):
            raise ValueError("a tensor name occurs twice")
        sqnr_db = document.get("sqnr")
        if sqnr_db is not None and not math.isfinite(sqnr_db):
            raise ValueError(f"an SQNR of {sqnr_db} dB")
        metadata = document.get("metadata", {})
        return cls(
            method=method,
            source=_expect(document.get("source", ""), str),
            tensors=tuple(entries),
            padding=_expect(document.get("padding", 0), int),
            n_latents=_expect(document.get("latents", 0), int),
            sqnr_db=None if sqnr_db is None else float(sqnr_db),
            metadata={_expect(key, str): _expect(value, str) for key, value in metadata.items()},
            refined=_expect(document.get("refined", False), bool),
            worst=_worst(document.get("worst"), entries),
            groups=_groups(document.get("groups", []), entries),
        )


def _part_row(part: Part) -> int | list[int]:
    return part.index if part.stop is None else [part.index, part.start, part.stop]


def _groups(rows: Any, entries: list[TensorEntry]) -> tuple[tuple[Part, ...], ...]:
    # Every tensor that is no tie is there once, whole or in consecutive slabs, in order.
    groups = tuple(tuple(_part(row) for row in _expect(group, list)) for group in _expect(rows, list))
    if not groups:
        return groups
    expected = [index for index, entry in enumerate(entries) if entry.kind != "tie"]
    done, at = 0, 0  # tensors before the current one; indices of its first dimension before the next slab
    for part in (part for parts in groups for part in parts):
        if done >= len(expected) or part.index != expected[done]:
            raise ValueError(f"tensor {part.index} is not in its place among the groups")
        entry = entries[part.index]
        if part.stop is None and at == 0:
            done += 1
            continue
        n_rows = entry.shape[0] if entry.shape and entry.kind != "fine" else 0
        if part.stop is None or part.start != at or not part.start < part.stop <= n_rows:
            raise ValueError(f"rows {part.start} to {part.stop} of tensor {entry.name!r:.40} do not follow {at}")
        at = part.stop
        if at == n_rows:
            done, at = done + 1, 0
    if done != len(expected) or not all(groups):
        raise ValueError("the groups do not hold every tensor")
    return groups


def _part(row: Any) -> Part:
    if type(row) is int:
        return Part(row)
    index, start, stop = (_expect(number, int) for number in row)
    return Part(index, start, stop)


def _worst(row: Any, entries: list[TensorEntry]) -> Worst | None:
    if row is None:
        return None
    if len(row) not in (2, 4) or not all(math.isfinite(number) for number in row):
        raise ValueError(f"a worst tensor of {row!r:.40}")
    names = [entries[_expect(index, int)].name for index in row[::2] if index >= 0]
    return Worst(names[0], float(row[1]), float(row[3]), names[1]) if len(row) > 2 else Worst(names[0], float(row[1]))


def _entry(row: list[Any], earlier: list[TensorEntry]) -> TensorEntry:
    name = _expect(row[0], str)
    name.encode()  # a lone surrogate is no text
    if len(row) == 2:
        index = _expect(row[1], int)
        if not 0 <= index < len(earlier) or earlier[index].kind == "tie":
            raise ValueError(f"tensor {name!r} is tied to entry {index}, which does not precede it")
        return TensorEntry(name, earlier[index].dtype, earlier[index].shape, "tie", index)
    shape = tuple(_expect(size, int) for size in row[2])
    if min(shape, default=0) < 0 or len(shape) > _MAX_DIMS or math.prod(max(size, 1) for size in shape) >= 2**62:
        raise ValueError(f"tensor {name!r} has the impossible shape {shape}")
    kind = row[3] if len(row) > 3 else "coded"
    if kind in ("coded", "fine") and row[1] not in CODED_DTYPES:
        raise ValueError(f"tensor {name!r} of dtype {row[1]!r} cannot be {kind}")
    if len(row) > 4 or kind not in ("coded", "raw", "fine"):
        raise ValueError(f"tensor {name!r} has the unknown kind {kind!r}, update wcompress")
    return TensorEntry(name, _expect(row[1], str), shape, kind)


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} expected, {value!r:.40} found")
    return value
