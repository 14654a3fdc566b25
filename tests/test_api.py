"""What a notebook or a script uses: the public names of the package, on real caches and runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from conftest import ROOT
from test_cli import DIGITS, TAPS, make_cache, places

import pipeline
from pipeline import cli
from pipeline.features import store
from pipeline.output.results import RunResults
from pipeline.selection import copies, protocol

mpl.use("Agg")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the digits, and a run on it."""
    folder = tmp_path_factory.mktemp("api")
    make_cache(folder / "features", *TAPS)
    flags = [*DIGITS, *TAPS, "--features-dir", str(folder / "features"), *places(folder), "--C", "0.1"]
    assert cli.main(["train", *flags, "--quiet"]) == 0
    return folder


@pytest.fixture
def cache(home: Path) -> Path:
    (path,) = (home / "features").glob("*.h5")
    return path


@pytest.fixture
def run_results(home: Path) -> RunResults:
    (path,) = (home / "output").glob("digits-*/metrics.json")
    return pipeline.load_run(path.parent.name, home / "output")


def test_public_names_are_listed_and_there() -> None:
    assert {*pipeline.__all__, "__version__"} == set(dir(pipeline))
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = pipeline.load_modle
    assert issubclass(pipeline.UserError, ValueError)


def test_importing_costs_nothing() -> None:
    code = "import sys, pipeline; dir(pipeline); print(*(name for name in sys.modules if name.startswith('pipeline')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pipeline"]


def test_the_version_is_the_one_that_is_cited() -> None:
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dynamic"]
    assert f"\nversion: {pipeline.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


# --- features ---------------------------------------------------------------------------------


def test_validation_rows_are_those_that_a_run_chooses_by(cache: Path, run_results: RunResults) -> None:
    every, labels = pipeline.load_features(cache, "train")
    with store.open(cache) as file:
        found = copies.group(file, [file.spec.taps])
        data = protocol.Samples(every, labels, found.groups[: len(labels)], found.images[: len(labels)])
        parts = protocol.split(data, 0, file.class_names)
    for split, rows in (("validation", parts.held_out), ("fit", parts.fit)):
        features, found = pipeline.load_features(cache, split)
        names = pipeline.row_names(cache, split).astype(int)
        np.testing.assert_array_equal(names, np.sort(rows))
        np.testing.assert_array_equal(features, every[names])
        np.testing.assert_array_equal(found, labels[names])
        assert len(names) == run_results.metrics["images"][split]
    other = pipeline.row_names(cache, "validation", seed=1)
    assert set(other) != set(pipeline.row_names(cache, "validation"))
    with pytest.raises(ValueError, match=r"must be one of train, test, fit, validation.*Did you mean validation\?"):
        pipeline.load_features(cache, "valid")


def test_several_files_are_joined_by_their_rows(cache: Path, tmp_path: Path) -> None:
    first, labels = pipeline.load_features(cache, "test", taps="top")
    both, same = pipeline.load_features([cache, cache], "test", taps="top")
    np.testing.assert_array_equal(both, np.hstack([first, first]))
    np.testing.assert_array_equal(same, labels)
    fewer = make_cache(tmp_path / "fewer", *TAPS, "--limit", "100")
    with pytest.raises(pipeline.UserError, match="cannot be joined: images of train .* --limit"):
        pipeline.load_features([fewer, cache])


def test_files_of_images_are_joined_by_their_digests(tmp_path: Path) -> None:
    """Earlier files of other folders are other data sets; within one, an order of rows of its own is found."""
    earlier = ROOT / "tests" / "earlier" / "features"
    (posters,) = earlier.glob("posters-*.h5")
    features, labels = pipeline.load_features([posters, posters])
    names = pipeline.row_names(posters)
    assert len(features) == len(labels) == len(names)
    assert all(name.endswith((".png", ".jpg")) for name in names)
    (digits,) = earlier.glob("digits-*.h5")
    with pytest.raises(pipeline.UserError, match="cannot be joined"):
        pipeline.load_features([posters, digits])


