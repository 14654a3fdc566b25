"""What stage two's way of doing things is worth, on the cached features of CIFAR-10.

    .venv/bin/python benchmarks/stage_two.py path features/NAME.h5
    .venv/bin/python benchmarks/stage_two.py path features/NAME.h5 --rows 5000 --repeats 3
    .venv/bin/python benchmarks/stage_two.py page

``path`` fits nine values of C the plain way, float64 arrays and scikit-learn's defaults, one independent fit after
the other, and this project's way, in alternating rounds of one process, and compares validation accuracies, too.
``--rows`` takes fewer rows. All rows of 64 px take the plain way more than ten minutes and 6 GB. ``page`` makes the
page of fifty runs and asks Chromium when it can be used. Neither means anything while another job runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
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
from pipeline.models.fit import Job, fit_side_by_side
from pipeline.models.history import Samples
from pipeline.selection import protocol

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
        data = Samples(
            cache.feature_rows("train", parse_taps(taps)).take(chosen).in_memory(), cache.labels("train")[chosen]
        )
    print(f"{len(data.labels):,} rows, {data.features.shape[1]:,} columns, C from {VALUES[0]:g} to {VALUES[-1]:g}")
    ratios = []
    for _ in range(repeats):
        slow, slow_scores, slow_unfinished = plain(data, cache.class_names)
        quick, quick_scores, quick_unfinished = ours(data, cache.class_names)
        ratios.append(slow / quick)
        print(f"plain {slow:7.1f} s, best validation {max(slow_scores):.2%}, {slow_unfinished} of 9 not converged")
        print(f"ours  {quick:7.1f} s, best validation {max(quick_scores):.2%}, {quick_unfinished} of 9 not converged")
    print(f"ratio {statistics.median(ratios):.1f} (median of {repeats}; from {min(ratios):.1f} to {max(ratios):.1f})")


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
    arguments = parser.parse_args()
    if arguments.command == "path":
        path(arguments.cache, arguments.taps, arguments.rows, arguments.repeats)
    else:
        page()


if __name__ == "__main__":
    main()
