"""How far a number can be trusted: calibration of confidences, intervals of accuracies, comparison of two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of confidence, equally wide, as Guo et al. 2017 have them
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution: 95 % lie within plus and minus it


def wilson_interval(right: int, rows: int, z: float = Z95) -> tuple[float, float]:
    """Interval of an accuracy: Wilson's score interval, 95 % by default.

    It covers what it says also near 0 and 1, where the usual ``p ± z·s.e.`` does not.

    Parameters
    ----------
    right, rows : int
        How many rows are right, of how many.
    z : float
        Quantile of the normal distribution.

    Returns
    -------
    low, high : float
        Between 0 and 1.

    References
    ----------
    E. B. Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    if rows == 0:
        return 0.0, 1.0
    share = right / rows
    centre = share + z * z / (2 * rows)
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy, bin by bin.

    Attributes
    ----------
    ece : float
        Expected calibration error: the mean over all rows of the distance between confidence and accuracy of
        their bin, between 0 and 1.
    counts : list of int
        Rows in each bin.
    confidence, accuracy : list of float
        Means of each bin; 0 where it is empty.
    """

    ece: float
    counts: list[int]
    confidence: list[float]
    accuracy: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, rounded to what a few thousand rows can tell."""
        return {
            "ece": self.ece,
            "bins": len(self.counts),
            "counts": self.counts,
            "confidence": [round(value, 6) for value in self.confidence],
            "accuracy": [round(value, 6) for value in self.accuracy],
        }


def calibration(confidences: NDArray[Any], right: NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """Compare confidences with how often they are right.

    Parameters
    ----------
    confidences : ndarray, float (n,)
        Probability of the predicted class, between 0 and 1.
    right : ndarray, bool (n,)
        Whether the prediction is right.
    bins : int
        Equally wide bins of confidence, each open on the left: (0, 1/bins], and so on.

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
    return Calibration(ece, counts.tolist(), confidence.tolist(), accuracy.tolist())


def mcnemar(only_first: int, only_second: int) -> float:
    """Probability of so unequal counts, or more so, if two classifiers were equally good: McNemar's test, mid-p.

    Parameters
    ----------
    only_first, only_second : int
        Rows that only the one, or only the other classifier has right. Rows that both have right or wrong say
        nothing about which is better.

    Returns
    -------
    float
        Two-sided p-value: small when the difference is unlikely to be chance.

    References
    ----------
    Q. McNemar 1947, https://doi.org/10.1007/BF02295996. The mid-p variant, nearer to the level it states than the
    exact test: Fagerland, Lydersen & Laake 2013, https://doi.org/10.1186/1471-2288-13-91.
    """
    rows, fewer = only_first + only_second, min(only_first, only_second)
    if rows == 0:
        return 1.0
    logs = [math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1) for k in range(fewer + 1)]
    chances = [math.exp(value - rows * math.log(2)) for value in logs]
    return min(1.0, 2 * sum(chances) - chances[-1])


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
    calibration: Calibration
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
