"""What each part of the model saves: archives of method `vae` without it, at the default quality or another.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.ablation [--real DIR] [--only silero] [--sqnr 11]

Four variants: one frequency table for each scale of whole tensors ("tables"); with a VAE prior that tells each
sub-block's scale ("tables and VAE"); scales and signs told by the weights before ("context"); both, the default
("context and VAE"). All archives are whole files, decoded again. The search for a step ends within 0.05 dB of the SQNR
wanted, so sizes are told at an equal SQNR: a weight costs one bit more for every 6.02 dB. Where no VAE pays for itself
the archive has none, and nothing is saved. Writes `benchmarks/results/ablation.json`.
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
from wcompress.codec.rate_control import search as vae_search

_DB_A_BIT = 6.0206
VARIANTS = ("tables", "tables and VAE", "context", "context and VAE")


@contextlib.contextmanager
def variant_of_the_encoder(variant: str) -> Iterator[None]:
    """Within the block the encoder has what the variant's name says. There is no such option: nobody would want it."""
    config = vae_search.EncoderConfig

    def changed(**fields: Any) -> vae_search.EncoderConfig:
        return config(**{**fields, "use_prior": fields["use_prior"] and "VAE" in variant})

    first = 10 if "tables" in variant else vae_search.FIRST_CONTEXT_EFFORT
    with (
        mock.patch.object(vae_search, "EncoderConfig", changed),
        mock.patch.object(vae_search, "FIRST_CONTEXT_EFFORT", first),
    ):
        yield


def pack_model(tensors: Tensors, variant: str, effort: int, sqnr_db: float | None) -> Packed:
    """The model as an archive, at the default quality where no SQNR is given."""
    with variant_of_the_encoder(variant):
        packed = pack_and_load(tensors, effort=effort, sqnr=sqnr_db)
    assert "VAE" in variant or not packed.n_latents, "the prior was not switched off"
    return packed


def bytes_at_equal_sqnr(n_bytes: float, sqnr_db: float, wanted_db: float, n_weights: int) -> float:
    """Bytes that an archive would have at a slightly other SQNR."""
    return n_bytes + (wanted_db - sqnr_db) / _DB_A_BIT * n_weights / 8


def measure(name: str, tensors: Tensors, effort: int, sqnr_db: float | None) -> dict[str, Any]:
    """One model under every variant."""
    coded = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point() and tensor.ndim >= 2)
    packed = {variant: pack_model(tensors, variant, effort, sqnr_db) for variant in VARIANTS}
    wanted_db = packed[VARIANTS[-1]].sqnr_db
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
        "n_bytes": packed[VARIANTS[-1]].n_bytes,
        "bytes_at_equal_sqnr": n_bytes,
        "n_latents": {variant: one.n_latents or 0 for variant, one in packed.items() if "VAE" in variant},
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
        sizes = "  ".join(f"{variant} {size:,.0f} B" for variant, size in row["bytes_at_equal_sqnr"].items())
        latents = "  ".join(f"{variant} {n:,}" for variant, n in row["n_latents"].items())
        print(f"{name:10} {row['sqnr_db']:6.2f} dB  {sizes}  latents: {latents}", flush=True)
        merge_result("ablation", [row], ["model", "effort", "asked_sqnr_db"])


if __name__ == "__main__":
    main()
