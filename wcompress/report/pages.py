"""A reproduction's figures → the sections of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wcompress.report import figures
from wcompress.report.paper import CITATION, LATENT_DIM, PAPER
from wcompress.report.pipeline import BaselineRun
from wcompress.report.render import LATENT_RATIO_TERM, RATIO_TERM, Column, Page, Picture, Section, Table
from wcompress.report.samples import Samples

_MODEL = Column("model", "model")
_BYTES = Column("original_bytes", "model (bytes)", ",")
_ARCHIVE = Column("archive_bytes", "archive (bytes)", ",")
_RATIO = Column("ratio", "true ratio", "ratio")
_LATENT_RATIO = Column("latent_ratio", "latent ratio (the paper's)", "ratio")


def reproduction_page(
    document: Mapping[str, Any], runs: Sequence[BaselineRun], samples: Mapping[int, tuple[BaselineRun, Samples]]
) -> Page:
    """Everything of a reproduction that people read.

    Args:
        document: what goes into `report.json`.
        runs: the models.
        samples: by the number of the paper's figure, a model and its test digits.
    """
    mnist = document["dataset"] == "mnist"
    where = "MNIST" if mnist else document["dataset"]
    machine = document["machine"]
    introduction = [
        f"{CITATION} train a variational autoencoder (VAE) on the weights of one network, cut into blocks of 2048, and"
        f" keep {LATENT_DIM} numbers for each block. This report reproduces the paper's tables and figures: each model"
        " was trained, packed, restored from the archive on disk, and scored before and after.",
        _verdict(runs),
    ]
    if not mnist:
        introduction.append(
            f"All scores are on {where}, not on MNIST. They are not comparable with the paper's, which are shown for"
            " scale."
        )
    sections = [
        _table1(runs),
        _table2(runs, where, mnist),
        _figure2(runs),
        _figure3(runs, machine),
        *(_digits(number, run, shown, where) for number, (run, shown) in sorted(samples.items())),
    ]
    if document["sweep"]:
        sections.append(_sweep(document, where))
    return Page(
        title="Cheng et al., reproduced with every byte counted",
        introduction=tuple(introduction),
        terms=(RATIO_TERM, LATENT_RATIO_TERM),
        facts=(
            ("data", f"{where}, {runs[0].n_examples:,} test examples"),
            ("seed", str(document["seed"])),
            ("effort", f"{document['effort']} ({_max_epochs(runs)} epochs of VAE training at most)"),
            ("machine", f"{machine['platform']}, {machine['cpus']} CPUs"),
            ("software", f"Python {machine['python']}, torch {machine['torch']}"),
        ),
        sections=tuple(sections),
    )


def _title(name: str) -> str:
    return PAPER[name].title


def _max_epochs(runs: Sequence[BaselineRun]) -> int:
    return max((len(run.pack.history.train) for run in runs if run.pack.history), default=0)


def _span(values: Sequence[float], form: str) -> str:
    low, high = (format(value, form).replace("-", "−") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _verdict(runs: Sequence[BaselineRun]) -> str:
    ratios, drops = [run.pack.ratio for run in runs], [run.drop for run in runs]
    latent = [run.pack.latent_ratio for run in runs if run.pack.latent_ratio is not None]
    text = f"In short: the restored models lose {_span(drops, '.2f')} percentage points"
    text += " (below zero: they gain)." if min(drops) < 0 else "."
    if latent:
        text += f" By the paper's accounting the ratio is {_span(latent, '.1f')}×."
    text += f" As files the true ratio is {_span(ratios, '.2f')}×"
    if max(ratios) < 1:
        factors = [1 / ratio for ratio in ratios]
        text += f": every archive is larger than its model, by a factor of {_span(factors, '.1f')}"
    return text + "."


def _table1(runs: Sequence[BaselineRun]) -> Section:
    rows = tuple((_title(run.name), PAPER[run.name].neurons, PAPER[run.name].n_params, run.n_params) for run in runs)
    columns = (
        _MODEL,
        Column("neurons", "neurons"),
        Column("paper_n_params", "parameters, as the paper prints", ","),
        Column("n_params", "parameters here", ","),
    )
    return Section("Table 1: the models", tables=(Table("table1", "Neurons and parameters.", columns, rows),))


def _table2(runs: Sequence[BaselineRun], where: str, mnist: bool) -> Section:
    rows = tuple(
        (
            _title(run.name),
            PAPER[run.name].score_before,
            PAPER[run.name].score_after,
            run.score_before,
            run.score_after,
            run.drop,
            run.pack.latent_ratio,
            run.pack.ratio,
            run.pack.original_bytes,
            run.pack.archive_bytes,
        )
        for run in runs
    )
    columns = (
        _MODEL,
        Column("paper_score_before", "paper: original (%)", ".0f"),
        Column("paper_score_after", "paper: restored (%)", ".0f"),
        Column("score_before", "original (%)", ".2f"),
        Column("score_after", "restored (%)", ".2f"),
        Column("drop", "points lost", ".2f"),
        _LATENT_RATIO,
        _RATIO,
        _BYTES,
        _ARCHIVE,
    )
    caption = f"Test accuracy on {where} of the original and of the restored model, latent of {LATENT_DIM}."
    caption += " “Paper”: as printed there, on MNIST." if not mnist else " “Paper”: as printed there."
    return Section("Table 2: accuracy, and what it costs", tables=(Table("table2", caption, columns, rows),))


def _figure2(runs: Sequence[BaselineRun]) -> Section:
    trained = [(_title(run.name), run.pack.history) for run in runs if run.pack.history]
    rows = []
    for title, history in trained:
        validation = dict(history.validation)
        rows += [(title, epoch, loss, validation.get(epoch)) for epoch, loss in history.train]
    columns = (
        _MODEL,
        Column("epoch", "epoch"),
        Column("train_loss", "training (nats per parameter)", ".4g"),
        Column("validation_loss", "validation (nats per parameter)", ".4g"),
    )
    caption = "Training of the VAE: −ELBO in nats per parameter, without the likelihood's constant."
    table = Table("figure2", caption, columns, tuple(rows), shown=False)
    png = figures.training_curves([(title, history.train, history.validation) for title, history in trained])
    return Section("Figure 2: training the VAE", tables=(table,), pictures=(Picture("figure2", caption, png),))


def _figure3(runs: Sequence[BaselineRun], machine: Mapping[str, Any]) -> Section:
    seconds = [run.pack.history.seconds if run.pack.history else 0.0 for run in runs]
    labels = [_title(run.name) for run in runs]
    rows = tuple((label, run.n_params, s) for label, run, s in zip(labels, runs, seconds, strict=True))
    columns = (
        _MODEL,
        Column("n_params", "parameters", ","),
        Column("vae_seconds", "training the VAE (s)", ".1f"),
    )
    caption = f"Parameters of the models, and wall time of training their VAEs ({machine['cpus']} CPUs)."
    table = Table("figure3", caption, columns, rows, shown=False)
    panels: list[tuple[str, str, Sequence[float], str]] = [
        ("size of the model", "parameters", [run.n_params for run in runs], ",d"),
        ("training its VAE", "wall time (s)", seconds, ".1f"),
    ]
    png = figures.bar_panels(labels, panels)
    return Section("Figure 3: size and training time", tables=(table,), pictures=(Picture("figure3", caption, png),))


def _digits(number: int, run: BaselineRun, samples: Samples, where: str) -> Section:
    name, title = f"figure{number}", _title(run.name)
    rows = tuple((d.group, d.index, d.label, d.original, d.restored) for d in samples.digits)
    columns = (
        Column("group", "group"),
        Column("index", "test image"),
        Column("label", "label"),
        Column("original", "original model"),
        Column("restored", "restored model"),
    )
    n_first = sum(d.group == "first" for d in samples.digits)
    n_later = len(samples.digits) - n_first
    caption = (
        f"The first {n_first} test images of {where} as the original and the restored {title} see them:"
        f" {samples.errors_original} wrong before, {samples.errors_restored} wrong after."
    )
    if n_later:
        caption += f" Below them, the first {n_later} of the later ones on which the two disagree."
    caption += f" Over all {samples.n_test:,} test images they disagree on {samples.n_differing:,}."
    table = Table(name, caption, columns, rows, shown=False)
    picture = Picture(name, caption, figures.digit_grid(samples, f"{title}: original → restored"))
    return Section(f"Figure {number}: test digits, {title}", tables=(table,), pictures=(picture,))


def _sweep(document: Mapping[str, Any], where: str) -> Section:
    points, title = document["sweep"], _title(document["sweep_model"])
    keys = ("latent_dim", "score_before", "score_after", "drop", "latent_ratio", "ratio", "archive_bytes", "sqnr_db")
    rows = tuple(tuple(point[key] for key in keys) for point in points)
    columns = (
        Column("latent_dim", "latent"),
        Column("score_before", "original (%)", ".2f"),
        Column("score_after", "restored (%)", ".2f"),
        Column("drop", "points lost", ".2f"),
        _LATENT_RATIO,
        _RATIO,
        _ARCHIVE,
        Column("sqnr_db", "SQNR (dB)", ".1f"),
    )
    caption = (
        f"{title} with latents of several sizes, scored on {where}. A smaller latent hardly makes the archive smaller:"
        " nearly all of it is the decoder."
    )
    png = figures.latent_sweep(
        [point["latent_dim"] for point in points],
        [point["score_after"] for point in points],
        points[0]["score_before"],
        [(point["latent_ratio"], point["ratio"]) for point in points],
        title,
    )
    return Section(
        "How small may the latent be?",
        tables=(Table("sweep", caption, columns, rows),),
        pictures=(Picture("sweep", f"{title}: accuracy and both ratios by the size of the latent.", png),),
    )
