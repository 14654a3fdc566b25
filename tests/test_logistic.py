"""The solver of the logistic regression, with scikit-learn as its judge, and the rows that it reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from pipeline.common.errors import UserError
from pipeline.features import rows as rows_module
from pipeline.features.rows import FeatureRows, FilePart, moments
from pipeline.models.logistic import Fit, Problem, fit


def clouds(rows: int, columns: int, classes: int, seed: int = 0, share: float = 1.0) -> tuple[NDArray, NDArray]:
    """Overlapping clouds with columns of very different scale, some constant; class i+1 has ``share`` of class i."""
    generator = np.random.default_rng(seed)
    chances = share ** np.arange(classes)
    labels = np.sort(np.r_[np.arange(classes), generator.choice(classes, rows - classes, p=chances / chances.sum())])
    labels = generator.permutation(labels)
    centres = np.random.default_rng(99).standard_normal((classes, columns))
    features = (centres[labels] + 2 * generator.standard_normal((rows, columns))) * np.logspace(-2, 3, columns)
    features[:, ::7] = np.linspace(-50, 1000, columns)[::7]
    return features.astype(np.float16), labels


def objective(
    features: NDArray, labels: NDArray, C: float, weights: NDArray, coef: NDArray, intercept: NDArray
) -> float:
    scores = features @ coef.T + intercept
    scores = np.hstack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores
    scores -= scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(labels)), labels]
    return float((weights @ losses + (coef**2).sum() / (2 * C)) / weights.sum())


CASES = {
    "two classes": {"rows": 400, "columns": 30, "classes": 2},
    "ten classes": {"rows": 900, "columns": 60, "classes": 10},
    "a hundred classes": {"rows": 1000, "columns": 20, "classes": 100},
    "rows fewer than columns": {"rows": 60, "columns": 400, "classes": 3},
    "rows a little fewer than columns": {"rows": 150, "columns": 200, "classes": 3},
    "lopsided": {"rows": 1000, "columns": 30, "classes": 4, "share": 0.2},
}


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("case", list(CASES))
def test_the_optimum_is_scikit_learns(case: str, weight: str | None) -> None:
    features, labels = clouds(**CASES[case])
    rows = FeatureRows([features])
    weights = compute_sample_weight(weight, labels)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    strengths = [1e-4, 3e-3, 0.1, 10.0]
    found = fit(rows, labels, moments(rows), [Problem(C, weights) for C in strengths], tol=1e-7, max_iter=5000)
    for C, one in zip(strengths, found, strict=True):
        judge = LogisticRegression(C=C, tol=1e-6, max_iter=10_000, class_weight=weight).fit(scaled, labels)
        best = objective(scaled, labels, C, weights, judge.coef_, judge.intercept_)
        mine = objective(scaled, labels, C, weights, one.model.coef, one.model.intercept)
        assert one.not_converged is None
        assert mine <= best * (1 + 1e-6)
        assert one.steps[-1].train_loss == pytest.approx(log_loss(labels, judge.predict_proba(scaled)), rel=5e-3)
        assert one.steps[-1].train_accuracy == pytest.approx(judge.score(scaled, labels), abs=5 / len(labels))
        assert not one.model.coef[:, ::7].any(), "constant columns say nothing"


def test_rows_without_weight_are_held_out_and_scored() -> None:
    features, labels = clouds(600, 40, 3)
    rows = FeatureRows([features])
    folds = np.arange(600) % 3
    scale = moments(rows)
    problems = [Problem(0.01, (folds != fold).astype(float)) for fold in range(3)]
    side_by_side = fit(rows, labels, scale, problems, tol=1e-5, max_iter=500)
    for fold, one in enumerate(side_by_side):
        inside = np.flatnonzero(folds != fold)
        alone = fit(rows.take(inside), labels[inside], scale, [Problem(0.01, np.ones(400))], tol=1e-5, max_iter=500)[0]
        np.testing.assert_allclose(one.model.coef, alone.model.coef, atol=2e-3)
        assert np.isnan(alone.steps[-1].validation_loss)
        scores = ((features[folds == fold] - scale.mean) * scale.gain) @ one.model.coef.T + one.model.intercept
        chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        assert one.steps[-1].validation_loss == pytest.approx(log_loss(labels[folds == fold], chances), rel=1e-4)
        assert one.steps[-1].validation_accuracy == np.mean(chances.argmax(axis=1) == labels[folds == fold])


def test_every_iteration_is_told_and_a_start_at_the_optimum_has_none() -> None:
    features, labels = clouds(500, 40, 3)
    rows, told = FeatureRows([features]), []
    problems = [Problem(C, np.ones(500)) for C in (0.01, 0.1)]

    def watch(number: int, found: Fit) -> None:
        told.append((number, len(found.steps)))

    found = fit(rows, labels, moments(rows), problems, tol=1e-4, max_iter=500, watch=watch)
    for number, one in enumerate(found):
        assert [step.step for step in one.steps] == list(range(1, one.iterations + 1))
        assert told.count((number, one.iterations)) == 1
        assert one.steps[-1].train_loss < one.steps[0].train_loss
    again = fit(rows, labels, moments(rows), [Problem(0.01, np.ones(500), found[0].model)], tol=2e-4, max_iter=500)[0]
    assert [step.step for step in again.steps] == [0]
    short = fit(rows, labels, moments(rows), problems, tol=1e-9, max_iter=2)
    assert all("max_iter=2" in str(one.not_converged) and one.iterations == 2 for one in short)


# --- rows -------------------------------------------------------------------------------------


def test_every_half_is_widened_exactly() -> None:
    halves = np.arange(65_536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 256)
    ((_, block),) = FeatureRows([halves]).blocks(1000)
    np.testing.assert_array_equal(block.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    features, _ = clouds(100, 20, 2)
    features[77, 5] = bad
    with pytest.raises(UserError, match="not finite"):
        moments(FeatureRows([features]))


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 20])
def test_rows_of_files_are_those_in_memory(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", chunk)
    features, labels = clouds(1000, 50, 3)
    parts = np.split(features, [7, 30], axis=1)
    (tmp_path / "a").write_bytes(b"head" + b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    offsets = 4 + np.cumsum([0, *(part.nbytes for part in parts)])
    on_disk = FeatureRows(
        [FilePart(descriptor, int(offset), part.shape) for offset, part in zip(offsets, parts, strict=False)]
    )
    index = np.flatnonzero(np.random.default_rng(0).random(1000) < 0.4)
    for mine, theirs in ((on_disk, features), (on_disk.take(index), features[index])):
        np.testing.assert_array_equal(np.vstack([block for _, block in mine.blocks(33)]), theirs.astype(np.float32))
        np.testing.assert_array_equal(moments(mine).mean, moments(FeatureRows([theirs])).mean)
        held = mine.in_memory()
        assert held is not mine
        np.testing.assert_array_equal(next(held.blocks(2000))[1], theirs.astype(np.float32))
    weights = np.ones(len(index))
    one, other = (
        fit(each, labels[index], moments(each), [Problem(0.1, weights)], tol=1e-4, max_iter=99)[0].model.coef
        for each in (on_disk.take(index), FeatureRows([features]).take(index))
    )
    np.testing.assert_allclose(one, other, atol=1e-5)  # other blocks, so other roundings
    os.truncate(tmp_path / "a", 500)
    with pytest.raises(OSError, match="shorter"):
        moments(on_disk)
    os.close(descriptor)


def test_moments_are_scikit_learns() -> None:
    features, _ = clouds(5000, 90, 3)
    scale, judge = moments(FeatureRows([features])), StandardScaler().fit(features.astype(np.float64))
    np.testing.assert_allclose(scale.mean, judge.mean_, rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(scale.variance[scale.variance > 0]), judge.scale_[scale.variance > 0], rtol=1e-9)
