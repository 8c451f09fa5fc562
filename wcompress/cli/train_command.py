"""`wcompress train`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click

from wcompress.cli.common import Output, common_options, data_dir_option, figures_table
from wcompress.cli.standard_output import STANDARD_OUTPUT, check_standard_output, to_standard_output

_EPILOG = """Examples:

\b
  wcompress train mnist-fnn -o fnn.pt
  wcompress train lenet-5-caffe -o lenet5.pt --seed 1 --data-dir ~/data
"""


@click.command("train", epilog=_EPILOG)
@click.argument("task", metavar="TASK")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The checkpoint to write; - for standard output.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of everything random."
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the data.  [default: the network's own]")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True, help="Device to train on."
)
@data_dir_option
@common_options
def command(
    out: Output, task: str, output: Path, seed: int, epochs: int | None, device: str, data_dir: Path | None
) -> None:
    """Train the built-in network TASK and save its weights.

    TASK is mnist-fnn, mnist-cnn, mnist-rnn or mnist-lstm, the baselines of a paper, or lenet-300-100 or lenet-5-caffe,
    the networks on which most papers about compression report.

    Where MNIST is not found and cannot be downloaded, scikit-learn's digits scaled to 28×28 take its place; the output
    names the data that were used.
    """
    from wcompress.checkpoint import write_checkpoint
    from wcompress.device import resolve_device
    from wcompress.evaluate import score
    from wcompress.files import atomic_output, check_output
    from wcompress.tasks import BaselineTask, builtin_tasks, load_mnist, train_baseline

    if task not in builtin_tasks():
        raise click.BadParameter(f"{task!r} is not a built-in network; choose from {', '.join(builtin_tasks())}")
    if output == STANDARD_OUTPUT:
        check_standard_output(out, [output])
    else:
        check_output(output, force=out.force)
    torch_device = resolve_device(device)
    data = load_mnist(data_dir)
    start = time.perf_counter()
    with out.progress(f"Training {task} on {data.dataset}") as progress:
        model = train_baseline(task, data=data, seed=seed, epochs=epochs, device=torch_device, progress=progress).cpu()
    seconds = time.perf_counter() - start
    tensors = dict(model.state_dict())
    with contextlib.ExitStack() as stack:
        if output == STANDARD_OUTPUT:
            file = stack.enter_context(to_standard_output("model.pt"))
        else:
            file = stack.enter_context(atomic_output(output, force=out.force))
        write_checkpoint(file, tensors, format="safetensors" if output.suffix == ".safetensors" else "pt")
    baseline = BaselineTask(task, data)
    result = {
        "task": task,
        "dataset": data.dataset,
        "output": str(output),
        "n_params": sum(tensor.numel() for tensor in tensors.values()),
        "score": score(baseline, tensors),
        "n_examples": baseline.n_examples,
        "seed": seed,
        "seconds": seconds,
    }
    rows = [
        ("dataset", str(result["dataset"])),
        ("parameters", f"{result['n_params']:,}"),
        ("score on held-out examples", f"{result['score']:.2f} % of {result['n_examples']:,}"),
        ("time", f"{seconds:.1f} s"),
    ]
    place = "standard output" if output == STANDARD_OUTPUT else output
    out.result(result, figures_table(f"{task} → {place}", rows), err=output == STANDARD_OUTPUT)
