"""Stage two on small made-up features: choices, histories, pictures, files."""

from __future__ import annotations

import _thread
import csv
import io
import json
from pathlib import Path

import joblib
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from pipeline.common.errors import UserError
from pipeline.features.rows import FeatureRows
from pipeline.models import classifiers, epochs, fit
from pipeline.models.fit import fit_side_by_side
from pipeline.models.history import Samples
from pipeline.models.jobs import Job
from pipeline.output import metrics, run_folder
from pipeline.selection import protocol

CLASSES = ("ant", "bee", "cat")


def blobs(rows: int | tuple[int, ...], seed: int = 0, columns: int = 12) -> Samples:
    """Overlapping clouds, three or of so many rows each, with columns of very different scale."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 3 if isinstance(rows, int) else np.repeat(np.arange(len(rows)), rows)
    centres = np.random.default_rng(99).standard_normal((labels.max() + 1, columns))
    features = centres[labels] + 1.5 * generator.standard_normal((len(labels), columns))
    features, each = (features * np.logspace(-2, 3, columns)).astype(np.float32), np.arange(len(labels))
    return Samples(FeatureRows([features]), labels.astype(np.uint8), each, each)


def array(data: Samples) -> NDArray[np.float32]:
    return next(data.features.blocks(len(data.labels)))[1]


def options(name: str, **given: object) -> dict[str, object]:
    return classifiers.resolve(name, given)


FAST: dict[str, dict[str, object]] = {
    "logistic": {},
    "mlp": {"hidden_layer_sizes": (8,), "max_epochs": 12, "learning_rate_init": 0.01},
    "svm": {"max_epochs": 12},
    "ridge": {},
    "kernel": {"n_landmarks": 50},
    "knn": {},
}
EVERY = pytest.mark.parametrize("name", list(classifiers.REGISTRY))


def select(name: str, data: Samples, **given: object) -> protocol.Selection:
    rows = protocol.prepare(data, 0, CLASSES)
    return protocol.select(name, options(name, **FAST[name], **given), rows, 0)


@EVERY
def test_selection_uses_validation_alone(name: str) -> None:
    data = blobs(400)
    before = array(data)
    chosen = select(name, data)
    np.testing.assert_array_equal(array(data), before)
    losses = [trial["log_loss"] for trial in chosen.trials]
    searched = classifiers.get(name).tuned_option
    best = chosen.trials[int(np.argmin(losses))]
    assert chosen.fitted.params[searched] == best[searched]
    assert chosen.fitted.validation[0] == pytest.approx(min(losses), rel=0.02)
    assert select(name, data) == chosen, "seeded"


@EVERY
def test_history_holds_both_splits_for_every_step(name: str) -> None:
    chosen = select(name, blobs(300)).fitted
    rows = list(csv.DictReader(io.StringIO(chosen.history.to_csv().decode())))
    units = {"logistic": "iteration", "mlp": "epoch", "svm": "epoch", "ridge": "alpha", "kernel": "alpha"}
    unit = units.get(name, "n_neighbors")
    assert list(rows[0]) == [unit, "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    numbers = [float(row[unit]) for row in rows]
    if unit in ("iteration", "epoch"):
        assert numbers == list(range(1, len(rows) + 1))
    else:
        assert numbers == sorted(classifiers.get(name).space(12)), "the validation curve over what was searched"
    kept = rows[numbers.index(chosen.history.kept)]
    assert float(kept["validation_loss"]) == pytest.approx(chosen.validation[0], abs=1e-6)
    assert float(kept["train_accuracy"]) == pytest.approx(chosen.train[1], abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["logistic", "ridge"])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_what_is_kept_is_what_scikit_learn_fits(name: str, classes: int, weight: str | None) -> None:
    sizes = (300, 200, 100)[:classes]
    columns = 700 if name == "ridge" and classes == 2 else 12  # more than rows: solved another way
    data, test = blobs(sizes, columns=columns), blobs((50,) * classes, seed=1, columns=columns)
    fixed = {"C": 0.1, "tol": 1e-6} if name == "logistic" else {"alpha": 7.0}
    resolved = {**options(name, **fixed), **({} if weight is None else {"class_weight": weight})}
    names = CLASSES[:classes]
    chosen = protocol.select(name, resolved, protocol.prepare(data, 0, names), 0).fitted
    kept, reason = protocol.refit(name, chosen, data, 0)
    assert reason is None
    assert kept[-1].get_params() == {**kept[-1].get_params(), **fixed} or name == "ridge"
    inner = kept[-1] if name == "logistic" else kept[-1].calibrated_classifiers_[0].estimator.estimator
    judge = {
        "logistic": LogisticRegression(C=0.1, tol=1e-7, max_iter=2000, class_weight=weight),
        "ridge": RidgeClassifier(alpha=7.0, class_weight=weight),
    }[name]
    scaled = StandardScaler().fit_transform(array(data).astype(float))
    judge.fit(scaled, data.labels)
    np.testing.assert_allclose(kept[0].transform(array(data)), scaled, atol=1e-4)
    np.testing.assert_allclose(inner.coef_, judge.coef_, atol=1e-4)
    np.testing.assert_allclose(inner.intercept_, judge.intercept_, atol=1e-4)
    np.testing.assert_array_equal(inner.classes_, judge.classes_)
    guesses = judge.predict(kept[0].transform(array(test)).astype(float))
    np.testing.assert_array_equal(kept.predict(array(test)), guesses)


def test_updates_are_scikit_learns_and_leave_no_trace() -> None:
    data = blobs(300, columns=300)
    made = options("mlp", **{**FAST["mlp"], "hidden_layer_sizes": (400,)})
    features, labels = array(data) / array(data).std(axis=0), data.labels
    plain, ours = (classifiers.get("mlp").make({**made, "alpha": 1.0}, 0, data.features.shape) for _ in range(2))
    ours._optimizer = epochs._Adam()
    ours._optimizer.learning_rate_init = 0.01
    for _ in range(3):
        for each in (plain, ours):
            each.partial_fit(features, labels, classes=[0, 1, 2])
    for one, other in zip(plain.coefs_ + plain.intercepts_, ours.coefs_ + ours.intercepts_, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    chosen = select("mlp", data)
    kept, _ = protocol.refit("mlp", chosen.fitted, data, 0)
    for estimator in (chosen.fitted.model, kept[-1]):
        assert type(estimator).__module__.startswith("sklearn.")
        assert not hasattr(estimator, "_optimizer"), "what is saved is scikit-learn's alone"
    assert kept[-1].shuffle, "whoever fits it again need not shuffle"


def test_what_does_not_converge_says_so() -> None:
    chosen = select("logistic", blobs(300), C=1.0, max_iter=2, tol=1e-9).fitted
    assert chosen.not_converged is not None
    assert "max_iter=2" in chosen.not_converged
    model, reason = protocol.refit("logistic", chosen, blobs(300), 0)
    assert reason is not None
    assert model[-1].get_params()["max_iter"] == 2
    unfinished = protocol.select(
        "mlp", options("mlp", hidden_layer_sizes=(4,), max_epochs=2), protocol.prepare(blobs(300), 0, CLASSES), 0
    )
    assert "max_epochs=2" in str(unfinished.fitted.not_converged)
    assert select("ridge", blobs(300)).fitted.not_converged is None


@pytest.mark.parametrize("name", ["mlp"])
def test_parameters_that_overflow_are_explained(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} cannot be fitted with .*alpha=1e\+300.*Choose less extreme values"):
        select(name, blobs(300), alpha=1e300)


def test_what_diverges_later_keeps_its_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neural_network import MLPClassifier

    real, calls = MLPClassifier.partial_fit, []

    def diverging(self: MLPClassifier, *args: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise ValueError("Solver produced non-finite parameter weights.")
        return real(self, *args, **named)

    monkeypatch.setattr(MLPClassifier, "partial_fit", diverging)
    chosen = select("mlp", blobs(300), alpha=0.1).fitted
    assert chosen.not_converged == "it diverged in epoch 4"
    assert len(chosen.history.steps) == 3


def test_an_interrupt_stops_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = epochs._Adam.update_params, []

    def interrupted(*args: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            _thread.interrupt_main()
        return real(*args)

    monkeypatch.setattr(epochs._Adam, "update_params", interrupted)
    with pytest.raises(KeyboardInterrupt):
        protocol.select(
            "mlp", options("mlp", max_epochs=10_000, patience=10_000), protocol.prepare(blobs(300), 0, CLASSES), 0
        )
    assert len(calls) < 1000


def test_of_rivals_the_best_alone_goes_to_its_end() -> None:
    asked = options("mlp", hidden_layer_sizes=(8,), max_epochs=40, patience=20)
    chosen = protocol.select("mlp", asked, protocol.prepare(blobs(300), 0, CLASSES), 0)
    assert [trial["converged"] for trial in chosen.trials].count(False) >= 2
    assert chosen.fitted.validation[0] == min(trial["log_loss"] for trial in chosen.trials)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_chosen_was_not_given_up_for_another(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """However early that is, and though validation losses rise again."""
    monkeypatch.setattr(fit, "FAIR_ITERATIONS", 1)
    monkeypatch.setattr(fit, "FAR_BEHIND", 0.0)
    rows = protocol.prepare(blobs(90, seed), 0, CLASSES)
    jobs = [Job(options("logistic", C=value), rows, 0) for value in (0.001, 0.1, 1.0, 10.0, 100.0)]
    fitted = fit_side_by_side("logistic", jobs, rivals=True)
    assert min(fitted, key=lambda each: each.criterion).not_converged is None


def test_mlp_keeps_its_best_epoch() -> None:
    rows = protocol.prepare(blobs(300), 0, CLASSES)
    params = options("mlp", hidden_layer_sizes=(64,), alpha=0.0, learning_rate_init=0.02, max_epochs=60, patience=4)
    (fitted,) = fit_side_by_side("mlp", [Job(params, rows, 0)])
    losses = [step.validation_loss for step in fitted.history.steps]
    assert fitted.history.kept == fitted.params["epochs"] == int(np.argmin(losses)) + 1
    assert fitted.not_converged is None
    best_before = np.minimum.accumulate(losses)[-5]
    assert min(losses[-4:]) >= best_before * (1 - 1e-3), "stopped after its patience"
    probabilities = fitted.model.predict_proba(rows.scale.standardise(array(rows.validation)))
    assert log_loss(rows.validation.labels, probabilities) == pytest.approx(min(losses), rel=1e-5)


def test_more_columns_are_regularised_more() -> None:
    for name, sign in (("logistic", 1), ("mlp", -1)):
        key = "C" if name == "logistic" else "alpha"
        few, many = (
            [sign * candidate[key] for candidate in classifiers.candidates(name, options(name), columns)]
            for columns in (512, 6016)
        )
        assert max(many) < max(few)
        assert many == sorted(many), "most regularised first"
    fixed = classifiers.candidates("logistic", options("logistic", C=0.5), 512)
    assert [candidate["C"] for candidate in fixed] == [0.5]


LOPSIDED = pytest.mark.parametrize("counts", [(60, 10, 3), (40, 5, 5), (100, 2, 10), (2, 9, 2)])


@EVERY
def test_learning_curve(name: str) -> None:
    data = blobs(600)
    rows = protocol.prepare(data, 0, CLASSES)
    chosen = protocol.select(name, options(name, **FAST[name]), rows, 0).fitted
    curve = protocol.learning_curve(name, chosen, rows, 0, CLASSES)
    assert len(curve.sizes) >= 5
    assert curve.sizes[-1] == 540
    assert curve.train.shape == curve.validation.shape == (len(curve.sizes), 3)
    assert not np.isnan(curve.validation).any()
    assert curve.validation[-1].mean() > curve.validation[0].mean()
    assert curve.validation[-1, 0] == chosen.validation[1]


@LOPSIDED
@pytest.mark.parametrize("name", ["logistic", "ridge"])
def test_every_subset_of_the_learning_curve_has_every_class(name: str, counts: tuple[int, ...]) -> None:
    data = blobs(counts)
    for seed in (0, classifiers.MAX_SEED):
        rows = protocol.prepare(data, seed, CLASSES)
        chosen = protocol.select(name, options(name, **FAST[name]), rows, seed).fitted
        curve = protocol.learning_curve(name, chosen, rows, seed, CLASSES)
        assert curve.sizes[-1] == len(rows.train.labels)
        assert np.isfinite(curve.validation).all()


@pytest.mark.parametrize(("rows", "classes"), [(20, 10), (25, 10), (45_000, 10), (90, 10), (1000, 100)])
def test_curve_sizes_can_be_stratified(rows: int, classes: int) -> None:
    sizes = protocol.curve_sizes(rows, classes)
    assert sizes[-1] == rows
    assert all(classes <= size <= rows - classes for size in sizes[:-1])
    if rows >= 1000:
        assert len(sizes) >= 5


@EVERY
def test_the_model_is_a_pipeline_from_raw_features_to_labels(name: str, tmp_path: Path) -> None:
    chosen = select(name, blobs(600)).fitted
    model, reason = protocol.refit(name, chosen, blobs(600), 0)
    assert (reason is None) or name in ("mlp", "svm")
    joblib.dump(model, tmp_path / "m.joblib")
    loaded = joblib.load(tmp_path / "m.joblib")
    test = blobs(300, seed=7)
    probabilities = loaded.predict_proba(array(test))
    assert np.mean(loaded.predict(array(test)) == test.labels) > 0.6
    np.testing.assert_array_equal(loaded.classes_[probabilities.argmax(axis=1)], loaded.predict(array(test)))
    np.testing.assert_allclose(probabilities, model.predict_proba(array(test)), rtol=1e-6)
    sums = probabilities.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)  # float32's precision; log_loss warns of anything but float64's
    assert log_loss(test.labels, probabilities / sums) < np.log(3), "better than guessing"
    assert (tmp_path / "m.joblib").stat().st_size < 100_000, "a model must not carry its data"


# --- certainty --------------------------------------------------------------------------------


def test_intervals_are_wilsons() -> None:
    assert metrics.wilson_interval(8504, 10_000) == pytest.approx((0.8433, 0.8573), abs=5e-5)
    assert metrics.wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=5e-5)
    assert metrics.wilson_interval(10, 10) == pytest.approx((0.7225, 1), abs=5e-5)


def test_mcnemar_gives_the_mid_p_of_the_exact_test() -> None:
    """The example of Fagerland, Lydersen and Laake 2013: 1 against 7 discordant pairs have a mid-p of 0.0391."""
    right = np.array([[1, *[0] * 7, 1, 1, 0], [0, *[1] * 7, 1, 1, 0]], bool)
    only, p = metrics.mcnemar(right)
    assert only.tolist() == [[0, 1], [7, 0]]
    assert p[0, 1] == p[1, 0] == pytest.approx(0.0391, abs=5e-5)
    assert p[0, 0] == 1


# --- what a run leaves ------------------------------------------------------------------------


def contents(created: str) -> dict[str, bytes]:
    return {
        **dict.fromkeys(run_folder.RUN_FILES, b"x"),
        "metrics.json": json.dumps({"run": "r-1", "created": created}).encode(),
    }


def test_a_run_is_found_only_when_it_is_whole(tmp_path: Path) -> None:
    place = run_folder.RunFolder("r-1", tmp_path / "output", tmp_path / "models")
    assert place.load() is None
    place.prepare()
    place.save(contents("now"), b"model", {"created": "now"})
    found = place.load()
    assert found is not None
    assert found["created"] == "now"
    description = json.loads(place.description.read_text())
    assert description["run"] == "r-1"
    assert len(description["sha256"]) == 64

    place.save(contents("later"), b"another model", {"created": "later"})
    assert place.load()["created"] == "later"  # type: ignore[index]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [*run_folder.RUN_FILES, "r-1.joblib", "r-1.json", "r-1.md"]
    )

    for path in (place.model, place.folder / "history.csv", place.description, place.folder / "metrics.json"):
        good = path.read_bytes()
        path.write_bytes(b"{}") if path != place.folder / "history.csv" else path.unlink()
        assert place.load() is None, path
        path.write_bytes(good)
        assert place.load() is not None


def test_halves_of_two_runs_are_no_run(tmp_path: Path) -> None:
    place = run_folder.RunFolder("r-1", tmp_path / "output", tmp_path / "models")
    place.prepare()
    place.save(contents("now"), b"model", {"created": "now"})
    old = (place.folder / "metrics.json").read_bytes()
    place.save(contents("later"), b"model 2", {"created": "later"})
    (place.folder / "metrics.json").write_bytes(old)
    assert place.load() is None
