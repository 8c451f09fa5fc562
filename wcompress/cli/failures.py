"""What an exception means to the user: one line and an exit code."""

from __future__ import annotations

from dataclasses import dataclass

import click

from wcompress import interrupts
from wcompress.errors import WCompressError

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
_OUT_OF_MEMORY = "out of memory; close other programs or use a machine with more memory"


@dataclass(frozen=True)
class Failure:
    """Why a command, or its work on one input, failed.

    Attributes:
        message: one line: what, where, and what to do.
        code: the exit code.
        cause: the exception behind it, for `--verbose`.
    """

    message: str
    code: int
    cause: BaseException | None = None

    def show(self, *, verbose: bool) -> None:
        """Write the line on stderr; with `verbose` its cause first."""
        if verbose and self.cause is not None:
            click.echo(f"caused by {type(self.cause).__name__}: {self.cause}", err=True)
        click.echo(f"wcompress: {self.message}", err=True)

    def to_json(self) -> dict[str, str | int]:
        """The object that `--json` prints in place of a result."""
        return {"error": self.message, "code": self.code}


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception stands for; an internal error where it was not foreseen."""
    match error:
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "wcompress"
            message = f"{' '.join(error.format_message().split())} (see {command} --help)"
            return Failure(message, error.exit_code)
        case click.ClickException():
            return Failure(error.format_message(), error.exit_code)
        case WCompressError():
            return Failure(str(error), error.exit_code, error.__cause__)
        case KeyboardInterrupt() | click.Abort():
            return Failure(interrupts.message(), interrupts.exit_code())
        case OSError():
            return Failure(f"{error.filename or 'output'}: {error.strerror or error}", 2)
    if (
        isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
        or type(error).__name__ == "OutOfMemoryError"
    ):
        return Failure(_OUT_OF_MEMORY, 1)
    return Failure(
        f"internal error ({type(error).__name__}: {' '.join(str(error).split()):.200});"
        " this is a bug in wcompress: run again with -v and report what it prints",
        INTERNAL_ERROR,
    )
