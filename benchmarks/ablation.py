"""What the VAE prior saves: archives of method `vae` with it and without, at the default quality or another.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.ablation [--real DIR] [--only silero] [--sqnr 11]

Both archives are whole files, decoded again. The search for a step ends within 0.05 dB of the SQNR wanted, so the
saving is told at an equal SQNR: a weight costs one bit more for every 6.02 dB. Where no VAE pays for itself the archive
has none, and nothing is saved. Writes `benchmarks/results/ablation.json`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

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
    pack_and_load,
)
from wcompress.codec import vae_search

_DB_A_BIT = 6.0206


@contextlib.contextmanager
def without_prior() -> Iterator[None]:
    """Within the block the encoder never considers a VAE. There is no such option: nobody would want it."""
    config = vae_search.EncoderConfig

    def changed(**fields: Any) -> vae_search.EncoderConfig:
        return config(**{**fields, "use_prior": False})

    with mock.patch.object(vae_search, "EncoderConfig", changed):
        yield


def pack_model(tensors: Tensors, use_prior: bool, effort: int, sqnr_db: float | None) -> Packed:
    """The model as an archive, at the default quality where no SQNR is given."""
    with contextlib.nullcontext() if use_prior else without_prior():
        packed = pack_and_load(tensors, effort=effort, sqnr=sqnr_db)
    assert use_prior or not packed.n_latents, "the prior was not switched off"
    return packed


def bytes_at_equal_sqnr(n_bytes: float, sqnr_db: float, wanted_db: float, n_weights: int) -> float:
    """Bytes that an archive would have at a slightly other SQNR."""
    return n_bytes + (wanted_db - sqnr_db) / _DB_A_BIT * n_weights / 8


def measure(name: str, tensors: Tensors, effort: int, sqnr_db: float | None) -> dict[str, Any]:
    """One model, with and without."""
    with_it = pack_model(tensors, True, effort, sqnr_db)
    without = pack_model(tensors, False, effort, sqnr_db)
    assert with_it.sqnr_db is not None
    assert without.sqnr_db is not None
    coded = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point() and tensor.ndim >= 2)
    fair = bytes_at_equal_sqnr(without.n_bytes, without.sqnr_db, with_it.sqnr_db, coded)
    return {
        "model": name,
        "effort": effort,
        "asked_sqnr_db": sqnr_db,
        "n_params": n_params(tensors),
        "n_bytes": with_it.n_bytes,
        "sqnr_db": with_it.sqnr_db,
        "n_latents": with_it.n_latents or 0,
        "without_prior_bytes": without.n_bytes,
        "without_prior_sqnr_db": without.sqnr_db,
        "without_prior_bytes_at_equal_sqnr": fair,
        "saving_percent": 100 * (1 - with_it.n_bytes / fair),
    }


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.ablation --only mnist-fnn,silero --real models/")
    add_model_arguments(parser, (*BASELINES, *REAL))
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="2 to 9 (default: %(default)s)")
    parser.add_argument("--sqnr", type=float, help="in dB, met by one step for all (default: the default quality)")
    arguments = parser.parse_args()
    for name, tensors in chosen_models(arguments):
        row = measure(name, tensors, arguments.effort, arguments.sqnr)
        print(
            f"{name:10} {row['sqnr_db']:6.2f} dB  with {row['n_bytes']:9,} B"
            f"  without {row['without_prior_bytes']:9,} B at {row['without_prior_sqnr_db']:.2f} dB,"
            f" {row['without_prior_bytes_at_equal_sqnr']:11,.0f} B at an equal SQNR"
            f"  saving {row['saving_percent']:.2f} %  {row['n_latents']:,} latents",
            flush=True,
        )
        merge_result("ablation", [row], ["model", "effort", "asked_sqnr_db"])


if __name__ == "__main__":
    main()
