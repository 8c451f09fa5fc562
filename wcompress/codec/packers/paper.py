"""Packing by method `paper`."""

from __future__ import annotations

from wcompress.codec.encoded import Encoded
from wcompress.codec.methods.paper import encode_paper
from wcompress.codec.packers.job import Job
from wcompress.codec.plan import Plan
from wcompress.progress import part

_EPOCHS_PER_EFFORT = 100  # effort 5, the default, is the paper's limit of 500


def encode_by_paper(plan: Plan, job: Job) -> Encoded:
    """A model, but for what is kept as raw bytes."""
    from wcompress.vae.training import TrainingConfig

    options = job.options
    config = TrainingConfig(
        hidden=options.hidden,
        latent_dim=options.latent_dim,
        epochs=_EPOCHS_PER_EFFORT * options.effort,
        seed=options.seed,
        device=job.device,
    )
    paper = encode_paper(plan.coded, options.block_size, config, part(job.progress, 0.0, 1.0, "training the VAE"))
    payloads = {"decoder": paper.decoder, "latents": paper.latents, "scales": paper.scales}
    return Encoded(plan.entries, payloads, paper.padding, paper.n_latents, paper.history, method="paper")
