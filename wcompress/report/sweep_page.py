"""A sweep's figures → its page, table and picture."""

from __future__ import annotations

from wcompress.blocks import BLOCK_SIZE
from wcompress.codec.options import PackOptions
from wcompress.report import figures, render
from wcompress.report.figures import Mark
from wcompress.report.paper import CITATION, LATENT_DIM, PAPER
from wcompress.report.render import Cell, Column, Page, Picture, Section, Table
from wcompress.report.rows import finite_marks
from wcompress.report.sweep_results import MeanReport, Report

_SPREAD_OF = {"archive_bytes": "file", "ratio": "ratio", "score": "score", "drop": "lost"}
"""Figures whose least and most the table has, and what the columns are called."""


def sweep_page(result: Report | MeanReport, options: PackOptions) -> Page:
    """Everything of a sweep that people read.

    Args:
        result: what was found.
        options: how it was packed, for everything that the settings do not vary.
    """
    counts_latents = any(row.figures["latent_ratio"] is not None for row in result.rows)
    several = result.n_models > 1
    names = render.sentence_list(list(result.model_names))
    n_examples = f", {result.n_examples:,} test examples" if result.n_examples else ""
    introduction: tuple[str, ...] = (
        f"How small {names} can be made, and how well {'they then score' if several else 'it then scores'} in the task"
        f" {result.task}. Every archive and every baseline was written, decoded from its bytes, and scored.",
    )
    if several:
        introduction += (
            f"Figures are means over the {result.n_models} models, with their range. A setting at which one of"
            " them cannot be packed is left out.",
        )
    if options.method == "paper":
        introduction += (f"The method is that of {CITATION}.",)
    if result.peers:
        introduction += ("Peers were not measured here; their points are those of the file given with --peers.",)
    front = [f"{m.label} ({render.times(m.ratio)}, {m.score:.2f} %)" for m in result.pareto]
    original = f"The originals score {result.score_before:.2f} % on average"
    if not several:
        original = f"The original scores {result.score_before:.2f} %"
    paragraphs = [f"{original}. Nothing here beats {render.sentence_list(front)}."]
    ratios = [row.mark.ratio for row in result.rows if row.kind == "archive"]
    if ratios and max(ratios) < 1:
        paragraphs.append("Every one of the archives is larger than the model itself: their true ratio is below 1.")
    terms = (render.RATIO_TERM, render.LATENT_RATIO_TERM) if counts_latents else (render.RATIO_TERM,)
    each = " each" if several else ""
    return Page(
        title=f"{names}: ratio against accuracy",
        introduction=introduction,
        terms=terms,
        facts=(
            ("models" if several else "model", f"{names}, {result.original_bytes:,} bytes of tensors{each}"),
            ("task", result.task),
            ("data", f"{result.dataset}{n_examples}"),
            ("method", f"{result.method}, effort {options.effort}, seed {options.seed}"),
        ),
        sections=(Section("Result", tuple(paragraphs), (_table(result, counts_latents),), (_picture(result),)),),
    )


def _table(result: Report | MeanReport, counts_latents: bool) -> Table:
    best = {(mark.ratio, mark.score) for mark in result.pareto}
    spread = [name for name in _SPREAD_OF if any(name in row.spreads for row in result.rows)]
    shown = [
        Column("archive_bytes", "file (bytes)", ",.0f" if result.n_models > 1 else ","),
        Column("ratio", "true ratio", "ratio"),
        Column("latent_ratio", "latent ratio", "ratio"),
        Column("score", "score (%)", ".2f"),
        Column("drop", "points lost", ".2f"),
        Column("sqnr_db", "SQNR (dB)", ".1f"),
    ]
    if not counts_latents:
        shown = [column for column in shown if column.key != "latent_ratio"]
    columns = [Column("kind", "kind"), Column("name", "setting")]
    for column in shown:
        columns.append(column)
        if column.key in spread:
            word = _SPREAD_OF[column.key]
            columns.append(Column(f"{column.key}_least", f"{word}, least", column.form))
            columns.append(Column(f"{column.key}_most", f"{word}, most", column.form))
    columns.append(Column("pareto", "best"))
    rows: list[tuple[Cell, ...]] = []
    for row in result.rows:
        cells: list[Cell] = [row.kind, row.name]
        for column in shown:
            cells.append(row.figures[column.key])
            if column.key in spread:
                cells += row.spreads.get(column.key, (None, None))
        rows.append((*cells, "yes" if (row.mark.ratio, row.mark.score) in best else ""))
    caption = f"“best”: no other has a higher true ratio at no lower a score. Scores on {result.dataset}."
    if result.n_models > 1:
        caption += f" Means over {result.n_models} models, with their range."
    return Table("report", caption, tuple(columns), tuple(rows))


def _picture(result: Report | MeanReport) -> Picture:
    archives = [row for row in result.rows if row.kind == "archive"]
    latent = finite_marks([mark for row in archives if (mark := row.latent_mark) is not None])
    printed = PAPER.get(result.task)
    paper = None
    if printed is not None and result.method != "paper" and result.dataset == "mnist":
        paper = Mark("as the paper prints", BLOCK_SIZE / LATENT_DIM, printed.score_after)
    where = f"{render.sentence_list(list(result.model_names))} on {result.dataset}"
    subject = f"{result.n_models} trainings of one network" if result.n_models > 1 else result.model_names[0]
    png = figures.ratio_against_score(
        finite_marks([row.mark for row in archives if not row.refined]),
        latent,
        finite_marks([row.mark for row in result.rows if row.kind == "baseline"]),
        result.pareto,
        result.score_before,
        title=f"{subject} on {result.dataset}\nevery byte counted",
        method=result.method,
        refined=finite_marks([row.mark for row in archives if row.refined]),
        peers=finite_marks([row.mark for row in result.rows if row.kind == "peer"]),
        paper=paper,
        n_models=result.n_models,
    )
    caption = f"True ratio, every byte counted, against score of {where}."
    if result.n_models > 1:
        caption += f" Points are means over {result.n_models} models, error bars show the range."
    elif any(row.spreads for row in result.rows):
        caption += " Error bars of peers show the range that their file gives."
    if latent:
        caption += " Hollow: the same archives by the paper's accounting, without the decoder; these are no file sizes."
    if paper is not None:
        caption += (
            f" The paper's own point, {render.times(paper.ratio)}, counts latents only, as its authors count; it is no"
            " file size either."
        )
    return Picture("figure", caption, png)
