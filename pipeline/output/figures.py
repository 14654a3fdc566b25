"""Numbers to pictures: PNG files that can go into a thesis as they are, and the same as small SVG for the page.

The colours are Okabe and Ito's, which colour-blind readers can tell apart
(https://jfly.uni-koeln.de/color/), and no line is told from another by colour alone.
"""

from __future__ import annotations

import functools
import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib

if "matplotlib.pyplot" not in sys.modules and "MPLBACKEND" not in os.environ:  # else a notebook or script draws, too
    matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipeline.common.text import shorten
from pipeline.models.history import History
from pipeline.output import fonts, metrics

DPI = 200
WIDTH = 4.8  # inches of every figure but the confusion matrix: side by side, text has one size
FORMATS = (".png", ".svg")  # always made: for people, and for the page
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.6g} %")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
SPLITS = (("train", "training", BLUE, "-", "o"), ("validation", "validation", ORANGE, "--", "s"))
COLOURS, MARKS = (BLUE, ORANGE, "#007A5A", "#B3568A", "#8A6D00", GREY), "os^DPv"
STYLE: Any = {  # matplotlib types the keys of such a mapping one by one
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    **dict.fromkeys(("axes.titlesize", "figure.titlesize", "legend.title_fontsize"), 10),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#cccccc",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "xtick.bottom": False,  # the grid shows where values are
    "ytick.left": False,
    "text.parse_math": False,  # a dollar sign in the name of a class or a folder is one
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vgg16-features",  # equal numbers give equal files
    "pdf.fonttype": 42,  # text stays text, and publishers take it
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.constrained_layout.use": True,
}
WITH_NUMBERS = 25  # classes up to which a confusion matrix has its numbers in it


def _saved(draw: Callable[..., Figure]) -> Callable[..., dict[str, bytes]]:
    """Make of a function that draws a figure one that gives its files by extension.

    It takes ``formats`` besides, extensions that matplotlib knows: ``.png`` is on white, ``.svg`` on nothing, for the
    page has a ground of its own; and ``prefix``, with which ids and classes of the SVG begin.
    """

    @functools.wraps(draw)
    def files(*arguments: Any, formats: Iterable[str] = FORMATS, prefix: str = "s") -> dict[str, bytes]:
        with plt.rc_context(STYLE):
            figure = draw(*arguments)
            _finish(figure)
            found = {extension: _render(figure, extension, prefix) for extension in formats}
            plt.close(figure)
            return found

    return files


def inline(draw: Callable[..., dict[str, bytes]], name: str, *arguments: Any) -> Markup:
    """Draw a figure as SVG that is part of a page; ``name`` is like no other on it."""
    drawing = draw(*arguments, formats=(".svg",), prefix=f"{name}-")[".svg"]
    return Markup(drawing.decode("utf-8"))  # noqa: S704 - drawn by us, every text in it escaped


def _render(figure: Figure, extension: str, prefix: str) -> bytes:
    stream = io.BytesIO()
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[extension]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # what no font has was said once, by us
        figure.savefig(stream, format=extension[1:], transparent=extension == ".svg", metadata=metadata)
    return _compact(stream.getvalue(), prefix) if extension == ".svg" else stream.getvalue()


def _finish(figure: Figure) -> None:
    """Let every text of a figure use fonts that have its characters, and its grid do without a clip of each line."""
    for axis in figure.axes:
        axis.tick_params(grid_clip_on=False)
    texts = figure.findobj(Text)
    files = fonts.files_for("".join(text.get_text() for text in texts if isinstance(text, Text)))
    for file in files[1:]:
        fontManager.addfont(file)
    families = ["DejaVu Sans", *(FontProperties(fname=file).get_name() for file in files[1:])]
    for text in texts if len(files) > 1 else []:
        text.set(fontfamily=families)


