"""Commands that take several inputs: each is worked on alone, and one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wcompress import interrupts
from wcompress.cli.common import Output
from wcompress.cli.failures import INTERNAL_ERROR, Failure, failure_of
from wcompress.errors import OptionError

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Answer:
    """What a command has to say about one input.

    Attributes:
        document: the object that `--json` prints.
        shown: the same for a person.
        exit_code: 0, or that of a check that failed and was reported already.
    """

    document: dict[str, Any]
    shown: Sequence[RenderableType] = field(default_factory=list)
    exit_code: int = 0


def answer_each(out: Output, inputs: Sequence[Path], work: Callable[[Path], Answer], *, err: bool = False) -> None:
    """Work on every input and print what comes of it.

    One input gives its object with `--json`, several give `{"results": [objects in the order of the inputs]}`, with
    `{"input": PATH, "error": LINE, "code": CODE}` for each that failed.

    Args:
        out: where it goes.
        inputs: one or more.
        work: on one of them.
        err: results for a person go to stderr, since stdout carries the output itself.

    Raises:
        click.exceptions.Exit: with the highest exit code of all, where one is not 0.
        BaseException: what `work` raised, where there is one input.
    """
    if len(inputs) == 1:
        answer = work(inputs[0])
        out.result(answer.document, *answer.shown, err=err)
        codes = [answer.exit_code]
    else:
        documents: list[dict[str, Any]] = []
        codes = []
        for path in inputs:
            done = _answer_or_failure(out, path, work)
            if isinstance(done, Failure):
                documents.append({"input": str(path), **done.to_json()})
                codes.append(done.code)
                continue
            documents.append(done.document)
            codes.append(done.exit_code)
            if not out.as_json:
                out.result({}, *done.shown, err=err)
        if out.as_json:
            out.result({"results": documents})
    if max(codes):
        raise click.exceptions.Exit(max(codes))


def _answer_or_failure(out: Output, path: Path, work: Callable[[Path], Answer]) -> Answer | Failure:
    try:
        return work(path)
    except (BrokenPipeError, click.exceptions.Exit):
        raise
    except Exception as error:
        interrupts.check()  # which the error may have been
        failure = failure_of(error)
        if failure.code == INTERNAL_ERROR and out.verbose:
            raise
        failure.show(verbose=out.verbose)
        return failure


def outputs_of(inputs: Sequence[Path], output: Path | None, default: Callable[[Path], Path]) -> dict[Path, Path | None]:
    """Where the output of each input goes.

    Args:
        inputs: one or more.
        output: what `-o` names: a file for one input, an existing folder for several.
        default: the output of an input when there is no `-o`.

    Returns:
        Input → output; None where the library is to choose.

    Raises:
        OptionError: an input is named twice, two outputs would be one file, or `-o` is no folder.
    """
    if len(inputs) == 1:
        return {inputs[0]: output}
    for number, path in enumerate(inputs):
        if path in inputs[:number]:
            raise OptionError(f"{path}: named twice; name each input once")
    if output is None:
        chosen = {path: default(path) for path in inputs}
    elif output.is_dir():
        chosen = {path: output / default(path).name for path in inputs}
    else:
        raise OptionError(f"-o {output}: {len(inputs)} inputs need an existing folder here; create it, or leave -o out")
    for path, target in chosen.items():
        other = next((other for other, theirs in chosen.items() if theirs == target and other != path), None)
        if other is not None:
            raise OptionError(f"{path} and {other}: both would become {target}; run them one at a time with -o")
    return dict(chosen)
