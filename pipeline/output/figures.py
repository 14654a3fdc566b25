"""Numbers to pictures: PNG files that can go into a thesis as they are, and the same as small SVG for the page.

The colours are Okabe and Ito's, which colour-blind readers can tell apart
(https://jfly.uni-koeln.de/color/), and no line is told from another by colour alone.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

if "matplotlib.pyplot" not in sys.modules and "MPLBACKEND" not in os.environ:  # else a notebook or script draws, too
    matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipeline.models.history import History

log = logging.getLogger("pipeline")

DPI = 150
# Asked, where installed, for what DejaVu Sans, which matplotlib brings, does not have.
WIDE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei",
    "Malgun Gothic", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS", "Unifont",
)  # fmt: skip
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
SPLITS = (("train", "training", BLUE, "-", "o"), ("validation", "validation", ORANGE, "--", "s"))
COLOURS, MARKS = (BLUE, ORANGE, "#007A5A", "#B3568A", "#8A6D00", GREY), "os^DPv"
STYLE: Any = {  # matplotlib types the keys of such a mapping one by one
    "font.family": ["DejaVu Sans", *(font for font in WIDE_FONTS if font in get_font_names())],
    "font.size": 10,
    "axes.titlesize": 11,
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
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.constrained_layout.use": True,
}


def _wrapped(title: str, inches: float) -> str:
    """Break a title into lines that fit into a width: about eleven characters of its size to an inch."""
    return "\n".join(textwrap.fill(line, int(11 * inches)) for line in title.splitlines())


def _files(figure: Figure) -> dict[str, bytes]:
    """Save a figure as ``.png``, on white, and as ``.svg``, on nothing: the page has a ground of its own."""
    png, svg = io.BytesIO(), io.StringIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", r"Glyph \d+")
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    missing = ""
    for item in caught:
        glyph = re.match(r"Glyph (\d+)", str(item.message))
        if glyph is None:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
        elif chr(int(glyph[1])) not in missing:
            missing += chr(int(glyph[1]))
    _say_missing(missing)
    return {".png": png.getvalue(), ".svg": _compact(svg.getvalue()).encode("utf-8")}


def _compact(svg: str) -> str:
    """Leave out of an SVG what no browser needs: four fifths of it, and a page holds hundreds."""
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Coordinates to a tenth of a point.
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d)\d+", r"\1", tag[0]).replace(' "', '"'), svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"|(?<=<g) id="[^"]*"|font-family: [^;"]*(; )?', "", svg)
    styles: dict[str, str] = {}
    svg = re.sub(r'style="([^"]*)"', lambda style: f'class="{styles.setdefault(style[1], f"s{len(styles)}")}"', svg)
    rules = "".join(f".{name}{{{style}}}" for style, name in styles.items())
    svg = svg.replace("*{", f"text{{font-family:'DejaVu Sans',Verdana,sans-serif}}{rules}*{{", 1)
    svg = re.sub(r"<g>(<(?:text|path|use)[^<]*(?:</text>)?)</g>", r"\1", re.sub(r">\s+<", "><", svg))
    return re.sub(r"\s+", " ", svg).strip()


@functools.cache  # once for all pictures of a run
def _say_missing(characters: str) -> None:
    if characters:
        log.warning(
            "warning: no font here has the characters %s: pictures show boxes for them. Install a font that has, such "
            "as Noto Sans CJK, and run the command again with --force",
            characters,
        )


def history(history: History, title: str, chance: int) -> dict[str, bytes]:
    """Loss and accuracy after every step, training and validation; PNG and SVG by file extension.

    ``chance`` is the number of classes; guessing has a loss of its logarithm, which bounds the axis of the loss.
    """
    unit, kept, steps = history.unit, history.kept, [step.step for step in history.steps]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.1))
        marker = "o" if len(steps) <= 12 else None
        in_time = unit in ("iteration", "epoch")
        for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
            for split, label, colour, line, _ in SPLITS:
                values = [getattr(step, f"{split}_{what}") for step in history.steps]
                axis.plot(
                    steps, values, color=colour, linestyle=line, linewidth=1.8, marker=marker,
                    markersize=3, label=label,
                )  # fmt: skip
            if kept != steps[-1] or not in_time:
                axis.axvline(kept, color=GREY, linewidth=1, linestyle=":", label=f"kept: {unit} {kept:g}")
            if in_time:
                axis.set_xlabel(unit)
                axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            else:
                axis.set_xlabel(f"{unit} (logarithmic scale)")
                axis.set_xscale("log" if min(steps) > 0 else "symlog")
                axis.set_xticks(list(steps), [f"{step:g}" for step in steps])
                axis.xaxis.set_minor_formatter(NullFormatter())
        # Below both, not in them: curves leave no corner free for certain.
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        axes[0].set_ylabel("mean cross-entropy (nats)")
        highest = max(max(step.train_loss, step.validation_loss) for step in history.steps)
        axes[0].set_ylim(0, 1.05 * min(np.log(chance) * 1.3, highest))
        axes[1].set_ylabel("accuracy")
        axes[1].yaxis.set_major_formatter(_PERCENT)
        figure.suptitle(_wrapped(title, 9.0), fontsize=11)
        return _files(figure)


def learning_curve(
    sizes: Sequence[int], train: NDArray[np.float64], validation: NDArray[np.float64], title: str
) -> dict[str, bytes]:
    """Accuracy against training-set size; PNG and SVG by file extension.

    Parameters
    ----------
    sizes : sequence of int
        Training rows.
    train, validation : ndarray, float (sizes, seeds)
        Accuracies between 0 and 1.
    title : str
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.6))
        seeds = train.shape[1]
        for values, (_, label, colour, line, marker) in zip((train, validation), SPLITS, strict=True):
            mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1 if seeds > 1 else 0)
            axis.fill_between(sizes, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
            axis.plot(
                sizes, mean, color=colour, linestyle=line, marker=marker, markersize=4, linewidth=1.8, label=label
            )
        axis.set_xscale("log")
        axis.set_xticks(list(sizes), [f"{size:,}" for size in sizes])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("training rows (logarithmic scale)")
        axis.set_ylabel("accuracy")
        axis.yaxis.set_major_formatter(_PERCENT)
        figure.legend(title=f"mean ± 1 s.d. of {seeds} seeds", loc="outside lower center", ncols=2)
        axis.set_title(_wrapped(title, 5.6))
        return _files(figure)


def calibration(bins: Mapping[str, Any], title: str) -> dict[str, bytes]:
    """Reliability diagram: accuracy against confidence, and how many rows have which; PNG and SVG by file extension.

    Parameters
    ----------
    bins : mapping
        As `metrics.calibration` counts them.
    title : str
    """
    counts = np.array(bins["counts"])
    filled = counts > 0
    middles, width = (np.arange(len(counts)) + 0.5) / len(counts), 0.92 / len(counts)
    confidence, accuracy = (np.array(bins[name])[filled] for name in ("confidence", "accuracy"))
    with plt.rc_context(STYLE):
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(5.2, 6.4), sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="confidence = accuracy")
        top.bar(middles[filled], accuracy, width, color=BLUE, alpha=0.3)
        top.plot(confidence, accuracy, color=BLUE, marker="o", markersize=4, linewidth=1.6, label="accuracy of a bin")
        top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        bottom.bar(middles, counts / max(counts.sum(), 1), width, color=ORANGE)
        bottom.set(ylabel="share of rows", xlabel="confidence of the prediction, test split")
        for axis in (top.yaxis, bottom.yaxis, bottom.xaxis):
            axis.set_major_formatter(_PERCENT)
        error = f"expected calibration error {100 * bins['ece']:.2f} %" if filled.any() else "no test rows"
        figure.legend(title=error, loc="outside lower center", ncols=2)
        figure.suptitle(_wrapped(title, 5.2), fontsize=11)
        return _files(figure)


