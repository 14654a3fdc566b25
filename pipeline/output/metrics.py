"""How far a number can be trusted: calibration of confidences, intervals of accuracies, comparison of two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, bootstrap

from pipeline.common.text import padded, shorten
from pipeline.models import history

BINS = 15  # of confidence, as Guo et al. 2017 have them
RESAMPLES = 1000
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(right: float, rows: float) -> tuple[float, float]:
    """95 % interval of an accuracy, of which ``right`` of ``rows`` are right: Wilson's score interval.

    It covers what it says also near 0 and 1, where the usual ``p ± z·s.e.`` does not. Source: Wilson 1927,
    https://doi.org/10.1080/01621459.1927.10502953; neither number need be whole.
    """
    share, z = right / rows, Z95
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    spread = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def cross_validated_interval(accuracy: float, images: int, folds: int, repeats: int) -> tuple[float, float]:
    """95 % interval of the accuracy of a classifier fitted on all images, by its cross-validated accuracy.

    Wilson's, as if there were fewer images: the classifiers of the folds were fitted on much the same rows, which
    Nadeau & Bengio correct for by a variance of 1 / (folds · repeats) + 1 / (folds - 1) times that of a fold, in place
    of the first term alone. A fold has images / folds, and the variance of a share. Source: Nadeau & Bengio 2003,
    https://doi.org/10.1023/A:1024068626366, section 3.
    """
    worth = images / (1 / repeats + folds / (folds - 1))
    return wilson_interval(accuracy * worth, worth)


def calibration(confidences: NDArray[Any], right: NDArray[np.bool_]) -> dict[str, Any]:
    """Compare confidences, float (n,), with whether predictions are right, bool (n,).

    ``ece`` is the expected calibration error: the mean over all rows of the distance between confidence and accuracy of
    their bin, between 0 and 1, in 15 equally wide ``bins``, the upper edge in each (Guo et al. 2017, "On Calibration of
    Modern Neural Networks", https://arxiv.org/abs/1706.04599, section 2). For the eye there are at most as many bins of
    equal mass, none of fewer than 20 rows where there are as many: of each its ``counts`` of rows, its means of
    ``confidence`` and ``accuracy`` and the 95 % interval of the latter, ``low`` and ``high``; equal confidences are in
    one (Nguyen & O'Connor 2015, "Posterior calibration", https://arxiv.org/abs/1508.05154, section 4).
    """
    counts, confidence, accuracy = _binned(np.linspace(0, 1, BINS + 1)[1:-1], confidences, right)
    ece = float((counts * np.abs(confidence - accuracy)).sum() / max(len(right), 1))
    shares = np.linspace(0, 1, max(1, min(BINS, len(right) // 20)) + 1)[1:-1]
    edges = np.unique(np.quantile(confidences, shares, method="lower")) if len(right) else shares
    counts, confidence, accuracy = _binned(edges, confidences, right)
    intervals = [wilson_interval(share * rows, rows) for share, rows in zip(accuracy, counts, strict=True)]
    low, high = np.reshape(intervals, (-1, 2)).T
    columns = {"confidence": confidence, "accuracy": accuracy, "low": low, "high": high}
    rounded = {name: values.round(6).tolist() for name, values in columns.items()}
    return {"ece": ece, "bins": BINS, "counts": counts.tolist(), **rounded}


def _binned(edges: NDArray[Any], confidences: NDArray[Any], right: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
    """Rows, mean confidence and accuracy of each bin that has rows; ``edges`` are those between bins."""
    places = np.searchsorted(edges, confidences, side="left")
    counts = np.bincount(places)
    sums = (np.bincount(places, weights=values) for values in (confidences, right))
    return counts[counts > 0], *(each[counts > 0] / counts[counts > 0] for each in sums)


def similar_order(counts: NDArray[np.int64]) -> list[int]:
    """An order of the classes, those that are taken for one another side by side.

    Average linkage on 1 minus the mean share that is confused either way, its leaves ordered after Bar-Joseph et al.
    2001, https://doi.org/10.1093/bioinformatics/17.suppl_1.S22. ``counts`` is int (true classes, predicted classes).
    """
    from scipy.cluster import hierarchy  # late: it takes a moment, and most matrices need no order
    from scipy.spatial.distance import squareform

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    far = 1 - (shares + shares.T) / 2
    np.fill_diagonal(far, 0)
    tree = hierarchy.linkage(squareform(far), "average", optimal_ordering=True)
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)]


def mcnemar(right: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Compare classifiers two by two on the same rows: McNemar's test, two-sided, mid-p.

    ``right`` is bool (classifiers, rows). Returned are, of each two classifiers, the number of rows that the first is
    right on and the second is not (those that both have right or wrong say nothing), and the probability of so unequal
    counts, or more so, if both were equally good: int and float (classifiers, classifiers).

    Source: Q. McNemar 1947, https://doi.org/10.1007/BF02295996. The mid-p variant, nearer to the level it states than
    the exact test: Fagerland, Lydersen & Laake 2013, https://doi.org/10.1186/1471-2288-13-91.
    """
    counts = right.astype(np.float64)
    only = (counts @ (1 - counts).T).astype(np.int64)
    fewer, rows = np.minimum(only, only.T), only + only.T
    return only, np.minimum(1.0, 2 * binom.cdf(fewer, rows, 0.5) - binom.pmf(fewer, rows, 0.5))


def bootstrap_intervals(losses: NDArray[Any], confidences: NDArray[Any], right: NDArray[np.bool_]) -> dict[str, Any]:
    """95 % intervals of the mean of ``losses`` (n,) and of the calibration error, over seeded resamples of the rows.

    The basic bootstrap (Davison & Hinkley 1997, https://doi.org/10.1017/CBO9780511802843, section 5.2). A measured
    calibration error is above 0 by chance alone, which resamples do not show in full; so that of the calibration error
    begins at 0 where honest confidences would have as large a one in 5 % of cases: consistency resampling, Bröcker &
    Smith 2007, https://doi.org/10.1175/WAF993.1.
    """
    rows = len(right)
    if rows < 2:
        return {"log_loss": None, "calibration": None}
    places = np.clip(np.ceil(confidences * BINS).astype(np.intp), 1, BINS) - 1

    def error(chosen: NDArray[np.intp], hits: NDArray[np.bool_]) -> float:
        """Of some rows and whether they are right."""
        gaps = np.bincount(places[chosen], weights=confidences[chosen] - hits, minlength=BINS)
        return float(np.abs(gaps).sum() / rows)

    everything, random = np.arange(rows), np.random.default_rng(0)
    statistics = {"log_loss": lambda chosen: losses[chosen].mean(), "calibration": lambda at: error(at, right[at])}
    found = {}
    for name, statistic in statistics.items():
        drawn = bootstrap((everything,), statistic, n_resamples=RESAMPLES, method="basic", batch=100, rng=0)
        found[name] = [max(0.0, float(end)) for end in drawn.confidence_interval]
    honest = [error(everything, random.random(rows) < confidences) for _ in range(RESAMPLES)]
    if error(everything, right) <= np.quantile(honest, 0.95):
        found["calibration"][0] = 0.0
    return found


@dataclass(frozen=True)
class Scores:
    """What held-out rows say of a model.

    Of ``metrics.json``, ``fields`` are ``interval``, ``calibration``, ``per_class``, ``balanced_accuracy`` (the mean
    recall), ``macro_f1``, and ``majority``, the accuracy of always guessing the commonest class.
    """

    predicted: NDArray[Any]  # (n,)
    confidences: NDArray[Any]
    confusions: NDArray[np.int64]  # (classes, classes)
    calibration: dict[str, Any]
    text: str  # scikit-learn's classification report; "" without rows
    fields: dict[str, Any]
    accuracy: float | None
    log_loss: float | None


def score(
    probabilities: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], folds: int | None = None
) -> Scores:
    """Score what was predicted of held-out rows: float (repeats, n, classes), of labels int (n,).

    Accuracy and loss are means over the repeats; all else is of the first. ``folds`` are of the cross-validation that
    the rows were held out in.
    """
    from sklearn.metrics import classification_report, confusion_matrix  # late: the page does without

    predicted, confidences = probabilities[0].argmax(axis=1), probabilities[0].max(axis=1, initial=0)
    right, calibrated = predicted == labels, calibration(confidences, predicted == labels)
    if not len(labels):
        nothing = {"precision": None, "recall": None, "f1": None, "support": 0}
        fields: dict[str, Any] = dict.fromkeys(("calibration", "balanced_accuracy", "macro_f1", "majority"))
        fields |= {"interval": {"test": None}, "per_class": dict.fromkeys(classes, nothing)}
        none = np.zeros((len(classes), len(classes)), np.int64)
        return Scores(predicted, confidences, none, calibrated, "", fields, None, None)
    shared = {"labels": np.arange(len(classes)), "target_names": list(classes), "zero_division": 0}
    short = [padded(shorten(name, 24)) for name in classes]  # so that the table fits a terminal, in straight columns
    counted = classification_report(labels, predicted, output_dict=True, **shared)
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    there = [label for label in classes if counted[label]["support"]]
    losses = np.mean([history.row_losses(each, labels) for each in probabilities], axis=0)
    accuracy = float(np.mean(probabilities.argmax(axis=2) == labels))
    if folds is None:
        interval = wilson_interval(accuracy * len(labels), len(labels))
    else:
        interval = cross_validated_interval(accuracy, len(labels), folds, len(probabilities))
    return Scores(
        predicted=predicted,
        confidences=confidences,
        confusions=confusion_matrix(labels, predicted, labels=shared["labels"]),
        calibration=calibrated,
        text=classification_report(labels, predicted, digits=4, **{**shared, "target_names": short}).replace("\0", ""),
        fields={
            "interval": {"test": list(interval), **bootstrap_intervals(losses, confidences, right)},
            "calibration": calibrated,
            "per_class": {
                label: {
                    **{name: counted[label][theirs] for name, theirs in names.items()},
                    "support": int(counted[label]["support"]),
                }
                for label in classes
            },
            # A class without a row has no recall: scikit-learn's macro average would count it as 0.
            "balanced_accuracy": float(np.mean([counted[label]["recall"] for label in there])),
            "macro_f1": float(np.mean([counted[label]["f1-score"] for label in there])),
            "majority": float(np.bincount(labels).max() / len(labels)),
        },
        accuracy=accuracy,
        log_loss=float(losses.mean()) + 0.0,
    )
