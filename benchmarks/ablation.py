"""What each part of the entropy model saves: archives of method `vae` without it, all else the same.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.ablation [--real DIR] [--packages DIR] [--only silero]

Four variants: one frequency table for each scale of whole tensors ("tables"); with a VAE prior that tells each
sub-block's scale ("tables and VAE"); scales and signs told by the weights before ("context"); both, the default
("context and VAE"). They differ in `PackOptions.parts` alone: number of states, rounds of the search and target are the
same. (Trellis units are longer under class tables, which is in their favour by a few bytes.) Where no class tables
reach a model's weights it has no such variants.

All archives are whole files, decoded again. The search for a step ends within 0.05 dB of the SQNR wanted, so sizes are
told at an equal SQNR: a weight costs one bit more for every 6.02 dB. Seconds are of the processor and of packing alone,
in one thread, after everything ran once; a rough figure on a machine that is not idle. Of real networks beside those of
`--real` the wheels are needed, see `benchmarks.real_networks`; of MiniLM two layers are taken. Writes
`benchmarks/results/ablation.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import merge_result
from benchmarks.models import (
    BASELINES,
    DEFAULT_EFFORT,
    REAL,
    Packed,
    Tensors,
    add_model_arguments,
    argument_parser,
    chosen_models,
    n_params,
    names_from,
    pack_and_load,
)
from benchmarks.real_networks import PART, float_tensors
from wcompress.codec.options import EntropyParts
from wcompress.entropy.tables import TableTooWideError

_DB_A_BIT = 6.0206
PARTS = {
    "tables": EntropyParts(context=False, prior=False),
    "tables and VAE": EntropyParts(context=False),
    "context": EntropyParts(prior=False),
    "context and VAE": EntropyParts(),
}
DEFAULT = "context and VAE"
PACKAGED = ("resemblyzer", "efficientnet-lite0", PART)
"""Networks from packages."""


def pack_model(tensors: Tensors, variant: str, effort: int, sqnr_db: float | None) -> Packed:
    """The model as an archive, at the default quality where no SQNR is given.

    Raises:
        TableTooWideError: no class tables reach its weights.
    """
    packed = pack_and_load(tensors, effort=effort, sqnr=sqnr_db, parts=PARTS[variant], threads=1)
    assert PARTS[variant].prior or not packed.n_latents, "the prior was not switched off"
    return packed


def bytes_at_equal_sqnr(n_bytes: float, sqnr_db: float, wanted_db: float, n_weights: int) -> float:
    """Bytes that an archive would have at a slightly other SQNR."""
    return n_bytes + (wanted_db - sqnr_db) / _DB_A_BIT * n_weights / 8


def measure(name: str, tensors: Tensors, effort: int, sqnr_db: float | None, variants: Sequence[str]) -> dict[str, Any]:
    """One model under some variants, the default among them."""
    coded = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point() and tensor.ndim >= 2)
    packed: dict[str, Packed] = {}
    for variant in variants:
        try:
            packed[variant] = pack_model(tensors, variant, effort, sqnr_db)
        except TableTooWideError as error:
            print(f"{name}, {variant}: left out, {error}")
    wanted_db = packed[DEFAULT].sqnr_db
    assert wanted_db is not None
    n_bytes: dict[str, float] = {}
    for variant, one in packed.items():
        assert one.sqnr_db is not None
        n_bytes[variant] = bytes_at_equal_sqnr(one.n_bytes, one.sqnr_db, wanted_db, coded)
    return {
        "model": name,
        "effort": effort,
        "asked_sqnr_db": sqnr_db,
        "n_params": n_params(tensors),
        "sqnr_db": wanted_db,
        "n_bytes": packed[DEFAULT].n_bytes,
        "bytes_at_equal_sqnr": n_bytes,
        "pack_cpu_s": {variant: one.pack_cpu_s for variant, one in packed.items()},
        "n_latents": {variant: one.n_latents or 0 for variant, one in packed.items() if PARTS[variant].prior},
    }


def _models(arguments: argparse.Namespace) -> Iterator[tuple[str, Tensors]]:
    chosen = arguments.only
    arguments.only = [name for name in chosen if name not in PACKAGED]
    yield from chosen_models(arguments)
    for name in chosen:
        if name in PACKAGED and arguments.packages is None:
            print(f"{name}: skipped; --packages is not given")
        elif name in PACKAGED:
            yield name, float_tensors(arguments.packages, name)


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.ablation --only mnist-fnn,silero --real models/")
    add_model_arguments(parser, (*BASELINES, *REAL, *PACKAGED))
    parser.add_argument("--packages", type=Path, help="folder of the wheels")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="2 to 9 (default: %(default)s)")
    parser.add_argument("--sqnr", type=float, help="in dB, met by one step for all (default: the default quality)")
    parser.add_argument("--variants", type=names_from(tuple(PARTS)), default=list(PARTS), metavar="NAME[,NAME]")
    arguments = parser.parse_args()
    warmed_up = False
    for name, tensors in _models(arguments):
        if not warmed_up:
            largest = max(tensors.values(), key=lambda tensor: tensor.numel())
            pack_model({"w": largest.reshape(len(largest), -1)[:64]}, DEFAULT, arguments.effort, None)
            warmed_up = True
        row = measure(name, tensors, arguments.effort, arguments.sqnr, arguments.variants)
        sizes = "  ".join(
            f"{variant} {size:,.0f} B in {row['pack_cpu_s'][variant]:.1f} s"
            for variant, size in row["bytes_at_equal_sqnr"].items()
        )
        latents = "  ".join(f"{variant} {n:,}" for variant, n in row["n_latents"].items())
        print(f"{name:18} {row['sqnr_db']:6.2f} dB  {sizes}  latents: {latents}", flush=True)
        merge_result("ablation", [row], ["model", "effort", "asked_sqnr_db"])


if __name__ == "__main__":
    main()
