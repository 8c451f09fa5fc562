"""Fetches MNIST into the user cache, whole and verified, or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
import time
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

MNIST_FILES = {
    "train-images-idx3-ubyte": (
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
"""Size in bytes and SHA-256 of each file as it is unzipped: mirrors zip differently."""

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)

_TIMEOUT_S = 5
"""Bounds connecting and every wait for more bytes."""
_DEADLINE_S = 60
"""Bounds one file from one mirror: over a slower line the embedded data serve better."""
_MAX_ZIPPED_BYTES = 32 << 20
_CHUNK_BYTES = 1 << 18


def download_mnist(folder: Path) -> bool:
    """Downloads the files that a folder lacks, each from the first mirror that gives it.

    Args:
        folder: where to put them, gzipped; made if need be.

    Returns:
        Whether the folder has all four now. Any failure is a plain False: there is other data to go on with.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (n_bytes, sha256) in MNIST_FILES.items():
            if (folder / name).exists() or (folder / f"{name}.gz").exists():
                continue
            zipped = _fetch_verified(f"{name}.gz", n_bytes, sha256)
            if zipped is None:
                return False
            _write_whole(folder / f"{name}.gz", zipped)
    except OSError:  # the cache cannot be written
        return False
    return True


def _fetch_verified(name: str, n_bytes: int, sha256: str) -> bytes | None:
    """Gives a gzipped file whose content is the expected one, or None where no mirror has it."""
    for mirror in MIRRORS:
        try:
            zipped = _fetch(mirror + name)
            with gzip.open(io.BytesIO(zipped)) as file:
                content = file.read(n_bytes + 1)  # never more than this, whatever the mirror sent
        except (OSError, EOFError, HTTPException, ValueError, zlib.error):
            continue
        if hashlib.sha256(content).hexdigest() == sha256:
            return zipped
    return None


def _fetch(url: str) -> bytes:
    """Reads a URL, within bounds of time and size."""
    give_up_at = time.monotonic() + _DEADLINE_S
    body = bytearray()
    with urlopen(url, timeout=_TIMEOUT_S) as response:
        while chunk := response.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > _MAX_ZIPPED_BYTES or time.monotonic() > give_up_at:
                raise TimeoutError(f"{url}: the download is too large or too slow")
    return bytes(body)


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears complete or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".download-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