def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str], title: str) -> dict[str, bytes]:
    """Share of each true class predicted as each class; PNG and SVG by file extension.

    Parameters
    ----------
    counts : ndarray, int (classes, classes)
        Rows: true class. Columns: predicted class.
    class_names : sequence of str
    title : str
    """
    classes = len(class_names)
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.maximum(totals, 1)
    # Shortened in the middle: names that begin alike mostly end otherwise.
    labels = [name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}" for name in class_names]
    with_numbers = classes <= 25
    inches = float(np.clip(0.44 * classes + 1.8, 4.2, 14) if with_numbers else np.clip(0.16 * classes + 2, 7, 24))
    inches += 0.06 * max(map(len, labels))
    with plt.rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure, axis = plt.subplots(figsize=(inches + 1.0, inches))
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        size = 9 if with_numbers else 6
        turned: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, labels)) > 3 else {}
        axis.set_xticks(range(classes), labels, fontsize=size, **turned)
        axis.set_yticks(range(classes), labels, fontsize=size)
        axis.set(xlabel="predicted class", ylabel="true class")
        figure.suptitle(_wrapped(title, inches + 1), fontsize=11)
        if with_numbers:
            _annotate(axis, shares)
        bar = figure.colorbar(image, ax=axis, shrink=0.8)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
        bar.set_label("share of the true class")
        return _files(figure)


def _annotate(axis: Axes, shares: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(shares):  # an empty cell says zero, and leaves the eye to what is there
        share = shares[row, column]
        text = f"{share:.0f}" if share >= 1 else "<1"
        axis.text(column, row, text, ha="center", va="center", color="white" if share > 55 else "black", fontsize=8)


def cost(names: Sequence[str], seconds: Sequence[float], accuracy: Sequence[float], links: Sequence[str]) -> str:
    """Test accuracy against the seconds of whole runs, as SVG with a linked mark for each.

    Parameters
    ----------
    names : sequence of str
        The runs' classifiers; each has a colour and a shape.
    seconds, accuracy : sequence of float
    links : sequence of str
        Where each mark leads.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 4.4))
        for number, name in enumerate(sorted(set(names))):
            rows = [row for row, other in enumerate(names) if other == name]
            marks = axis.scatter(
                [max(seconds[row], 0.01) for row in rows], [accuracy[row] for row in rows], s=64, label=name,
                color=COLOURS[number % len(COLOURS)], marker=MARKS[number % len(MARKS)], edgecolors="white",
            )  # fmt: skip
            marks.set_urls([links[row] for row in rows])
        axis.set(xscale="log", xlabel="seconds of computing (logarithmic scale)", ylabel="test accuracy")
        axis.margins(0.08)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -0.005), min(high, 1.005))  # a mark at 0 or 100 % is whole, and no tick lies beyond
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(_PERCENT)
        figure.legend(loc="outside upper center", ncols=6)
        return _files(figure)[".svg"].decode("utf-8")