def _compact(svg: bytes, prefix: str) -> bytes:
    """Leave out of an SVG what no browser needs: most of it, and a page holds hundreds.

    Ids and classes begin with ``prefix``; a group named ``line-N`` becomes one with ``data-line``.
    """
    styles: dict[str, str] = {}
    ids: dict[str, str] = {}

    def short(names: dict[str, str], name: str) -> str:
        return names.setdefault(name, f"{prefix}{len(names)}")

    def tag(found: re.Match[str]) -> str:
        text = re.sub(r' (?:d|[xy]|width|height|viewBox|transform|style)="[^"]*"', _short, found[0])
        text = re.sub(r' transform="rotate\(-0 [^"]*"|(?<=<g) id="(?!line-)[^"]*"|font-family: [^;"]*(; )?', "", text)
        text = text.replace('id="line-', 'data-line="')
        text = re.sub(r'style="([^"]*?)(?:; )?"', lambda style: f'class="{short(styles, style[1])}"', text)
        made = r'(?<=[#"])\w*[0-9a-f]{10}(?=[")])'  # ids that matplotlib makes of digests
        return re.sub(made, lambda name: short(ids, name[0]), text)

    cleared = r'<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<path d="[^"]*" style="fill: none"/>'
    text = re.sub(cleared, "", svg.decode("utf-8"), flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", tag, re.sub("> <", "><", re.sub(r"\s+", " ", text)))
    before = ""
    while text != before:  # groups without attributes have no effect
        before, text = text, re.sub(r"<g>((?:(?!</?g\b).)*)</g>|<g[^>]*/>", r"\1", text)
    rules = re.sub("([:;]) ", r"\1", "".join(f".{name}{{{style}}}" for style, name in styles.items()))
    return text.replace("*{", f"text{{font-family:'DejaVu Sans',Verdana,sans-serif}}{rules}*{{", 1).strip().encode()


def _short(attribute: re.Match[str]) -> str:
    """Coordinates to a tenth of a point, and lines of a path without the letter that goes without saying."""
    text = re.sub(r"\.0(?!\d)", "", re.sub(r"(\.\d)\d+", r"\1", attribute[0])).replace(' "', '"')
    return text if "C" in text else re.sub("([Mm]) |L ", r"\1", text)


def _headed(figure: Figure, what: str, title: str) -> None:
    """Say above a figure what it shows and what it is of, in lines that fit: about 12 characters to an inch."""
    lines = [what, *title.splitlines()]
    figure.suptitle("\n".join(textwrap.fill(line, int(12 * figure.get_figwidth())) for line in lines))


def _in_percent(axis: Axis, ticks: int = 6) -> None:
    """Label an axis in per cent, at so many round values at most."""
    axis.set_major_formatter(_PERCENT)
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))


def _logarithmic(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 of each power of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _mark_values(axis: Axis, values: Sequence[float], form: str) -> None:
    """Label the values themselves on a logarithmic axis, aslant where they would touch."""
    labels = [format(value, form) for value in values]
    slant: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len("".join(labels)) > 30 else {}
    axis.set_ticks(list(values), labels, **slant)
    axis.set_minor_formatter(NullFormatter())


@_saved
def history(history: History, title: str, chance: int) -> Figure:
    """Loss and accuracy after every step, training and validation.

    ``chance`` is the number of classes; guessing has a loss of its logarithm, which bounds the axis of the loss.
    """
    unit, kept, steps = history.unit, history.kept, [step.step for step in history.steps]
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 5.4), sharex=True)
    marker = "o" if len(steps) <= 12 else None
    in_time = unit in ("iteration", "epoch", "runs")
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        for split, label, colour, line, _ in SPLITS:
            values = [getattr(step, f"{split}_{what}") for step in history.steps]
            axis.plot(
                steps, values, color=colour, linestyle=line, linewidth=1.8, marker=marker, markersize=3, label=label
            )
        if kept != steps[-1] or not in_time:
            axis.axvline(kept, color=GREY, linewidth=1, linestyle=":", label=f"kept: {unit} {kept:g}")
    if in_time:
        axes[1].set_xlabel(unit)
        axes[1].xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    else:
        axes[1].set_xlabel(f"{unit} (logarithmic scale)")
        axes[1].set_xscale("log" if min(steps) > 0 else "symlog")
        _mark_values(axes[1].xaxis, steps, "g")
    # Below both, not in them: curves leave no corner free for certain.
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes[0].set_ylabel("cross-entropy (nats)")
    highest = max(max(step.train_loss, step.validation_loss) for step in history.steps)
    axes[0].set_ylim(0, 1.05 * min(np.log(chance) * 1.3, highest or 1))
    axes[0].yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes[1].set_ylabel("accuracy")
    _in_percent(axes[1].yaxis, 5)
    _headed(figure, "Loss and accuracy", title)
    return figure


