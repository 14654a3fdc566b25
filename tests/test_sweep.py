"""Sweeps: what is asked for, what is remembered, and that no interruption changes the outcome."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import faults
import pictures
import pytest
import test_folders
from conftest import ROOT, Run, assert_user_error
from test_cli import DIGITS, TAPS, make_cache, places

from pipeline.common.errors import UserError
from pipeline.models import classifiers
from pipeline.network.taps import ALL_TAPS, TOP_TAPS
from pipeline.selection import grid as grids
from pipeline.selection.options import TrainOptions

SWEEP = ["sweep", *DIGITS, "--taps", "top", "--taps", "block1_conv1.avg"]
DEFAULTS = TrainOptions(), [ALL_TAPS, TOP_TAPS]


@pytest.fixture(scope="module")
def features_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    make_cache(folder, *TAPS)
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    (path,) = (folder / "output" / "sweeps").iterdir()
    return list(csv.DictReader(path.read_text().splitlines()))


# --- what is asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("C=1e-4..1,log,5", [0.0001, 0.001, 0.01, 0.1, 1]),
        ("C=1..3,lin,3", [1, 2, 3]),
        ("C=0.5..9,log,1", [0.5]),
        ("C=0.001, 0.01", [0.001, 0.01]),
        ("max-iter=5,10", [5, 10]),
        ("hidden_layer_sizes=256,512x128", [(256,), (512, 128)]),
        ("hidden_layer_sizes=64..256,log,3", [(64,), (128,), (256,)]),
        ("classifier=ridge,knn", ["ridge", "knn"]),
        ("n_neighbors=3..12,log,3", [3, 6, 12]),
        ("seed=0..3,lin,4", [0, 1, 2, 3]),
    ],
)
def test_grids_are_read(text: str, values: list[object]) -> None:
    name = text.partition("=")[0].replace("-", "_")
    owners = {"hidden_layer_sizes": "mlp", "n_neighbors": "knn"}
    assert grids.read_flags([text], owners.get(name, "logistic"))[name] == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("C", "NAME=VALUES"),
        ("C=", "'C' is an empty list"),
        ("C=1e-4..1,log,0", "COUNT is 1 to 1,000,000"),
        ("C=1e-4..1,log,900000000000000000000", "the most that a sweep takes"),
        ("C=0..1,log,3", "LOW and HIGH are above 0"),
        ("C=1..inf,lin,3", "Got '1..inf,lin,3'"),
        ("C=1..2,cubic,3", "LOW..HIGH,log,COUNT"),
        ("C=a,b", "must be a number of at least 1e-12. Got 'a'"),
        ("gamma=1", "'gamma' is not known for the classifier logistic. Allowed are classifier, taps, seed, C"),
        ("alpha=1", "'alpha' is not known for the classifier logistic"),
        ("seed=1.5", "'seed' must be a whole number between 0 and 4294967295. Got 1.5"),
        ("seed=-1..3,lin,3", "between 0 and 4294967295. Got -1"),
        ("seed=0,5000000000", "between 0 and 4294967295. Got 5000000000"),
    ],
)
def test_grids_that_are_none_are_explained(text: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        grids.read_flags([text], "logistic")


def test_what_is_left_out_is_searched_as_train_would() -> None:
    found = grids.expand([{}], *DEFAULTS, sure=False)
    for taps, columns in ((ALL_TAPS, 6016), (TOP_TAPS, 512)):
        values = [candidate.params["C"] for candidate in found if candidate.taps == taps]
        assert values == classifiers.get("logistic").space(columns)
    several = grids.expand(
        [{"classifier": ["ridge", "knn"], "seed": [0, 1], "taps": [TOP_TAPS]}], *DEFAULTS, sure=False
    )
    assert {(candidate.classifier, candidate.seed) for candidate in several} == {
        ("ridge", 0), ("ridge", 1), ("knn", 0), ("knn", 1),
    }  # fmt: skip
    twice = {"C": [0.1, 0.10], "taps": [TOP_TAPS]}
    assert len(grids.expand([twice, twice], *DEFAULTS, sure=False)) == 1
    both = grids.read_flags(["alpha=1,10", "taps=top", "classifier=ridge,svm"], "logistic")
    assert [(trial.classifier, trial.taps) for trial in grids.expand([both], *DEFAULTS, sure=False)] == [
        ("ridge", TOP_TAPS), ("ridge", TOP_TAPS), ("svm", TOP_TAPS), ("svm", TOP_TAPS),
    ]  # fmt: skip


def test_many_candidates_are_counted_before_they_are_listed() -> None:
    start = time.monotonic()
    million = grids.read_flags(["C=1e-4..1,log,500000"], "logistic")
    with pytest.raises(UserError, match="1,000,000 candidates.*--yes"):
        grids.expand([million], *DEFAULTS, sure=False)
    with pytest.raises(UserError, match="the most that a sweep takes"):
        grids.expand([million] * 2, *DEFAULTS, sure=True)
    assert time.monotonic() - start < 3
    assert len(grids.expand([grids.read_flags(["C=1e-4..1,log,150"], "logistic")], *DEFAULTS, sure=True)) == 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty", "[[run]]"]),
        ("[[run]\n", ["not valid TOML", "line 1"]),
        ("[defaults]\nC = 1", ["'defaults'", "[[run]] and [[grid]]"]),
        ("run = 3", ["no list of tables"]),
        ("[[run]]\nclassifier = 'forest'", ["[[run]] number 1", "logistic, mlp, svm, ridge, kernel, knn", "'forest'"]),
        ("[[run]]\n[[run]]\nCC = 1", ["[[run]] number 2", "'CC'", "classifier, taps, seed, C, max_iter, tol"]),
        ("[[run]]\nalpha = 1", ["'alpha'", "not known for the classifier logistic"]),
        ("[[grid]]\nC = []", ["[[grid]] number 1", "'C'", "empty list"]),
        ("[[grid]]\nC = ['x']", ["[[grid]] number 1", "'C'", "a number of at least 1e-12", "'x'"]),
        ("[[run]]\nC = true", ["[[run]] number 1", "'C'", "a number", "True"]),
        ("[[run]]\nC = -1", ["'C'", "at least 1e-12", "-1"]),
        (f"[[run]]\nC = 1{'0' * 400}", ["'C'", "a number"]),
        ("[[grid]]\nC = '-1..1,lin,3'", ["'C'", "at least 1e-12", "-1.0"]),
        ("[[run]]\nmax_iter = 2.5", ["'max_iter'", "a whole number", "2.5"]),
        ("[[run]]\nclassifier = ['ridge']", ["'classifier'", "logistic, mlp, svm, ridge, kernel, knn", "['ridge']"]),
        ("[[run]]\nseed = -1", ["'seed'", "between 0 and 4294967295", "-1"]),
        ("[[run]]\ntaps = 'fc1'", ["'fc1'", "block1_conv1.avg"]),
        ("[[run]]\ntaps = 3", ["'taps'", "must be text"]),
        ("[[run]]\nseed = 'a'", ["'seed'", "whole number"]),
        ("[[run]]\nC = [0.1, 0.2]", ["'C'", "a number"]),
    ],
)
def test_faulty_files_are_explained(call: Run, features_dir: Path, tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "my experiments.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        grids.expand(grids.read_file(path), *DEFAULTS, sure=False)
    for word in words:
        assert word in str(caught.value)
    assert str(path) in str(caught.value)
    if "alpha" in text:
        done = call("sweep", *DIGITS, "--file", path, "--features-dir", features_dir, *places(tmp_path))
        assert_user_error(done, str(path), *words)


def test_tables_without_a_classifier_have_the_one_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text("[[grid]]\nn_neighbors = '3..12,log,3'\nseed = '0..1,lin,2'\n", encoding="utf-8")
    found = grids.expand(grids.read_file(path, "knn"), TrainOptions(classifier="knn"), [TOP_TAPS], sure=False)
    assert [(each.params["n_neighbors"], each.seed) for each in found] == [
        (3, 0), (6, 0), (12, 0), (3, 1), (6, 1), (12, 1),
    ]  # fmt: skip


def test_the_example_file_is_right() -> None:
    found = grids.expand(grids.read_file(ROOT / "experiments.toml"), *DEFAULTS, sure=False)
    assert {candidate.classifier for candidate in found} == set(classifiers.REGISTRY)


def test_mistakes_get_one_paragraph(call: Run, features_dir: Path, tmp_path: Path) -> None:
    flags = ["--features-dir", features_dir, *places(tmp_path)]
    many = call(*SWEEP, "--grid", "C=1e-4..1,log,500000", *flags)
    assert_user_error(many, "1,000,000 candidates", "--yes")
    absent = call("sweep", *DIGITS, "--taps", "block3_conv1.avg", *flags)
    assert_user_error(absent, "no feature cache", "block3_conv1.avg")
    path = tmp_path / "e.toml"
    path.write_text("[[run]]\ntaps = 'block3_conv1.avg'\n[[run]]\ntaps = 'top'\n", encoding="utf-8")
    assert_user_error(call("sweep", *DIGITS, "--file", path, *flags), "no feature cache", "block3_conv1.avg")
    assert_user_error(call("sweep", *DIGITS, "--file", tmp_path / "no.toml", *flags), "no.toml", "Check the path")
    assert_user_error(call(*SWEEP, "--grid", "C=1", "--grid", "C=2", *flags), "over C was given twice")
    assert not (tmp_path / "output" / "candidates").exists()


# --- what is remembered -----------------------------------------------------------------------


def test_a_sweep_ends_in_a_run_and_remembers(call: Run, features_dir: Path, tmp_path: Path) -> None:
    flags = ["--features-dir", features_dir, *places(tmp_path)]
    done = call(*SWEEP, "--grid", "C=1e-3..0.1,log,3", *flags)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path)
    assert len(rows) == 6
    losses = [float(row["validation_log_loss"]) for row in rows]
    assert losses == sorted(losses)
    (metrics_path,) = (tmp_path / "output").glob("*/metrics.json")
    metrics = json.loads(metrics_path.read_text())
    assert f"C={metrics['classifier']['params']['C']:g}" in rows[0]["parameters"]
    assert " ".join(metrics["features"]["taps"]) == rows[0]["taps"]
    assert not list((tmp_path / "output" / "candidates").glob("*.npy")), "starts are removed when nothing starts there"

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "output" / "candidates").iterdir()}
    again = call(*SWEEP, "--grid", "C=1e-3..0.1,log,3", *flags)
    assert again.returncode == 0
    assert "is there already" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in written} == written, "nothing is fitted twice"
    (first, *_) = written
    first.write_text("{", encoding="utf-8")
    (tmp_path / "output" / "sweeps").rename(tmp_path / "aside")
    healed = call(*SWEEP, "--grid", "C=1e-3..0.1,log,3", *flags)
    assert healed.returncode == 0
    assert f"{first} cannot be used" in healed.stderr
    assert json.loads(first.read_text())["name"] == first.stem
    # The one fitted anew may have started elsewhere: equal to the solver's tolerance, not to the last digit.
    for before, after in zip(rows, table(tmp_path), strict=True):
        assert float(before["validation_log_loss"]) == pytest.approx(float(after["validation_log_loss"]), rel=1e-2)


def test_large_grids_are_thinned_on_fewer_rows(call: Run, features_dir: Path, tmp_path: Path) -> None:
    done = call(*SWEEP, "--grid", "C=1e-3..1,log,9", "--features-dir", features_dir, *places(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [int(row["rows"]) for row in table(tmp_path)]
    assert rows == sorted(rows, reverse=True)
    assert [rows.count(size) for size in (1298, 432, 144)] == [2, 4, 12]


def test_no_round_lacks_a_class(call: Run, tmp_path: Path) -> None:
    """A rare one comes late among the rows; without it, its rows in validation were scored as the next class."""
    for seed, (split, label, count) in enumerate(
        [("train", "ant", 4), ("train", "bee", 200), ("test", "ant", 2), ("test", "bee", 2)]
    ):
        pictures.fill(tmp_path / "insects" / split, (label,), count, seed=1000 * seed)
    assert test_folders.extract(tmp_path / "insects", tmp_path / "features").status == 0
    features = ["--features-dir", tmp_path / "features", *test_folders.TAPS]
    flags = ["--dataset", tmp_path / "insects", *DIGITS[2:6], *features]
    for grid in ("C=1e-3..1,log,12", "alpha=1..100,log,12"):
        classifier = "logistic" if grid[0] == "C" else "ridge"
        done = call("sweep", *flags, "--classifier", classifier, "--grid", grid, *places(tmp_path / grid))
        assert done.returncode == 0, done.stderr
        assert {row["rows"] for row in table(tmp_path / grid)} == {"61", "184"}, "none on the first 20"


COMPARE = """
import sys
from pathlib import Path
from pipeline.commands import train
from pipeline.features import store
from pipeline.features.find import find
from pipeline.features.options import FeatureOptions
from pipeline.selection import protocol, search
from pipeline.selection.left_out import LeftOut
from pipeline.selection.options import SweepOptions, TrainOptions
features_dir, folder = Path(sys.argv[1]), Path(sys.argv[2])
protocol.TRIALS_TOGETHER = 2
features = FeatureOptions(
    dataset="digits", features_dir=features_dir, image_size=32, weights="random", precision="float32",
    taps="block1_conv1.avg,block5_pool.avg",
)
training = TrainOptions(options={"tol": 1e-4}, output_dir=folder / "output", models_dir=folder / "models")
grid = "C=" + ",".join(f"{10 ** (-3 + power / 4):.3g}" for power in range(7))
taps = ("top", "block1_conv1.avg")
paths, asked = find(features)
with store.open_all(paths, asked) as cache:
    options = SweepOptions(training=training, taps=taps, grid=(grid,), no_halving=True)
    search.compare(cache, asked, options, LeftOut())
"""


def test_killed_at_random_times_the_table_is_the_same(features_dir: Path, tmp_path: Path) -> None:
    kills = 4

    def start(folder: Path) -> int:
        def work() -> int:
            sys.argv = ["-c", str(features_dir), str(folder)]
            exec(COMPARE, {})
            return 0

        with (tmp_path / "said").open("ab") as said:
            return faults.start_child(work, said.fileno())

    def finish(folder: Path) -> None:
        assert os.waitpid(start(folder), 0)[1] == 0

    def recorded() -> int:
        return len(list((tmp_path / "killed" / "output" / "candidates").glob("[!.]*.json")))

    finish(tmp_path / "undisturbed")
    generator = random.Random(0)
    for _ in range(kills):
        process, before = start(tmp_path / "killed"), recorded()
        while recorded() == before and os.waitpid(process, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL, "killed on its way"
    assert kills <= recorded() < 14
    finish(tmp_path / "killed")
    ends = []
    for folder in ("undisturbed", "killed"):
        names = {path.name for path in (tmp_path / folder / "output" / "candidates").glob("*.json")}
        ends.append((names, table(tmp_path / folder)))
    assert len(ends[0][0]) == len(ends[0][1]) == 14
    assert ends[0] == ends[1]
