"""A folder that holds a model → the one file in it to read."""

from __future__ import annotations

import shlex
from pathlib import Path

from wcompress.checkpoint.messages import listed, shown, unsupported, usage

_INDEX = ".index.json"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".th", ".pkl", ".pickle", ".pth.tar", ".pt.tar", ".tar")
# What training loops keep beside the weights.
_BESIDE = (
    "training_args",
    "optimizer",
    "scheduler",
    "rng_state",
    "random_states",
    "scaler",
    "trainer_state",
    "sampler",
)
_CONVERT = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"


def model_file(folder: Path) -> Path:
    """Returns the model file in a folder: an index of shards, else the only file, `.safetensors` before a pickle of it.

    Raises:
        UnsupportedCheckpoint: There is none, or no telling which (exit code 2), or the folder is a checkpoint of
            another kind.
    """
    where = shown(folder)
    names = sorted(child.name for child in folder.iterdir() if child.is_file())
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        raise unsupported(
            where,
            "is a folder of torch.distributed.checkpoint; convert it with "
            f"`{_CONVERT} {shlex.quote(where)} model.pt` and pack model.pt",
        )
    if "zero_to_fp32.py" in names:
        command = f"python {shlex.quote(shown(folder / 'zero_to_fp32.py'))} {shlex.quote(where)} model"
        raise unsupported(where, f"is a folder of DeepSpeed ZeRO; convert it with `{command}` and pack what that makes")
    indices = [name for name in names if name.endswith(_INDEX)]
    files = [name for name in names if name.lower().endswith(_SUFFIXES) and not _is_beside(name)]
    safe = [name for name in files if name.lower().endswith(".safetensors")]
    models = {_model_name(name) for name in safe}
    for found in (
        [name for name in indices if ".safetensors" in name],
        [] if safe else indices,
        [name for name in files if name in safe or _model_name(name) not in models],
    ):
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise usage(unsupported(where, f"is a folder with several model files, {listed(found)}; give one of them"))
    inner = sorted(child.name for child in folder.iterdir() if child.is_dir() and _holds_models(child))
    if inner:
        raise usage(
            unsupported(where, f"is a folder without a model file of its own; give one of {listed(inner)} in it")
        )
    looked_for = ", ".join(("*.index.json", *(f"*{suffix}" for suffix in _SUFFIXES[:5])))
    raise usage(unsupported(where, f"is a folder without a model file; looked for {looked_for}"))


def _model_name(name: str) -> str:
    """What the safetensors file and the pickle of one model have in common."""
    return name.lower().partition(".")[0].removeprefix("pytorch_")


def _is_beside(name: str) -> bool:
    return name.startswith(".") or name.lower().startswith(_BESIDE)


def _holds_models(folder: Path) -> bool:
    try:
        names = [child.name for child in folder.iterdir()]
    except OSError:
        return False
    return any(name.endswith((*_SUFFIXES, ".distcp")) and not _is_beside(name) for name in names)
