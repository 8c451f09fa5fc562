"""The command line: parse, call the library, render. torch is imported only by what needs it."""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib
import io
import json
import os
import sys
from pathlib import Path

import click

from wcompress import __version__, ahead, interrupts
from wcompress.cli.failures import INTERNAL_ERROR, failure_of

_COMMANDS = {
    "pack": "Make an archive of a model.",
    "join": "Put the parts of a folder together that `pack --shard` packed.",
    "unpack": "Restore a model from an archive.",
    "inspect": "Show what is in an archive, byte by byte, without decoding it.",
    "verify": "Check an archive's checksums and decode it in full.",
    "eval": "Score a checkpoint, or the model that an archive restores to.",
    "train": "Train a built-in network.",
    "report": "Measure ratio against accuracy at several settings.",
    "reproduce": "Write the paper's tables and figures, with the true ratio beside them.",
    "demo": "Train, pack and restore four small networks on embedded data.",
    "completion": "Print the script that lets a shell complete commands and options.",
}

COMPLETE_VARIABLE = "_WCOMPRESS_COMPLETE"
"""Set by a shell's completion script when it asks what may come next."""

_ALLOCATIONS_BEFORE_GARBAGE = 500_000


class _LazyGroup(click.Group):
    """Imports a command's module when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"wcompress.cli.{cmd_name}_command").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in _COMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if Path(name).exists():
            command = "unpack" if name.endswith(".wcz") else "pack"
            raise click.UsageError(f"No such command {name!r}. Did you mean 'wcompress {command} {name}'?", ctx)
        near = difflib.get_close_matches(name.lower(), _COMMANDS, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else f" Commands: {', '.join(_COMMANDS)}."
        raise click.UsageError(f"No such command {name!r}.{hint}", ctx)

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
    """Pack the checkpoint of a neural network into one file several times smaller, and restore it.

    For storage and download; a restored model is as large and as fast as the original. Lossy by default.
    """


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
    if instruction := os.environ.get(COMPLETE_VARIABLE):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "wcompress", COMPLETE_VARIABLE, instruction))
    ahead.allow()
    try:
        code = run(sys.argv[1:])
    finally:
        ahead.finish()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a check failed, 2 usage, 3 unsafe or unsupported input, 4 corrupt archive,
        130 interrupted, 143 terminated. Of several inputs the highest.
    """
    verbose, as_json = (any(name in arguments for name in names) for names in (("-v", "--verbose"), ("--json",)))
    try:
        try:
            with cli.make_context("wcompress", list(arguments)) as context:
                cli.invoke(context)
            sys.stdout.flush()
        finally:
            interrupts.check()  # whatever an interruption became on its way
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing, and keep Python from saying it at exit.
        _discard_stdout()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        interrupts.finish()
        failure = failure_of(error)
        if failure.code == INTERNAL_ERROR and verbose:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _discard_stdout()
        with contextlib.suppress(OSError):
            failure.show(verbose=verbose)
            if as_json:
                click.echo(json.dumps(failure.to_json()))
        return failure.code
    finally:
        interrupts.finish()
    return 0


def _discard_stdout() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
