"""What sizes, views, taps and classifiers are worth on CIFAR-10: the grid of docs/accuracy.md.

    .venv/bin/python benchmarks/accuracy.py --data-dir DATA --rows "32 plain,64 plain all"

`make grid`. Every row is a run like any other, made by the command line in a process of its own: those that are there
are not made again, so a grid that was stopped goes on. For each size and view there is one cache with all the taps that
any of its rows wants. Nothing is chosen by what test says.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import string
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGE, PICTURE = ROOT / "docs" / "accuracy.md", ROOT / "docs" / "images" / "accuracy.png"
BEGIN, END = "<!-- begin of the grid -->\n", "<!-- end of the grid -->\n"

from pipeline.network.taps import ALL_TAPS, RICH_TAPS, TOP_TAPS  # which loads nothing heavy

GRID = """## The grid

Best on validation first; test is scored once for each row and nothing is chosen by it. *First* and *second* are what
the two stages took of the processor, in minutes of one core: on two cores that do nothing else, half as long by the
clock. Features of one size and view are computed once, with all taps that any row wants. Memory is the larger peak.
A cost that is not known is blank.

![Validation accuracy against processor time, with the frontier](images/accuracy.png)
"""
STD = tuple(tap for tap in RICH_TAPS if tap.endswith(".std"))
QUADRANTS = ("block3_pool.avg2x2", "block4_pool.avg2x2", "block5_conv1.avg2x2", "block5_conv3.avg2x2")
COVARIANCES = tuple(tap for tap in RICH_TAPS if tap.endswith(".cov"))
TAPS = {
    "top": TOP_TAPS,
    "all": ALL_TAPS,
    "all, deviations": (*ALL_TAPS, *STD),
    "all, quadrants": (*ALL_TAPS, *QUADRANTS),
    "all, covariances": (*ALL_TAPS, *COVARIANCES),
    "all of these": (*ALL_TAPS, *STD, *QUADRANTS, *COVARIANCES),
    "rich": RICH_TAPS,
}
ROWS = [  # each pooling and view by itself where images are small and cheap; where they are larger, what was worth it
    *(("32", "plain", taps, "logistic") for taps in TAPS),
    *(("32", "mirror", taps, "logistic") for taps in ("all", "rich")),
    *(("32", views, taps, "mlp") for taps in ("all", "rich") for views in ("plain", "mirror")),
    ("32", "plain", "all", "kernel"),
    *(("64", "plain", "all", classifier) for classifier in ("logistic", "mlp")),
    *(("64", views, "rich", "mlp") for views in ("plain", "mirror")),
    ("32+64", "mirror", "rich", "mlp"),
]


def run(arguments: list[str], records: Path) -> dict[str, Any]:
    """Give a command to this program; what it says as JSON, and what making it took: NaN where that is not known.

    That is ``peak``, in bytes, and ``minutes`` of the processor, kept in a file for when a row is there. Of what was
    stopped and went on they are those of the last call.
    """
    began = time.time()
    command = [sys.executable, "-m", "pipeline", *arguments, "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(status)
    found: dict[str, Any] = json.loads(said)
    known = json.loads(records.read_text()) if records.exists() else {}
    made = [found["folder"]] if "folder" in found else [each["file"] for each in found.get("caches", [found])]
    if len(made) == 1 and os.stat(made[0]).st_mtime >= began:  # else it was there already
        minutes = (usage.ru_utime + usage.ru_stime) / 60
        known[Path(made[0]).name] = {"peak": usage.ru_maxrss * 1024, "minutes": minutes}
        records.write_text(json.dumps(known, indent=1))
    each = [known.get(Path(one).name, {"peak": math.nan, "minutes": math.nan}) for one in made]
    return {**found, "peak": largest(*(one["peak"] for one in each)), "minutes": sum(one["minutes"] for one in each)}


def largest(*values: float) -> float:
    """The largest of some numbers; NaN, unknown, where one of them is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (cost, accuracy) that nothing cheaper is as good as."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, best on validation first."""
    lines = [
        "| px | views | taps | classifier | columns | validation | test (95 % interval) | first | second | memory |",
        "| --- " * 10 + "|",
    ]
    for row in sorted(rows, key=lambda row: -row["validation"]):
        low, high = row["interval"]
        costs = [
            "" if math.isnan(value) else text.format(value)
            for text, value in (("{:.1f}", row["one"]), ("{:.1f}", row["two"]), ("{:.1f} GB", row["peak"] / 1e9))
        ]
        lines.append(
            f"| {row['size']} | {row['views']} | {row['taps']} | {row['classifier']} | {row['columns']:,} "
            f"| {row['validation']:.2%} | {row['test']:.2%} ({100 * low:.2f} to {100 * high:.2f}) "
            f"| {' | '.join(costs)} |".replace("%", " %")
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> None:
    """Validation accuracy against processor time of both stages, with the frontier."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    rows = [{**row, "cost": row["one"] + row["two"]} for row in rows if not math.isnan(row["one"] + row["two"])]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for size in sorted({row["size"] for row in rows}):
        own = [row for row in rows if row["size"] == size]
        axes.scatter([row["cost"] for row in own], [100 * row["validation"] for row in own], label=f"{size} px")
    edge = frontier([(row["cost"], row["validation"]) for row in rows])
    axes.plot(
        [cost for cost, _ in edge], [100 * value for _, value in edge], drawstyle="steps-post", color="grey", lw=1
    )
    best = sorted((row for row in rows if (row["cost"], row["validation"]) in edge), key=lambda row: float(row["cost"]))
    for letter, row in zip(string.ascii_uppercase, best, strict=False):
        at = row["cost"], 100 * row["validation"]
        axes.annotate(letter, at, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.plot([], [], " ", label=f"{letter}: {row['taps']}; {row['views']}; {row['classifier']}")
    axes.set(xscale="log", xlabel="processor time of both stages (minutes of one core)")
    axes.set_ylabel("validation accuracy (%)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.1, y=0.1)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Make what is missing of the grid, then its table and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows that begin so, as in '32 plain,64 plain all'")
    for name in ("data", "features", "output", "models"):
        parser.add_argument(f"--{name}-dir", default=name)
    chosen = parser.parse_args()
    records = Path(chosen.output_dir) / "grid.json"
    records.parent.mkdir(parents=True, exist_ok=True)
    places = ["--data-dir", chosen.data_dir, "--features-dir", chosen.features_dir]
    folders = ["--output-dir", chosen.output_dir, "--models-dir", chosen.models_dir]
    wanted = [row for row in ROWS if " ".join(row).startswith(tuple(chosen.rows.split(",")))]
    found = []
    for size, views, taps, classifier in wanted:
        union = sorted({tap for row in wanted if row[:2] == (size, views) for tap in TAPS[row[2]]})
        asked = ["--image-size", size.replace("+", ","), "--views", views, *places]
        made = run(["features", *asked, "--taps", ",".join(union)], records)
        of_run = ["--taps", ",".join(TAPS[taps]), "--classifier", classifier, "--no-learning-curve", *folders]
        metrics = run(["train", *asked, *of_run], records)
        found.append({
            "size": size.replace("+", " and "), "views": views, "taps": taps, "classifier": classifier,
            "columns": metrics["features"]["columns"], "validation": metrics["accuracy"]["validation"],
            "test": metrics["accuracy"]["test"], "interval": metrics["interval"]["test"],
            "one": made["minutes"], "two": metrics["minutes"], "peak": largest(made["peak"], metrics["peak"]),
        })  # fmt: skip
        text = PAGE.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{GRID}\n{table(found)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
        draw(found)


if __name__ == "__main__":
    main()
