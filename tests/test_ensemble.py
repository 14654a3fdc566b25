"""Runs joined into one: the weights, the run that comes of it, and what cannot be joined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, assert_user_error, command
from scipy.optimize import minimize

import pipeline
from pipeline.models import vote

pytestmark = pytest.mark.tensorflow

DIGITS = ["--dataset", "digits", "--limit", "200", "--weights", "random", "--precision", "float32"]
QUICK = ["--no-learning-curve"]
MEMBERS = [  # another size, other taps, another classifier; of decision values, too
    ["--image-size", "32", "--taps", "top", "--C", "0.1"],
    ["--image-size", "32,40", "--taps", "block2_conv2.avg,block5_pool.avg", "--C", "0.01"],
    ["--image-size", "40", "--taps", "block2_conv2.avg", "--classifier", "ridge", "--alpha", "100"],
]
Made = tuple[Path, list[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A folder with caches of two sizes and three runs on them, and the names of the runs."""
    home = tmp_path_factory.mktemp("ensemble")
    taps = ["--taps", "block2_conv2.avg,block5_pool.avg"]
    command("features", *DIGITS, *taps, "--image-size", "32,40", "--features-dir", home / "f")
    told = [command("train", *DIGITS, *member, *QUICK, *_places(home), "--json") for member in MEMBERS]
    return home, [json.loads(text)["run"] for text in told]


def _places(home: Path) -> list[str]:
    return [f"--{name}-dir={home / name[0]}" for name in ("features", "models", "output")]


def test_the_weights_have_the_lowest_loss_that_there_is() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(4, size=300)
    logits = 1.5 * np.eye(4)[labels] + random.normal(size=(3, 300, 4)) * np.array([1, 1.5, 4])[:, None, None]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    found = vote.weigh(probabilities, labels)

    def loss(weights: np.ndarray) -> float:
        return float(-np.log(np.tensordot(weights, probabilities, 1)[np.arange(300), labels]).mean())

    best = minimize(
        loss,
        np.full(3, 1 / 3),
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
    )
    assert found.sum() == pytest.approx(1)
    assert loss(found) <= best.fun + 1e-6
    assert found[0] > found[1] > found[2]


def test_an_ensemble_is_a_run_whose_model_is_the_weighted_mean(made: Made, call: Run) -> None:
    home, names = made
    done = call("ensemble", *names, *_places(home), "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["classifier"]["name"] == "ensemble"
    weights = metrics["classifier"]["params"]
    assert set(weights) == set(names)
    assert sum(weights.values()) == pytest.approx(1, abs=1e-3)
    assert metrics["features"]["image_size"] == [32, 40]
    own = {name: pipeline.load_run(name, home / "o") for name in names}
    assert (
        metrics["log_loss"]["validation"] <= min(run.metrics["log_loss"]["validation"] for run in own.values()) + 1e-4
    )
    assert metrics["accuracy"]["train"] > 0.5
    # The same by hand: each model on the columns that it was fitted on.
    expected = 0.0
    for name, weight in weights.items():
        model = pipeline.load_model(name, models_dir=home / "m").model
        files, taps = own[name].metrics["features"]["file"], own[name].metrics["features"]["taps"]
        features, _ = pipeline.load_features(files, "test", taps)
        expected = expected + weight * model.estimator.predict_proba(features)
    said = pipeline.load_run(metrics["run"], home / "o").predictions
    classes = np.array(list(metrics["per_class"]))
    np.testing.assert_array_equal(said["predicted"], classes[np.argmax(expected, axis=1)][said["index"]])
    confidence = np.max(expected, axis=1)[said["index"]] / sum(weights.values())
    np.testing.assert_allclose(said["confidence"], confidence, atol=2e-6)
    # It is found again, and among all runs.
    assert "is there already" in call("ensemble", *reversed(names), *_places(home)).stderr
    assert "ensemble" in (home / "o" / "index.html").read_text()
    assert set(pipeline.runs(home / "o")["run"]) == {*names, metrics["run"]}


def test_predict_and_a_shared_model_say_what_the_run_says(made: Made, call: Run) -> None:
    home, names = made
    found = json.loads(call("ensemble", *names, *_places(home), "--json").stdout)
    images = np.stack([np.full((16, 16, 3), tone, np.uint8) for tone in (0, 90, 250)])
    model = pipeline.load_model(found["run"], models_dir=home / "m", guard=False)
    alone = [pipeline.load_model(name, models_dir=home / "m", guard=False).predict_proba(images) for name in names]
    weights = [found["classifier"]["params"][name] for name in names]
    said = model.predict_proba(images)
    np.testing.assert_allclose(said, np.average(alone, axis=0, weights=weights), atol=1e-5)
    assert call("export", "--model", found["model"]).returncode == 0
    shared = pipeline.load_model(Path(found["model"]).with_suffix(".skops"), guard=False)
    np.testing.assert_array_equal(shared.predict_proba(images), said)


def _without_its_probabilities(home: Path, names: list[str], call: Run) -> list[str]:
    (home / "o" / names[0] / "probabilities.npz").unlink()
    return names


def _with_damaged_probabilities(home: Path, names: list[str], call: Run) -> list[str]:
    path = home / "o" / names[0] / "probabilities.npz"
    path.write_bytes(path.read_bytes()[:-200])
    return names


def _without_a_cache(home: Path, names: list[str], call: Run) -> list[str]:
    next((home / "f").glob("*40px*")).unlink()
    return names


def _with_another(*words: str) -> Callable[[Path, list[str], Run], list[str]]:
    def change(home: Path, names: list[str], call: Run) -> list[str]:
        taps = ["--image-size", "32", "--taps", "block5_pool.avg", "--C", "0.1"]
        done = call("train", *DIGITS, *taps, *QUICK, *_places(home), *words, "--json")
        return [names[0], json.loads(done.stdout)["run"]]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda home, names, call: names[:1], ["two runs or more", "each once"]),
        (lambda home, names, call: [names[0], names[0]], ["each once"]),
        (lambda home, names, call: [names[0], names[1][:-1]], ["There is no run", "Did you mean"]),
        (_without_its_probabilities, ["probabilities.npz", "--force"]),
        (_with_damaged_probabilities, ["probabilities.npz is damaged", "--force"]),
        (_without_a_cache, ["no feature cache", "40 px", "--taps"]),
        (_with_another("--cv", "2"), ["cross-validated", "--cv"]),
        (_with_another("--seed", "1"), ["seed", "not of the same rows"]),
    ],
)
def test_what_cannot_be_joined_is_said(
    made: Made, call: Run, tmp_path: Path, change: Callable[..., list[str]], words: list[str]
) -> None:
    home, names = made
    shutil.copytree(home, tmp_path / "home")
    before = {path.name for path in (home / "o").glob("*ensemble*")}
    chosen = change(tmp_path / "home", names, call)
    assert_user_error(call("ensemble", *chosen, *_places(tmp_path / "home"), "--force"), *words)
    assert {path.name for path in (tmp_path / "home" / "o").glob("*ensemble*")} == before
