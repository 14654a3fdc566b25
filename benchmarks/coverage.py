"""How often the 95 % interval of a cross-validated accuracy holds the accuracy on thousands of other images.

    python benchmarks/coverage.py features/cifar10-vgg16-64px-KEY.h5 --sets 200

Small, lopsided sets are drawn from the test rows of CIFAR-10: 60 to 600 images of two to ten classes, their shares by a
Dirichlet distribution. Each is cross-validated, choice of C included, as `train --cv` does it; then a classifier that
was made in the same way on all of its images is scored on all others of these classes, each class in its share.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import sklearn
from numpy.typing import NDArray

from pipeline.common.progress import Progress
from pipeline.features import store
from pipeline.features.rows import FeatureRows
from pipeline.models import classifiers
from pipeline.models.history import Samples
from pipeline.network.taps import TOP_TAPS, columns_of
from pipeline.output import metrics
from pipeline.selection.crossval import CrossValidation
from pipeline.selection.options import TrainOptions
from pipeline.selection.trials import Trial


def draw(random: np.random.Generator, labels: NDArray[Any], folds: int) -> tuple[list[NDArray[np.intp]], Any, Any]:
    """Rows of each class in random order, how many of them are in the set, and the classes' shares."""
    while True:
        classes = int(random.integers(2, 11))
        images = round(float(np.exp(random.uniform(np.log(60), np.log(600)))))
        share = random.dirichlet(np.full(classes, 2.0))
        counts = random.multinomial(images, share)
        if folds <= counts.min() and counts.max() <= 800:  # the others of 1,000 are left to score
            break
    chosen = random.permutation(10)[:classes]
    return [random.permutation(np.flatnonzero(labels == each)) for each in chosen], counts, share


def measure(
    seed: int, features: NDArray[np.float32], all_labels: NDArray[np.intp], folds: int, repeats: int
) -> dict[str, Any]:
    """Cross-validate one set; its intervals, and the accuracy that they should hold."""
    random = np.random.default_rng(seed)
    rows, counts, share = draw(random, all_labels, folds)
    names = [str(number) for number in range(len(counts))]
    labels = np.repeat(np.arange(len(counts)), counts)
    order = random.permutation(len(labels))
    inside = np.concatenate([own[:count] for own, count in zip(rows, counts, strict=True)])
    each = np.arange(len(labels))
    data = Samples(FeatureRows([features[inside[order]]]), labels[order], each, each)
    params = classifiers.candidates("logistic", classifiers.resolve("logistic", {}), columns_of(TOP_TAPS))
    candidates = [Trial("logistic", TOP_TAPS, each, 0) for each in params]
    with Progress(f"set {seed}", 0, "fits") as progress:
        validation = CrossValidation(
            candidates, data, TOP_TAPS, names, TrainOptions(cv=folds, repeats=repeats), progress
        )
        scored, probabilities = validation.score()
        model = validation.fit(validation.choose(data)[0][0], data)[2]
    found = metrics.score(probabilities, data.labels[scored], names, folds)
    left = [own[count:] for own, count in zip(rows, counts, strict=True)]
    truth = [float(np.mean(model.predict(features[own]) == label)) for label, own in enumerate(left)]
    right = (probabilities.argmax(axis=2) == data.labels[scored]).mean()
    return {
        "seed": seed, "images": len(labels), "classes": len(counts), "truth": float(share @ truth),
        "accuracy": found.accuracy, "interval": found.fields["interval"]["test"],
        "wilson": metrics.wilson_interval(right * len(labels), len(labels)),
    }  # fmt: skip


def summary(results: Iterable[dict[str, Any]]) -> str:
    """How often, how wide, and to which side the misses are."""
    found = list(results)
    lines = [f"{len(found)} sets"]
    for name, what in (("interval", "corrected"), ("wilson", "Wilson's alone")):
        low, high = np.array([each[name] for each in found]).T
        truth = np.array([each["truth"] for each in found])
        lines.append(
            f"{what:15} holds {np.mean((low <= truth) & (truth <= high)):.1%}, width {np.mean(high - low):.1%}, "
            f"truth above {np.mean(truth > high):.1%}, below {np.mean(truth < low):.1%}"
        )
    bias = np.mean([each["accuracy"] - each["truth"] for each in found])
    return "\n".join([*lines, f"cross-validated accuracy is off by {bias:+.2%} on average"])


def main() -> None:
    """Measure, or go on where an output file ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("features", type=Path, help="a feature file of CIFAR-10 with the tap block5_pool.avg")
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("coverage.jsonl"))
    given = parser.parse_args()
    sklearn.set_config(assume_finite=True)
    with store.open(given.features) as cache:
        features, labels = cache.features("test", TOP_TAPS), cache.labels("test").astype(np.intp)
    lines = given.output.read_text(encoding="utf-8").splitlines() if given.output.exists() else []
    results = [json.loads(line) for line in lines]
    with given.output.open("a", encoding="utf-8") as stream:
        for seed in range(len(results), given.sets):
            results.append(measure(seed, features, labels, given.folds, given.repeats))
            stream.write(json.dumps(results[-1]) + "\n")
            stream.flush()
    sys.stdout.write(summary(results) + "\n")


if __name__ == "__main__":
    main()
