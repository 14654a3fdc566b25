"""What sizes, views, taps and classifiers are worth on CIFAR-10: the grid of docs/accuracy.md.

    .venv/bin/python benchmarks/accuracy.py --data-dir DATA --sizes 32,64

`make grid`. Every row is a run like any other, made by the command line in a process of its own: those that are there
are not made again, so a grid that was stopped goes on. For each size and view there is one cache with all the taps that
any row wants. Nothing is chosen by what test says.
"""

from __future__ import annotations

import argparse
import json
import os
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

Best on validation first; test is scored once for each row and nothing is chosen by it. *First* and *second* are the
seconds of the two stages, on one cache with all taps of the grid; memory is the larger peak of both.

![Validation accuracy against seconds, with the frontier](images/accuracy.png)
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
ROWS = [
    *(("plain", taps, "logistic") for taps in TAPS),
    *(("mirror", taps, "logistic") for taps in ("all", "rich")),
    *((views, taps, "mlp") for taps in ("all", "rich") for views in ("plain", "mirror")),
]


def run(arguments: list[str], records: Path) -> dict[str, Any]:
    """Give a command to this program; what it says as JSON, with the peak bytes of when it was computed, if known."""
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
    files = [found["folder"]] if "folder" in found else [each["file"] for each in found.get("caches", [found])]
    if max(os.stat(file).st_mtime for file in files) >= began:  # else it was there already
        known[files[-1]] = usage.ru_maxrss * 1024
        records.write_text(json.dumps(known, indent=1))
    return {**found, "peak": known.get(files[-1])}


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
        lines.append(
            f"| {row['size']} | {row['views']} | {row['taps']} | {row['classifier']} | {row['columns']:,} "
            f"| {row['validation']:.2%} | {row['test']:.2%} ({low:.2%} to {high:.2%}) | {row['one']:,.0f} s "
            f"| {row['two']:,.0f} s | {row['peak']} |".replace("%", " %")
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> None:
    """Validation accuracy against seconds of both stages, with the frontier."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for size in sorted({row["size"] for row in rows}):
        own = [row for row in rows if row["size"] == size]
        axes.scatter([row["cost"] for row in own], [100 * row["validation"] for row in own], label=f"{size} px")
    edge = frontier([(row["cost"], row["validation"]) for row in rows])
    axes.plot(
        [cost for cost, _ in edge], [100 * value for _, value in edge], drawstyle="steps-post", color="grey", lw=1
    )
    for row in rows:
        if (row["cost"], row["validation"]) in edge:
            text = f"{row['taps']}, {row['views']}, {row['classifier']}"
            axes.annotate(
                text, (row["cost"], 100 * row["validation"]), fontsize=7, xytext=(4, -9), textcoords="offset points"
            )
    axes.set(xscale="log", xlabel="seconds of both stages", ylabel="validation accuracy (%)")
    axes.legend()
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Make what is missing of the grid, then its table and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="32,64", help="image sizes; several at once as 64+96 (default: 32,64)")
    parser.add_argument("--rows", help="only rows in which one of these texts is, as in 'plain rich,mirror rich'")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--features-dir", default="features")
    parser.add_argument("--output-dir", default="output")
    parser.add_argument("--models-dir", default="models")
    chosen = parser.parse_args()
    records = Path(chosen.output_dir) / "grid.json"
    records.parent.mkdir(parents=True, exist_ok=True)
    places = ["--data-dir", chosen.data_dir, "--features-dir", chosen.features_dir]
    found = []
    for size in chosen.sizes.split(","):
        texts = (chosen.rows or "").split(",")
        wanted = [row for row in ROWS if any(text in " ".join(row) for text in texts)]
        for views, taps, classifier in wanted:
            union = sorted({tap for view, each, _ in wanted if view == views for tap in TAPS[each]})
            asked = ["--image-size", size.replace("+", ","), "--views", views, *places]
            made = run(["features", *asked, "--taps", ",".join(union)], records)
            folders = ["--output-dir", chosen.output_dir, "--models-dir", chosen.models_dir]
            metrics = run(
                [
                    "train", *asked, "--taps", ",".join(TAPS[taps]), "--classifier", classifier, *folders,
                    "--no-learning-curve",
                ],
                records,
            )  # fmt: skip
            peaks = [peak for peak in (made["peak"], metrics["peak"]) if peak]
            from pipeline.features import store

            one = 0.0
            for file in [made] if "file" in made else made["caches"]:
                with store.open(Path(file["file"])) as cache:
                    one += sum(cache.rows.values()) / cache.images_per_second
            two = metrics["seconds"]["total"]
            found.append({
                "size": size.replace("+", " and "), "views": views, "taps": taps, "classifier": classifier,
                "columns": metrics["features"]["columns"], "validation": metrics["accuracy"]["validation"],
                "test": metrics["accuracy"]["test"], "interval": metrics["interval"]["test"],
                "one": one, "two": two, "cost": one + two,
                "peak": f"{max(peaks) / 1e9:.1f} GB" if len(peaks) == 2 else "",
            })  # fmt: skip
            text = PAGE.read_text(encoding="utf-8")
            head, _, rest = text.partition(BEGIN)
            PAGE.write_text(f"{head}{BEGIN}\n{GRID}\n{table(found)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
            draw(found)


if __name__ == "__main__":
    main()
