"""wcompress packs the checkpoint of a neural network into one file several times smaller, and restores it.

    import wcompress

    result = wcompress.pack("model.pt", "model.wcz")
    state_dict = wcompress.load("model.wcz")
    with wcompress.open("model.wcz") as archive:
        weight = archive.get_tensor("fc.weight")

Names are imported when first used, so that `import wcompress` itself does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wcompress.api import pack as pack
    from wcompress.codec.options import PackOptions as PackOptions
    from wcompress.codec.reading import Archive as Archive
    from wcompress.codec.results import InspectResult as InspectResult
    from wcompress.codec.results import PackResult as PackResult
    from wcompress.codec.results import VerifyResult as VerifyResult
    from wcompress.directories.loading import load_into as load_into
    from wcompress.directories.opening import FolderArchive as FolderArchive
    from wcompress.directories.opening import inspect as inspect
    from wcompress.directories.opening import load as load
    from wcompress.directories.opening import open_archive as open_archive
    from wcompress.directories.opening import verify as verify
    from wcompress.directories.packing import join_folder as join_folder
    from wcompress.directories.unpacking import unpack as unpack
    from wcompress.errors import WCompressError as WCompressError
    from wcompress.evaluate import evaluate as evaluate

    open = open_archive

_HOMES = {
    "Archive": "wcompress.codec.reading:Archive",
    "InspectResult": "wcompress.codec.results:InspectResult",
    "FolderArchive": "wcompress.directories.opening:FolderArchive",
    "PackOptions": "wcompress.codec.options:PackOptions",
    "PackResult": "wcompress.codec.results:PackResult",
    "VerifyResult": "wcompress.codec.results:VerifyResult",
    "WCompressError": "wcompress.errors:WCompressError",
    "evaluate": "wcompress.evaluate:evaluate",
    "inspect": "wcompress.directories.opening:inspect",
    "join_folder": "wcompress.directories.packing:join_folder",
    "load": "wcompress.directories.opening:load",
    "load_into": "wcompress.directories.loading:load_into",
    "open": "wcompress.directories.opening:open_archive",
    "pack": "wcompress.api:pack",
    "unpack": "wcompress.directories.unpacking:unpack",
    "verify": "wcompress.directories.opening:verify",
}

__all__ = [
    *_HOMES,
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wcompress' has no attribute {name!r}")
    module, attribute = _HOMES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
