"""What a pack has achieved, in words."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from wcompress.cli.common import times

if TYPE_CHECKING:
    from wcompress.codec.results import PackResult


def verdict(result: PackResult, *, restorable: bool = True) -> str:
    """Two to four sentences: how much smaller, what was lost, how to restore.

    Args:
        result: of the pack.
        restorable: the archive lies where `result.archive` says, so that a command can name it.
    """
    sentences = [_size(result), _loss(result)]
    if result.task is not None:
        task = result.task
        if task.has_scores:
            scores = (f"{score:.2f} {task.mark}" for score in (task.score_before, task.score_after))
            sentences.append(f"{task.name} scored {' before and '.join(scores)} after on {task.dataset}.")
        alike = []
        if task.output_snr_db is not None:
            alike.append(f"an SNR of {task.output_snr_db:.2f} dB")
        if task.kl_nats is not None:
            alike.append(f"a KL divergence of {task.kl_nats:.3g} nats")
        if alike:
            sentences.append(f"For inputs held out, outputs have {' and '.join(alike)}.")
    if result.dry_run:
        if result.estimate is not None and result.estimate.sampled:
            sentences.append("Estimated from samples of the tensors.")
        sentences.append("Nothing was written.")
    text = " ".join(sentences)
    if result.quality is not None:
        text += f"\nKept at {result.quality.sqnr_db:.1f} dB, the default for {result.quality.reason}."
    if restorable and not result.dry_run:
        text += f"\nRestore with: wcompress unpack {shlex.quote(result.archive)}"
    return text


def _size(result: PackResult) -> str:
    if result.ratio >= 1:
        return f"{times(result.ratio)} smaller."
    if not result.ratio:
        return "Nothing to make smaller: the model holds no numbers."
    beside = result.sections.get("side_files", 0)
    if 2 * beside > result.archive_bytes:
        part = f"side files take {beside:,} of its {result.archive_bytes:,} bytes"
        return f"Not smaller: the output is {times(1 / result.ratio)} the size of the weights: {part}."
    decoder = result.sections.get("decoder", 0)
    why = (
        f": the VAE's decoder takes {decoder:,} of its {result.archive_bytes:,} bytes"
        if result.method == "paper"
        else ""
    )
    return f"Not smaller: the archive is {times(1 / result.ratio)} the size of the model{why}."


def _loss(result: PackResult) -> str:
    if not result.max_abs_error:
        return "Lossless: every value is kept exactly."
    from wcompress.checkpoint.messages import shown

    worst = result.worst
    if result.estimate is not None and result.estimate.sampled and result.sqnr_db is not None:
        # The worst is likely not in the sample.
        return f"Lossy: SQNR of about {result.sqnr_db:.1f} dB over all weights."
    if worst is None:
        return "Lossy." if result.sqnr_db is None else f"Lossy: SQNR {result.sqnr_db:.1f} dB over all weights."
    row = ""
    if worst.row_sqnr_db is not None:
        place = "" if worst.row_tensor in (None, worst.tensor) else f" ({shown(worst.row_tensor)})"
        row = f", every row at least {_floored(worst.row_sqnr_db)} dB{place}"
    return f"Lossy: every tensor keeps at least {_floored(worst.sqnr_db)} dB ({shown(worst.tensor)}){row}."


def _floored(value: float) -> str:
    # What is said to be kept at least must not be rounded up.
    return f"{math.floor(10 * value) / 10:.1f}"