def test_a_file_of_somebody_is_never_to_be_deleted(tmp_path: Path, cache: Path) -> None:
    notes = tmp_path / "notes.h5"
    notes.write_text("years of work")
    with pytest.raises(pipeline.UserError, match="is no feature file") as caught:
        pipeline.load_features(notes)
    assert "elete" not in str(caught.value)


# --- runs -------------------------------------------------------------------------------------


def test_a_run_is_what_it_left(run_results: RunResults, home: Path) -> None:
    run = run_results
    assert run.class_names == tuple("0123456789")
    assert run.confusion_matrix.sum() == 355
    right = run.confusion_matrix.trace() / 355
    assert right == pytest.approx(run.metrics["accuracy"]["test"])
    assert run.predictions["index"].dtype == np.int64
    assert run.history["validation_accuracy"][-1] == pytest.approx(run.metrics["accuracy"]["validation"], abs=1e-6)
    assert set(run.learning_curve) == {"rows", "seed", "train_accuracy", "validation_accuracy"}
    with pytest.raises(pipeline.UserError, match=f"no run {run.name}x .*Did you mean {run.name}"):
        pipeline.load_run(f"{run.name}x", home / "output")
    broken = home / "broken" / run.name
    shutil.copytree(run.folder, broken)
    (broken / "metrics.json").write_text("{")
    with pytest.raises(pipeline.UserError, match=r"metrics\.json was edited or damaged"):
        pipeline.load_run(run.name, home / "broken")


def test_displays_draw_into_the_axes_given(run_results: RunResults) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4)
    history = pipeline.HistoryDisplay.from_run(run_results).plot(ax=axes[0], metric="accuracy")
    np.testing.assert_array_equal(history.lines_[1].get_ydata(), run_results.history["validation_accuracy"])
    curve = pipeline.LearningCurveDisplay.from_run(run_results).plot(ax=axes[1])
    assert curve.train_scores.shape == (5, 3)
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["Train", "Validation"]
    matrix = pipeline.ConfusionMatrixDisplay.from_run(run_results).plot(ax=axes[2])
    np.testing.assert_array_equal(matrix.confusion_matrix, run_results.confusion_matrix)
    shares = pipeline.ConfusionMatrixDisplay.from_run(run_results, normalize="true").confusion_matrix
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    calibrated = pipeline.CalibrationDisplay.from_run(run_results, n_bins=4).plot(ax=axes[3])
    assert len(calibrated.prob_true) == 4
    assert [ax.get_xlabel() for ax in axes][0::3] == ["iteration", "confidence of the prediction"]
    assert all(display.figure_ is figure for display in (history, curve, matrix, calibrated))
    with pytest.raises(pipeline.UserError, match="'loss' or 'accuracy'"):
        history.plot(metric="f1")
    plt.close(figure)


def test_runs_and_caches_are_data_frames(home: Path, run_results: RunResults, cache: Path) -> None:
    pandas = pytest.importorskip("pandas")
    (run,) = pipeline.runs(home / "output").to_dict("records")
    assert run["run"] == run_results.name
    assert run["test_accuracy"] == pytest.approx(run_results.metrics["accuracy"]["test"], abs=1e-6)
    assert run["converged"] is True
    assert run["created"] == pandas.Timestamp(run_results.metrics["created"])
    (row,) = pipeline.caches(home / "features").to_dict("records")
    assert (row["file"], row["image_size"], row["columns"]) == (str(cache), 32, 576)
    assert pipeline.runs(home / "nothing").empty
    assert pipeline.caches(home / "nothing").empty
    assert len(pandas.DataFrame(run_results.predictions)) == 355


def test_without_pandas_it_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for frame in (pipeline.runs, pipeline.caches):
        with pytest.raises(pipeline.UserError, match="pip install pandas"):
            frame(home)


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert {name for name in pipeline.__all__ if f":: {name}\n" not in text} == set()
