"""Plain numbers → PNG bytes.

Drawn with matplotlib's object interface: no window system, no global state of pyplot. Colours are Okabe and Ito's,
which stay apart for colour-blind readers, and no meaning rests on colour alone.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wcompress.report.samples import Digit, Samples

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6B6B6B"
PURPLE, SKY = "#CC79A7", "#56B4E9"
_BASELINE_MARKERS = "s^vDPX"
_PEER_MARKERS = "<>dHp"
_STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,  # names may hold a dollar sign
    "text.usetex": False,
}

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Mark:
    """A point to draw.

    Attributes:
        label: next to it.
        ratio: horizontal, positive.
        score: vertical, percent.
        ratio_spread, score_spread: the least and the most, where it is a mean; drawn as error bars.
    """

    label: str
    ratio: float
    score: float
    ratio_spread: tuple[float, float] | None = None
    score_spread: tuple[float, float] | None = None


def training_curves(models: Sequence[tuple[str, Curve, Curve]]) -> bytes:
    """A panel for each model: title, training curve, validation curve; −ELBO in nats per parameter over epochs."""
    n_columns = min(2, len(models))
    n_rows = -(-len(models) // n_columns)
    with drawing(width=4.6 * n_columns, height=3.2 * n_rows) as (figure, png):
        for position, (title, train, validation) in enumerate(models, start=1):
            axes = figure.add_subplot(n_rows, n_columns, position)
            for curve, name, colour, line in ((train, "training", BLUE, "-"), (validation, "validation", ORANGE, "--")):
                if curve:
                    marker = "" if len(curve) > 1 else "o"
                    axes.plot(*zip(*curve, strict=True), line, color=colour, label=name, linewidth=1.8, marker=marker)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.set_ylabel("loss (nats per parameter)")
            if all(value > 0 for _, value in (*train, *validation)):
                axes.set_yscale("log")
                plain_log_ticks(axes.yaxis)
            axes.legend()
    return png.getvalue()


def bar_panels(labels: Sequence[str], panels: Sequence[tuple[str, str, Sequence[float], str]]) -> bytes:
    """Bars side by side.

    Args:
        labels: below the bars.
        panels: title, axis label, a value for each label, and the format of the value above its bar.
    """
    with drawing(width=4.8 * len(panels), height=3.6) as (figure, png):
        for position, (title, axis, values, form) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), position)
            bars = axes.bar(list(labels), list(values), color=BLUE if position % 2 else GREEN, width=0.6)
            axes.bar_label(bars, labels=[format(value, form) for value in values], padding=2)
            axes.margins(y=0.12)
            axes.grid(visible=False, axis="x")
            axes.set_title(title)
            axes.set_ylabel(axis)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    return png.getvalue()


def latent_sweep(latent_dims: Sequence[int], scores: Sequence[float], before: float, ratios: Any, name: str) -> bytes:
    """Score over latent size, and both ratios over latent size.

    Args:
        latent_dims: numbers in a latent, any order.
        scores: percent, for each.
        before: score of the original, percent.
        ratios: for each, `(latent ratio or None, true ratio)`.
        name: of the model.
    """
    from matplotlib.ticker import NullLocator

    with drawing(width=10, height=3.8) as (figure, png):
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        right.set_yscale("log")
        left.axhline(before, color=GREY, linestyle="--", label=f"original ({before:.2f} %)")
        left.plot(latent_dims, scores, "o-", color=BLUE, label="restored")
        left.set_ylabel("test accuracy (%)")
        left.set_title(f"{name}: accuracy")
        right.plot(latent_dims, [true for _, true in ratios], "o-", color=BLUE, label="true ratio (every byte)")
        counted = [(dim, latent) for dim, (latent, _) in zip(latent_dims, ratios, strict=True) if latent is not None]
        if counted:
            x, y = zip(*counted, strict=True)
            right.plot(x, y, "o:", color=ORANGE, markerfacecolor="white", label="latent ratio (the paper's)")
        right.axhline(1, color=RED, linewidth=1, label="below: larger than the model")
        plain_log_ticks(right.yaxis)
        right.set_ylabel("ratio (×)")
        right.set_title(f"{name}: what is counted")
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(latent_dims), [str(dim) for dim in latent_dims])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("numbers in a block's latent")
        _at_least_tall(left)
        left.legend(loc="best")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return png.getvalue()


def digit_grid(samples: Samples, title: str, columns: int = 10) -> bytes:
    """Test digits, each with what the original and the restored model take it for; errors in red, with a cross."""
    groups = [[d for d in samples.digits if d.group == name] for name in ("first", "differs")]
    rows: list[tuple[str, list[Digit]]] = []
    for heading, digits in zip(("first test images", "later ones: predictions differ"), groups, strict=True):
        parts = [digits[start : start + columns] for start in range(0, len(digits), columns)]
        rows += [(heading if not n else "", part) for n, part in enumerate(parts)]
    with drawing(width=0.98 * columns + 0.4, height=1.25 * len(rows) + 0.8) as (figure, png):
        figure.suptitle(title, fontsize=12)
        for row, (heading, digits) in enumerate(rows):
            for column, digit in enumerate(digits):
                axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
                _draw_digit(axes, digit)
                if heading and not column:
                    # The empty title makes room above the row; the words must not make the column wider.
                    axes.set_title(" ", fontsize=10, pad=5)
                    words = axes.text(0, 1.05, heading, transform=axes.transAxes, fontsize=10, color=GREY)
                    words.set_in_layout(False)
        figure.supxlabel("below each digit: original → restored; × and red: wrong", fontsize=10)
    return png.getvalue()


def _draw_digit(axes: Axes, digit: Digit) -> None:
    axes.imshow(digit.image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    wrong = digit.label not in (digit.original, digit.restored) or digit.original != digit.restored
    for spine in axes.spines.values():
        spine.set(visible=True, color=RED if wrong else "#C8C8C8", linewidth=1.6 if wrong else 0.8)
    axes.text(0.5, -0.06, "→", transform=axes.transAxes, ha="center", va="top", color=GREY)
    for x, side, predicted in ((0.40, "right", digit.original), (0.60, "left", digit.restored)):
        bad = predicted != digit.label
        text = (f"×{predicted}" if side == "right" else f"{predicted}×") if bad else str(predicted)
        weight = "bold" if bad else "normal"
        axes.text(
            x, -0.06, text, transform=axes.transAxes, ha=side, va="top", color=RED if bad else "black", weight=weight
        )


def ratio_against_score(
    points: Sequence[Mark],
    latent_points: Sequence[Mark],
    baselines: Sequence[Mark],
    front: Sequence[Mark],
    before: float,
    *,
    title: str,
    method: str,
    refined: Sequence[Mark] = (),
    peers: Sequence[Mark] = (),
    paper: Mark | None = None,
    n_models: int = 1,
) -> bytes:
    """True ratio (log) against score, with the best of all joined and the spread of means as error bars.

    Args:
        points: archives, by true ratio.
        latent_points: the same by the paper's accounting; drawn hollow, never part of the front.
        baselines: simple things to try first.
        front: what nothing else beats in both, by ascending ratio.
        before: score of the original, percent.
        title: of the figure.
        method: name of the points in the legend.
        refined: archives of weights that were trained while quantising.
        peers: points that others measured; those with the same label are joined.
        paper: what the paper prints, latents only; drawn hollow, never part of the front.
        n_models: how many models the points are means over.
    """
    mean = f",\nmean of {n_models}, bars show the range" if n_models > 1 else ""
    with drawing(width=9.5, height=5.4) as (figure, png):
        axes = figure.add_subplot()
        axes.set_xscale("log")
        original = f"original ({before:.2f} %{f', mean of {n_models}' if n_models > 1 else ''})"
        axes.axhline(before, color=GREY, linestyle="--", linewidth=1.2, label=original)
        if front:
            # Reached at a ratio is what some file of that ratio or a higher one scores: steps, from the left edge on.
            everything = [*points, *refined, *baselines, *peers, *front]
            x = [min(m.ratio for m in everything), *(m.ratio for m in front), front[-1].ratio]
            y = [front[0].score, *(m.score for m in front), min(m.score for m in everything)]
            axes.step(x, y, where="pre", color=GREEN, linewidth=5, alpha=0.35, label="best of all (Pareto front)")
        for mark, shape in zip(baselines, _BASELINE_MARKERS * len(baselines), strict=False):
            plot_marks(axes, [mark], shape, ORANGE, mark.label, markeredgecolor="black")
        names = dict.fromkeys(mark.label for mark in peers)
        for name, shape in zip(names, _PEER_MARKERS * len(names), strict=False):
            same = [mark for mark in peers if mark.label == name]
            plot_marks(axes, same, f"{shape}--", SKY, f"{name}\n(peer, as its file says)", markeredgecolor="black")
        axes.axvline(1, color=RED, linewidth=1, label="left of this line:\nlarger than the model")
        plot_marks(axes, points, "o-", BLUE, f"{method}: true ratio{mean}")
        plot_marks(
            axes, refined, "*-", PURPLE, f"{method}, refined on the\ntask's inputs: true ratio{mean}", markersize=12
        )
        latent = "latent ratio only\n(the paper's accounting)"
        plot_marks(axes, latent_points, "o:", BLUE, latent, markerfacecolor="white")
        if paper is not None:
            label = f"{paper.label}:\nlatents only, no file size"
            plot_marks(axes, [paper], "D", RED, label, markerfacecolor="white")
        axes.margins(x=0.08, y=0.12)
        _at_least_tall(axes)
        for marks in (points, latent_points):
            _annotate(axes, marks)
        for mark in refined:  # these lie at the right end, where there is room
            beside: dict[str, Any] = {"xytext": (9, 3), "textcoords": "offset points", "fontsize": 9}
            axes.annotate(mark.label, (mark.ratio, mark.score), **beside)
        plain_log_ticks(axes.xaxis)
        axes.set_xlabel("ratio (×); true ratio: bytes of the model / every byte of the file")
        axes.set_ylabel("test score (%)")
        axes.set_title(title)
        figure.legend(loc="outside right upper", fontsize=10, labelspacing=0.7)
    return png.getvalue()


def plot_marks(axes: Axes, marks: Sequence[Mark], form: str, colour: str, label: str, **style: Any) -> None:
    """Marks joined by a line; what they are means of as bars from the least to the most.

    Args:
        axes: to draw on.
        marks: none draws nothing, not even in the legend.
        form: of marker and line, as matplotlib writes it.
        colour: of marker, line and bars.
        label: in the legend.
        **style: what else is not as usual.
    """
    if not marks:
        return
    xs, ys = [mark.ratio for mark in marks], [mark.score for mark in marks]
    axes.plot(xs, ys, form, **{"color": colour, "markersize": 8, "linewidth": 1, "label": label, **style})
    for mark in marks:
        across, up = mark.ratio_spread, mark.score_spread
        if across is not None:
            axes.plot(across, (mark.score, mark.score), "-|", color=colour, linewidth=1.3, markersize=6)
        if up is not None:
            axes.plot((mark.ratio, mark.ratio), up, "-_", color=colour, linewidth=1.3, markersize=6)


def _annotate(axes: Axes, marks: Sequence[Mark]) -> None:
    """Labels next to points; those of points too close for it are put one above the other."""
    (left, right), (low, high) = (math.log10(x) for x in axes.get_xlim()), axes.get_ylim()
    groups: list[list[Mark]] = []
    for mark in marks:
        last = groups[-1][-1] if groups else None
        near_x = last is not None and abs(math.log10(mark.ratio / last.ratio)) < 0.05 * (right - left)
        near_y = last is not None and abs(mark.score - last.score) < 0.05 * (high - low)
        if near_x and near_y:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    for number, group in enumerate(groups):
        above = number % 2 == 0  # neighbours often lie at one height
        axes.annotate(
            "\n".join(mark.label for mark in group),
            (group[0].ratio, group[0].score),
            xytext=(0, 9 if above else -9),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
        )


def _at_least_tall(axes: Axes) -> None:
    """Scores that hardly differ shall look like it: the axis spans two points or more, and ends at 100."""
    low, high = axes.get_ylim()
    if high - low < 2:
        middle = (low + high) / 2
        low, high = middle - 1, middle + 1
    percent = axes.dataLim.y1 <= 100
    axes.set_ylim(low, max(min(high, 100.5), low + 1) if percent else high)


def plain_log_ticks(axis: Any) -> None:
    """Numbers such as 1, 2, 5 and 10 along a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure to draw into, in inches, written to the buffer when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    png = io.BytesIO()
    # The reader's own matplotlibrc must not change what a report looks like.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in _STYLE.items():
            matplotlib.rcParams[key] = value  # type: ignore[index, unused-ignore]
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, png
        with warnings.catch_warnings():
            # A name may hold characters that the font lacks; they show as boxes.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(png, format="png", metadata={"Software": None})
