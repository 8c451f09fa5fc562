"""The command line: parse, call the library, render. torch is imported only by what needs it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import sys
from pathlib import Path

import click

from wcompress import __version__, interrupts
from wcompress.errors import WCompressError

_COMMANDS = {
    "pack": "Make an archive of a model.",
    "unpack": "Restore a model from an archive.",
    "inspect": "Show what is in an archive, byte by byte, without decoding it.",
    "verify": "Check an archive's checksums and decode it in full.",
    "eval": "Score a checkpoint, or what an archive restores to.",
    "train": "Train a built-in baseline.",
    "report": "Show a model's compression ratio against its accuracy.",
    "reproduce": "Write the paper's tables and figures, with the true ratio beside them.",
    "demo": "Run the main job on embedded data, in a minute or two.",
}

_ALLOCATIONS_BEFORE_GARBAGE = 500_000
_OUT_OF_MEMORY = "out of memory; close other programs or use a machine with more"
_INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h


class _LazyGroup(click.Group):
    """Imports a command's module when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"wcompress.cli.{cmd_name}_command").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: wcompress pack model.pt && wcompress unpack model.pt.wcz",
)
@click.version_option(__version__, prog_name="wcompress", message="%(prog)s %(version)s")
def cli() -> None:
    """Make a trained network's weights as small as they can honestly be, and give them back."""


def main() -> None:
    """Run the command line and exit with its code: see `wcompress.errors` and the README."""
    # GNU OpenMP's idle threads spin for long by default, which makes training many times slower wherever anything else
    # runs on the same cores; not at all would make it slower on idle ones. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # What is imported stays, and there is much of it: to look through it for garbage took a tenth of a short command.
    gc.set_threshold(_ALLOCATIONS_BEFORE_GARBAGE)
    interrupts.install()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # its descriptor is closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for the life of the process
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a check failed, 2 usage, 3 unsafe or unsupported input, 4 corrupt archive,
        130 interrupted, 143 terminated.
    """
    try:
        try:
            code = _run(arguments)
        finally:
            interrupts.check()  # whatever the interruption became on its way
    except KeyboardInterrupt:
        interrupts.finish()
        _say(interrupts.message())
        code = interrupts.exit_code()
    finally:
        interrupts.finish()
    return code


def _run(arguments: list[str]) -> int:
    verbose = False
    try:
        with cli.make_context("wcompress", list(arguments)) as context:
            verbose = any(a in ("-v", "--verbose") for a in arguments)
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "wcompress"
        return _fail(f"{' '.join(error.format_message().split())} (see {command} --help)", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except WCompressError as error:
        if verbose and error.__cause__ is not None:
            click.echo(f"caused by {type(error.__cause__).__name__}: {error.__cause__}", err=True)
        return _fail(str(error), error.exit_code)
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing, and keep Python from saying it at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}", 2)
    except MemoryError:
        return _fail(_OUT_OF_MEMORY, 1)
    except Exception as error:
        if "can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
            return _fail(_OUT_OF_MEMORY, 1)
        if verbose:
            raise
        return _fail(
            f"internal error ({type(error).__name__}: {' '.join(str(error).split()):.200});"
            " this is a bug in wcompress: run again with -v and report what it prints",
            _INTERNAL_ERROR,
        )
    return 0


def _fail(message: str, exit_code: int) -> int:
    interrupts.check()  # an error may be what an interruption became on its way
    _say(f"wcompress: {message}")
    return exit_code


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(line, err=True)