@_saved
def learning_curve(
    sizes: Sequence[int], train: NDArray[np.float64], validation: NDArray[np.float64], title: str
) -> Figure:
    """Accuracies, between 0 and 1, float (sizes, seeds), against numbers of training rows."""
    figure, axis = plt.subplots(figsize=(WIDTH, 5.4))
    seeds = train.shape[1]
    for values, (_, label, colour, line, marker) in zip((train, validation), SPLITS, strict=True):
        mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1 if seeds > 1 else 0)
        axis.fill_between(sizes, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        axis.plot(sizes, mean, color=colour, linestyle=line, marker=marker, markersize=4, linewidth=1.8, label=label)
    axis.set_xscale("log")
    _mark_values(axis.xaxis, sizes, ",")
    axis.set(xlabel="training rows (logarithmic scale)", ylabel="accuracy")
    _in_percent(axis.yaxis)
    spread_of = f"mean ± 1 s.d. of {seeds} seeds" if seeds > 1 else "one seed"
    figure.legend(title=spread_of, loc="outside lower center", ncols=2)
    _headed(figure, "Learning curve", title)
    return figure


@_saved
def calibration(bins: Mapping[str, Any], title: str) -> Figure:
    """Reliability diagram: accuracy against confidence, with intervals, in bins as `metrics.calibration` has them."""
    confidence, accuracy, low, high = (np.array(bins[name]) for name in ("confidence", "accuracy", "low", "high"))
    figure, axis = plt.subplots(figsize=(WIDTH, 5.4))
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="confidence = accuracy")
    if bins["counts"]:
        few, many = min(bins["counts"]), max(bins["counts"])
        rows = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        label = f"accuracy of {rows} rows with 95 % interval"
        axis.errorbar(
            confidence, accuracy, np.array([accuracy - low, high - accuracy]), color=BLUE, marker="o", markersize=4,
            linewidth=1.2, capsize=2, label=label, clip_on=False,
        )  # fmt: skip
    axis.set(xlabel="confidence of the prediction", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axis.xaxis.set_major_formatter(_PERCENT)
    axis.yaxis.set_major_formatter(_PERCENT)
    error = f"expected calibration error {100 * bins['ece']:.2f} %" if bins["counts"] else "no test rows"
    figure.legend(title=error, loc="outside lower center")
    _headed(figure, "Calibration", title)
    return figure


@_saved
def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str], title: str) -> Figure:
    """Share of each true class (row of ``counts``) predicted as each class (column).

    Classes that are too many for numbers in the cells are in the order of likeness.
    """
    classes, with_numbers = len(class_names), len(class_names) <= WITH_NUMBERS
    order = range(classes) if with_numbers else metrics.similar_order(counts)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = shares[np.ix_(order, order)]
    # Shortened in the middle: names that begin alike mostly end otherwise.
    labels = [shorten(class_names[index], 24) for index in order]
    longest = max(map(len, labels))
    # Beyond 250 classes the picture stays as large as programs can open, and its text gets smaller.
    inches = float(np.clip(0.44 * classes + 1.8, 4.2, 14) if with_numbers else np.clip(0.15 * classes, 7, 38))
    size = 10 if with_numbers else min(8, 0.75 * 72 * inches / classes)
    inches += 0.008 * size * longest
    with plt.rc_context({"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure, axis = plt.subplots(figsize=(inches + 1, inches))
    # The square root shows a confusion of a few per cent beside a diagonal of nearly a hundred.
    norm = PowerNorm(1 if with_numbers else 0.5, 0, 100)
    image = axis.imshow(shares, cmap="Blues", norm=norm, interpolation="none")
    turned: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 3 else {}
    if not with_numbers:
        turned = {"rotation": 90}
    axis.set_xticks(range(classes), labels, fontsize=size, **turned)
    axis.set_yticks(range(classes), labels, fontsize=size)
    axis.set(xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(image, ax=axis, fraction=0.03, pad=0.02)
    if with_numbers:
        for row, column in np.argwhere(shares):  # an empty cell says zero, and leaves the eye to what is there
            share = shares[row, column]
            text = f"{share:.0f}" if share >= 1 else "<1"
            axis.text(column, row, text, ha="center", va="center", color="white" if share > 55 else "black")
    else:
        bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    bar.set_label("share of the true class")
    _headed(figure, "Confusion matrix" + ("" if with_numbers else ", similar classes side by side"), title)
    return figure


# --- what the page draws of many runs, as SVG that is part of it ------------------------------------


@_saved
def cost(
    classifiers: Sequence[str], seconds: Sequence[float], accuracy: Sequence[float], links: Sequence[str]
) -> Figure:
    """Validation accuracy against the seconds of whole runs; each mark leads to its link, and shows its classifier."""
    figure, axis = plt.subplots(figsize=(1.4 * WIDTH, 3.6))
    for number, classifier in enumerate(sorted(set(classifiers))):
        rows = [row for row, other in enumerate(classifiers) if other == classifier]
        marks = axis.scatter(
            [max(seconds[row], 0.01) for row in rows], [accuracy[row] for row in rows], s=64, label=classifier,
            color=COLOURS[number % len(COLOURS)], marker=MARKS[number % len(MARKS)], edgecolors="white",
            clip_on=False,
        )  # fmt: skip
        marks.set_urls([links[row] for row in rows])
    axis.set(xlabel="seconds of computing", ylabel="validation accuracy")
    axis.margins(0.08)
    if max(seconds) > 10 * max(min(seconds), 0.01):
        axis.set(xscale="log", xlabel="seconds of computing (logarithmic scale)")
        _logarithmic(axis.xaxis)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, -0.005), min(high, 1.005))  # a mark at 0 or 100 % is whole, and no tick lies beyond
    _in_percent(axis.yaxis)
    figure.legend(loc="outside upper center", ncols=6)
    return figure


@_saved
def curves(lines: Mapping[int, Mapping[str, NDArray[np.float64]]], xlabel: str, ylabel: str) -> Figure:
    """Curves of many runs in one pair of axes, as groups that have ``data-line``, for the page to show two of.

    ``lines`` has of each run's number its curves by split, ``train`` and ``validation``: float (points, 2), x and y.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    for number, splits in lines.items():
        for split, points in splits.items():
            style = "--" if split == "train" else "-"
            mark = "o" if len(points) == 1 else None  # a run without a learning curve has its last point alone
            axis.plot(
                *points.T, color=GREY, linestyle=style, linewidth=1.6, marker=mark, markerfacecolor="none",
                gid=f"line-{number}", clip_on=False,
            )  # fmt: skip
    axis.set(xscale="log", xlabel=f"{xlabel} (logarithmic scale)", ylabel=ylabel)
    _logarithmic(axis.xaxis)
    if ylabel == "accuracy":
        axis.yaxis.set_major_formatter(_PERCENT)
    return figure
