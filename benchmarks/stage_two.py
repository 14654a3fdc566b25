"""What stage two's way of doing things is worth, on the cached features of CIFAR-10.

    .venv/bin/python benchmarks/stage_two.py compare features --before COMMIT
    .venv/bin/python benchmarks/stage_two.py path features/NAME.h5 --rows 15000
    .venv/bin/python benchmarks/stage_two.py page

``compare`` (`make bench-train`) runs whole commands and fits, each in a process of its own, alternating with the code
of another commit where there is one to compare with. ``path`` sets nine values of C beside the plain way, float64
arrays and scikit-learn's defaults, one independent fit after the other; all rows of 64 px take that way more than ten
minutes and 6 GB. ``page`` makes the page of fifty runs and asks Chromium when it can be used. None of them means
anything while another job runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.network import device

PLAIN_BLAS = "--plain-blas" in sys.argv
if not PLAIN_BLAS:
    device.prefer_avx512()  # as the command line does; it serves the plain way as well

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.features import store
from pipeline.features.rows import FeatureRows, FilePart
from pipeline.models.fit import fit_side_by_side
from pipeline.models.history import Samples
from pipeline.models.jobs import Job
from pipeline.network.taps import columns_of
from pipeline.selection import protocol

HERE = Path(__file__).resolve().parent
COMMANDS = {
    "train --image-size 64 (all taps)": ("--image-size", "64"),
    "train --image-size 32 --taps top --classifier mlp": (
        "--image-size", "32", "--taps", "top", "--classifier", "mlp",
    ),
    "train --image-size 64 --classifier mlp (all taps)": ("--image-size", "64", "--classifier", "mlp"),
}  # fmt: skip
NEVER_WHOLE = list(COMMANDS)[-1]  # hours, before
VALUES = [float(value) for value in np.geomspace(1e-4, 1, 9)]


def plain(data: Samples, classes: tuple[str, ...]) -> tuple[float, list[float], int]:
    """Seconds, validation accuracies, and how many fits did not converge, of nine plain fits."""
    fit, held_out, _ = protocol.split(data, 0, classes)
    features = next(data.features.blocks(len(data.labels)))[1]
    scores, unfinished = [], 0
    began = time.perf_counter()
    for C in VALUES:  # noqa: N806
        train, validation = features[fit].astype(np.float64), features[held_out].astype(np.float64)
        scaler = StandardScaler().fit(train)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model = LogisticRegression(C=C).fit(scaler.transform(train), data.labels[fit])
        unfinished += bool(caught)
        scores.append(float(model.score(scaler.transform(validation), data.labels[held_out])))
    return time.perf_counter() - began, scores, unfinished


def ours(data: Samples, classes: tuple[str, ...]) -> tuple[float, list[float], int]:
    """The same of the fits of a sweep: every one of the nine, none left out."""
    began = time.perf_counter()
    rows = protocol.prepare(data, 0, classes)
    jobs = [Job({"C": C, "tol": 3e-4, "max_iter": 1000}, rows, 0) for C in VALUES]
    found = fit_side_by_side("logistic", jobs)
    scores = [fitted.validation[1] for fitted in found]
    return time.perf_counter() - began, scores, sum(bool(fitted.not_converged) for fitted in found)


def path(cache_path: Path, taps: str, rows: int | None, repeats: int) -> None:
    """Compare both ways of fitting nine values of C."""
    from pipeline.network.taps import parse_taps

    with store.open(cache_path) as cache:
        chosen = np.arange(cache.rows["train"])[:rows]
        features = cache.feature_rows("train", parse_taps(taps)).take(chosen).in_memory()
        data = Samples(features, cache.labels("train")[chosen], chosen, chosen)
    print(f"{len(data.labels):,} rows, {data.features.shape[1]:,} columns, C from {VALUES[0]:g} to {VALUES[-1]:g}")
    ratios = []
    for _ in range(repeats):
        slow, slow_scores, slow_unfinished = plain(data, cache.class_names)
        quick, quick_scores, quick_unfinished = ours(data, cache.class_names)
        ratios.append(slow / quick)
        print(f"plain {slow:7.1f} s, best validation {max(slow_scores):.2%}, {slow_unfinished} of 9 not converged")
        print(f"ours  {quick:7.1f} s, best validation {max(quick_scores):.2%}, {quick_unfinished} of 9 not converged")
    print(f"ratio {statistics.median(ratios):.1f} (median of {repeats}; from {min(ratios):.1f} to {max(ratios):.1f})")


def fit(files: list[Path], grown: Path | None) -> None:
    """Fit nine values of C on the rows of caches side by side, or on those that `grow` made; print scores as JSON."""
    with store.open(files[0]) as cache:
        labels, classes, taps = cache.labels("train"), cache.class_names, cache.spec.taps
        if grown is not None:
            columns = columns_of(taps)
            shape = (grown.stat().st_size // (2 * columns), columns)
            features = FeatureRows([FilePart(os.open(grown, os.O_RDONLY), 0, shape)])
            labels = np.tile(labels, shape[0] // len(labels))
        else:
            arrays = [cache.feature_rows("train", taps).array()]
            for file in files[1:]:
                with store.open(file) as other:
                    arrays.append(other.feature_rows("train", other.spec.taps).array())
            features = FeatureRows(arrays)
        each = np.arange(len(labels))
        seconds, scores, unfinished = ours(Samples(features, labels, each, each), classes)
    print(json.dumps({"fit": seconds, "best": max(scores), "unfinished": unfinished}), file=sys.stderr)


def grow(file: Path, target: Path, times: int) -> None:
    """Write the rows of a cache many times over, each time with noise of a hundredth, as float16."""
    generator = np.random.default_rng(0)
    with store.open(file) as cache, target.open("wb") as stream:
        rows = cache.feature_rows("train", cache.spec.taps).in_memory()
        for _ in range(times):
            for _, block in rows.blocks(2048):
                noise = generator.normal(1, 0.01, block.shape).astype(np.float32)
                stream.write((block * noise).astype(np.float16).tobytes())


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds and peak memory in bytes of a process, with what `fit` says of itself."""
    timer = [sys.executable, str(HERE / "timed.py"), sys.executable, *command]
    done = subprocess.run(timer, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"fit"')]
    return {**json.loads(done.stdout), **(said[-1] if said else {})}


def compare(features: Path, data_dir: Path, before: str | None, rounds: int, times: int) -> None:
    """Whole commands now and before; fits on more rows and more columns."""
    files = {
        size: max(features.resolve().glob(f"cifar10-vgg16-{size}px-*.h5"), key=os.path.getsize) for size in (32, 64)
    }
    processor = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    print(
        f"{processor.partition(': ')[2] or platform.processor()}, {os.cpu_count()} cores; first: medians of {rounds}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        trees = {"now": HERE.parent}
        if before is not None:
            trees = {"before": home / "before", **trees}
            subprocess.run(["git", "worktree", "add", "-q", "--detach", trees["before"], before], cwd=HERE, check=True)
        try:
            for what, flags in COMMANDS.items():
                found: dict[str, list[dict[str, float]]] = {tree: [] for tree in trees}
                for _ in range(rounds if what == next(iter(COMMANDS)) else 1):
                    for tree, folder in trees.items():
                        if tree == "before" and what == NEVER_WHOLE:
                            continue
                        shutil.rmtree(home / "output", ignore_errors=True)
                        folders = {
                            "data": data_dir.resolve(),
                            "features": features.resolve(),
                            "output": home / "output",
                        }
                        given = [text for key, path in folders.items() for text in (f"--{key}-dir", str(path))]
                        command = ["-m", "pipeline", "train", *given, "--models-dir", str(home / "models"), *flags]
                        found[tree].append(timed(command, folder))
                        (metrics,) = (json.loads(path.read_bytes()) for path in home.glob("output/*/metrics.json"))
                        found[tree][-1] |= {which: metrics["accuracy"][which] for which in ("validation", "test")}
                        found[tree][-1]["loss"] = metrics["log_loss"]["validation"]
                show(what, {tree: runs for tree, runs in found.items() if runs})
        finally:
            if before is not None:
                subprocess.run(["git", "worktree", "remove", "--force", trees["before"]], cwd=HERE, check=True)
        grow(files[64], home / "grown", times)
        fits = {"all rows": [str(files[64])], "twice the columns": [str(files[64]), str(files[32])]}
        fits[f"{times} times the rows, from disk"] = [str(files[64]), "--grown", str(home / "grown")]
        me = str(Path(__file__).resolve())
        show(
            "nine values of C, 64 px, all taps",
            {key: [timed([me, "fit", *given], HERE)] for key, given in fits.items()},
        )


def show(what: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Print medians."""
    print(what)
    for key, runs in found.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in middle.items() if name not in ("seconds", "peak"))
        print(f"  {key:28} {middle['seconds']:7.1f} s  {middle['peak'] / 1e9:5.2f} GB  {numbers}", flush=True)
    print()


def page() -> None:
    """Make a page of fifty runs, and see how soon Chromium has it ready."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from test_page import make_run

    from pipeline.data import datasets
    from pipeline.output import page as pages

    digest = datasets.load_dataset("digits", Path(), download=False).digest
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "output"
        for number in range(50):
            changes = {"seed": number, "dataset__digest": digest}
            make_run(output, f"digits-logistic-{number:08x}", 0.6 + number / 150, **changes)
        began = time.perf_counter()
        rebuilt = pages.rebuild(output, output)
        print(f"made in {time.perf_counter() - began:.1f} s, {rebuilt.page.stat().st_size / 1e6:.2f} MB")
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in ("headless", "no-sandbox", "disable-gpu", f"user-data-dir={name}/profile"):
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))
        times = []
        for _ in range(5):
            driver.get(rebuilt.page.as_uri())
            timing = driver.execute_script(
                "const t = performance.getEntriesByType('navigation')[0];"
                "const begin = performance.now();"
                "document.querySelector('#leaderboard th:nth-child(2) button').click(); document.body.offsetHeight;"
                "return JSON.stringify({ready: t.domComplete, sorted: performance.now() - begin})"
            )
            times.append(json.loads(timing))
        driver.quit()
    ready, ordered = (statistics.median(item[what] for item in times) for what in ("ready", "sorted"))
    print(f"complete after {ready:.0f} ms, sorted in {ordered:.0f} ms (medians of 5)")


def main() -> None:
    """Run the benchmark that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("path")
    one.add_argument("cache", type=Path)
    one.add_argument("--taps", default="all")
    one.add_argument("--rows", type=int)
    one.add_argument("--repeats", type=int, default=1)
    one.add_argument("--plain-blas", action="store_true", help="leave the choice of kernels to OpenBLAS")
    commands.add_parser("page")
    two = commands.add_parser("compare")
    two.add_argument("features", type=Path)
    two.add_argument("--data-dir", type=Path, default=Path("data"))
    two.add_argument("--before", metavar="COMMIT")
    two.add_argument("--repeats", type=int, default=3)
    two.add_argument("--times", type=int, default=10)
    three = commands.add_parser("fit")
    three.add_argument("caches", type=Path, nargs="+")
    three.add_argument("--grown", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "path":
        path(arguments.cache, arguments.taps, arguments.rows, arguments.repeats)
    elif arguments.command == "compare":
        compare(arguments.features, arguments.data_dir, arguments.before, arguments.repeats, arguments.times)
    elif arguments.command == "fit":
        fit(arguments.caches, arguments.grown)
    else:
        page()


if __name__ == "__main__":
    main()
