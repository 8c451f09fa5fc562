"""Restoring an archive into a module, a few tensors at a time, so that the model never lies in memory twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from wcompress.checkpoint import state_metadata
from wcompress.codec.digest import TensorsDigest
from wcompress.codec.reading import Archive
from wcompress.directories.opening import FolderArchive, open_archive
from wcompress.errors import ChecksumMismatch, ModuleMismatch

_GROUP_BYTES = 32 << 20
"""Of tensors that are restored together, which is faster where they are small; a larger one is restored alone."""

_MOST_NAMED = 3
_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
_METHODS = ("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict", "get_extra_state")


class IncompatibleKeys(NamedTuple):
    """What `load_into` answers, as `nn.Module.load_state_dict` does.

    Attributes:
        missing_keys: names of the module's tensors that the archive does not hold.
        unexpected_keys: names of the archive's tensors that the module does not hold.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(module: nn.Module, path: str | os.PathLike[str], strict: bool = True) -> IncompatibleKeys:
    """Restore an archive's tensors into a module, as `module.load_state_dict(wcompress.load(path), strict)` would.

    Tensors are restored and copied one after the other, so that memory is needed for the module, its largest tensor
    (or 32 MiB of small ones) and the archive. Every parameter and buffer keeps its dtype, device and `requires_grad`;
    those on the meta device are replaced by tensors on the CPU. Buffers that are in no `state_dict` are left alone, on
    the meta device too. A module that changes how it is loaded, by hooks or methods of its own, is loaded by its own
    `load_state_dict` from all tensors at once.

    Args:
        module: on any device.
        path: the archive.
        strict: missing and unexpected names are an error.

    Returns:
        Missing and unexpected names.

    Raises:
        ModuleMismatch: a tensor's shape is another, or names differ and `strict` is set; nothing was changed.
        ArchiveError: the archive is damaged; where its checksums hold and its tensors do not, the module has changed.

    Example:
        >>> model = torchvision.models.resnet18()  # doctest: +SKIP
        >>> wcompress.load_into(model, "resnet18.pt.wcz")  # doctest: +SKIP
        IncompatibleKeys(missing_keys=[], unexpected_keys=[])
    """
    with open_archive(path) as archive:
        archive.check()
        if _loads_itself(module, archive):
            return _through_state_dict(module, archive, path, strict)
        held = module.state_dict(keep_vars=True)
        keys = IncompatibleKeys(
            [name for name in held if name not in archive], [name for name in archive if name not in held]
        )
        _check_fit(held, archive, path, keys, strict)
        # Of several names of one tensor the last one counts, as where they are loaded in the module's order.
        last = {id(tensor): name for name, tensor in held.items() if name in archive}
        copied = set(last.values())
        complete = not keys.unexpected_keys
        digest = TensorsDigest()
        for name, tensor in _streamed(archive, archive.keys() if complete else [n for n in archive if n in copied]):
            if complete:
                digest.begin(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
                digest.add(tensor)
            if name in copied:
                _copy(module, held[name], tensor)
        # Of a folder `check` compared every file with its own.
        if complete and isinstance(archive, Archive) and digest.digest().hex() != archive.sha256:
            raise ChecksumMismatch(
                f"{os.fspath(path)}: the restored tensors differ from those that were packed (SHA-256"
                f" {digest.digest().hex()}, expected {archive.sha256}); do not use the module, and get a fresh copy"
            )
        return keys


def _streamed(archive: Archive | FolderArchive, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors in order, some restored together; another name of a tensor restores it again."""
    group: list[str] = []
    n_group_bytes = 0
    for name in names:
        n_bytes = archive.get_slice(name).n_bytes
        if group and n_group_bytes + n_bytes > _GROUP_BYTES:
            yield from archive.load(group).items()
            group, n_group_bytes = [], 0
        group.append(name)
        n_group_bytes += n_bytes
    yield from archive.load(group).items()


def _copy(module: nn.Module, target: torch.Tensor, value: torch.Tensor) -> None:
    if not target.is_meta:
        with torch.no_grad():
            target.copy_(value)
        return
    new = value.to(target.dtype, copy=True)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is target:
                if not isinstance(new, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=parameter.requires_grad)
                setattr(part, name, new)
        for name, buffer in part._buffers.items():
            if buffer is target:
                setattr(part, name, new)


def _check_fit(
    held: dict[str, torch.Tensor],
    archive: Archive | FolderArchive,
    path: str | os.PathLike[str],
    keys: IncompatibleKeys,
    strict: bool,
) -> None:
    where = os.fspath(path)
    differ = [
        (name, list(tensor.shape), archive.get_slice(name).get_shape())
        for name, tensor in held.items()
        if name in archive and list(tensor.shape) != archive.get_slice(name).get_shape()
    ]
    if differ:
        name, wanted, found = differ[0]
        others = f", and {len(differ) - 1} more differ" if len(differ) > 1 else ""
        raise ModuleMismatch(
            f"{where}: tensor {name!r} has the shape {found}, the module's has {wanted}{others}; nothing was loaded"
        )
    if strict and (keys.missing_keys or keys.unexpected_keys):
        raise ModuleMismatch(f"{where}: {_differing(keys)}; nothing was loaded, strict=False loads what fits")


def _differing(keys: IncompatibleKeys) -> str:
    parts = []
    for names, text in (
        (keys.missing_keys, "the archive does not hold {} of the module"),
        (keys.unexpected_keys, "the module does not hold {} of the archive"),
    ):
        if names:
            shown = ", ".join(repr(name) for name in names[:_MOST_NAMED])
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            parts.append(text.format(shown + more))
    return "; ".join(parts)


def _loads_itself(module: nn.Module, archive: Archive | FolderArchive) -> bool:
    """Whether loading is more than copying tensors of the same names."""
    for prefix, part in module.named_modules():
        if any(getattr(part, hooks, None) for hooks in _HOOKS):
            return True
        changed = {m for m in _METHODS if getattr(type(part), m) is not getattr(nn.Module, m)}
        if isinstance(part, _NormBase) and type(part)._load_from_state_dict is _NormBase._load_from_state_dict:
            # It only makes up a counter that old checkpoints lack.
            counter = f"{prefix}.num_batches_tracked".lstrip(".")
            if part.num_batches_tracked is None or counter in archive:
                changed.discard("_load_from_state_dict")
        if changed:
            return True
    return False


def _through_state_dict(
    module: nn.Module, archive: Archive | FolderArchive, path: str | os.PathLike[str], strict: bool
) -> IncompatibleKeys:
    state = state_metadata.attached(archive.load(), archive.versions())
    assign = any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    try:
        found = module.load_state_dict(state, strict=strict, assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModuleMismatch(f"{os.fspath(path)}: {reason}") from error
    return IncompatibleKeys(list(found.missing_keys), list(found.unexpected_keys))
