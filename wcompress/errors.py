"""Every exception that wcompress raises on purpose.

The tree::

    WCompressError
    ├── CheckpointError          a model file that cannot be read or written
    │   ├── UnsafeCheckpoint     it wants code to be run while it is read
    │   └── UnsupportedCheckpoint  it is some other kind of file, or holds something no tensor format keeps
    ├── ArchiveError             an archive that cannot be read
    │   ├── BadMagic             not a wcompress archive
    │   ├── UnsupportedVersion   written by a newer wcompress
    │   ├── Truncated            its end is missing
    │   └── ChecksumMismatch     its bytes, or what they restore to, have changed
    ├── TargetUnreachable        no archive meets what was asked for
    ├── ModuleMismatch           an archive whose tensors do not fit a module; also a RuntimeError
    ├── TaskError                a task that cannot be loaded, or does not fit the model
    ├── OptionError              options that contradict each other, or have no such value
    └── OutputError              an output that exists already, or cannot be written

Messages are one line: where, what was expected and found, and what to do.
Each class names the exit code of the command line in `exit_code`.
"""

from __future__ import annotations


class WCompressError(Exception):
    """Base of everything wcompress raises on purpose."""

    exit_code = 1


class CheckpointError(WCompressError):
    """A model file cannot be read or written."""

    exit_code = 3


class UnsafeCheckpoint(CheckpointError):
    """Reading the file would run code that it carries."""


class UnsupportedCheckpoint(CheckpointError):
    """The file is of another kind, or holds something that cannot be stored."""


class ArchiveError(WCompressError):
    """An archive cannot be read."""

    exit_code = 4


class BadMagic(ArchiveError):
    """The file does not start as a wcompress archive does."""


class UnsupportedVersion(ArchiveError):
    """The archive was written by a newer wcompress."""


class Truncated(ArchiveError):
    """The end of the archive is missing."""


class ChecksumMismatch(ArchiveError):
    """The archive's bytes, or the tensors restored from them, differ from what was written."""


class TargetUnreachable(WCompressError):
    """No archive meets the target that was asked for."""

    exit_code = 1


class ModuleMismatch(WCompressError, RuntimeError):
    """An archive's tensors do not fit a module; also a `RuntimeError`, as `load_state_dict` raises."""

    exit_code = 2


class TaskError(WCompressError):
    """A task cannot be loaded, or does not fit the model."""

    exit_code = 2


class OptionError(WCompressError):
    """Options contradict each other or are out of range."""

    exit_code = 2


class OutputError(WCompressError):
    """An output exists already or cannot be written."""

    exit_code = 2
