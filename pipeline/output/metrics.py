"""How far a number can be trusted: calibration of confidences, intervals of accuracies, comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

BINS = 15  # of confidence, equally wide, as Guo et al. 2017 have them


def wilson_interval(right: int, rows: int) -> tuple[float, float]:
    """95 % interval of an accuracy, of which ``right`` of ``rows`` are right: Wilson's score interval.

    It covers what it says also near 0 and 1, where the usual ``p ± z·s.e.`` does not.
    """
    interval = binomtest(right, rows).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def calibration(confidences: NDArray[Any], right: NDArray[np.bool_], bins: int = BINS) -> dict[str, Any]:
    """Compare confidences with how often they are right, in equally wide bins, the upper edge in each.

    Parameters
    ----------
    confidences : ndarray, float (n,)
        Probability of the predicted class, between 0 and 1.
    right : ndarray, bool (n,)
        Whether the prediction is right.
    bins : int

    Returns
    -------
    dict
        ``ece``, the expected calibration error: the mean over all rows of the distance between confidence and
        accuracy of their bin, between 0 and 1; and of each bin its ``counts`` of rows and its means of ``confidence``
        and ``accuracy``, 0 where it is empty, rounded to what a few thousand rows can tell.

    References
    ----------
    Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, section 2.
    """
    edges = np.linspace(0, 1, bins + 1)
    places = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    safe = np.maximum(counts, 1)
    confidence = np.bincount(places, weights=confidences, minlength=bins) / safe
    accuracy = np.bincount(places, weights=right, minlength=bins) / safe
    total = max(len(right), 1)
    ece = float((counts * np.abs(confidence - accuracy)).sum() / total)
    return {
        "ece": ece, "bins": bins, "counts": counts.tolist(), "confidence": confidence.round(6).tolist(),
        "accuracy": accuracy.round(6).tolist(),
    }  # fmt: skip


def mcnemar(right: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Compare classifiers two by two on the same rows: McNemar's test, two-sided, mid-p.

    Parameters
    ----------
    right : ndarray, bool (classifiers, rows)
        Whether each is right on each row.

    Returns
    -------
    only : ndarray, int (classifiers, classifiers)
        Rows that the first is right on and the second is not; rows that both have right or wrong say nothing.
    p : ndarray, float (classifiers, classifiers)
        Probability of so unequal counts, or more so, if both were equally good.

    References
    ----------
    Q. McNemar 1947, https://doi.org/10.1007/BF02295996. The mid-p variant, nearer to the level it states than the
    exact test: Fagerland, Lydersen & Laake 2013, https://doi.org/10.1186/1471-2288-13-91.
    """
    counts = right.astype(np.float64)
    only = (counts @ (1 - counts).T).astype(np.int64)
    fewer, rows = np.minimum(only, only.T), only + only.T
    return only, np.minimum(1.0, 2 * binom.cdf(fewer, rows, 0.5) - binom.pmf(fewer, rows, 0.5))


@dataclass(frozen=True)
class TestScores:
    """What the test split says of a model: predictions (n,), confidences (n,), and what is counted from them.

    Where no test row is left there are no scores: None.
    """

    predicted: NDArray[Any]
    confidences: NDArray[Any]
    accuracy: float | None
    loss: float | None
    interval: tuple[float, float] | None
    calibration: dict[str, Any]
    confusions: NDArray[np.int64]
    per_class: dict[str, dict[str, float | None]]
    text: str


def score_test(model: Any, features: NDArray[np.float32], labels: NDArray[Any], classes: Sequence[str]) -> TestScores:
    """Score the test split: the one time that it is looked at."""
    from sklearn.metrics import classification_report, confusion_matrix

    from pipeline.models import history

    if not len(labels):
        return TestScores(
            labels, np.zeros(0), None, None, None, calibration(np.zeros(0), np.zeros(0, bool)),
            np.zeros((len(classes), len(classes)), np.int64),
            {label: {"precision": None, "recall": None, "f1": None, "support": 0} for label in classes}, "",
        )  # fmt: skip
    probabilities = model.predict_proba(features)
    predicted = model.classes_[probabilities.argmax(axis=1)]
    right, confidences = predicted == labels, probabilities.max(axis=1)
    shared = {"labels": np.arange(len(classes)), "target_names": list(classes), "zero_division": 0}
    per_class = classification_report(labels, predicted, output_dict=True, **shared)
    return TestScores(
        predicted=predicted,
        confidences=confidences,
        accuracy=float(np.mean(right)),
        loss=history.cross_entropy(probabilities, labels),
        interval=wilson_interval(int(np.count_nonzero(right)), len(right)),
        calibration=calibration(confidences, right),
        confusions=confusion_matrix(labels, predicted, labels=np.arange(len(classes))),
        per_class={
            label: {
                "precision": per_class[label]["precision"],
                "recall": per_class[label]["recall"],
                "f1": per_class[label]["f1-score"],
                "support": int(per_class[label]["support"]),
            }
            for label in classes
        },
        text=classification_report(labels, predicted, digits=4, **shared),
    )
