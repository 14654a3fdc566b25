"""Probabilities of each row's classes by a classifier that saw neither it nor a row of its group."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.common.progress import Progress
from pipeline.models import classifiers
from pipeline.models.fit import fit_side_by_side
from pipeline.models.history import FitAndValidation, Samples, predict
from pipeline.models.jobs import Job
from pipeline.selection import protocol, splits

RANKED_BY = "self_confidence"  # the probability of the label given


def probabilities(data: Samples, class_names: Sequence[str], *, folds: int, seed: int) -> NDArray[np.float32]:
    """By logistic regressions, one for each fold, of the regularisation that is best on validation: (n, classes).

    Raises UserError when a class has too few images for the folds.
    """
    parts = splits.folds(data.labels, data.groups, folds, seed, class_names)
    rows = protocol.prepare(data, seed, class_names)
    chosen = protocol.select("logistic", classifiers.resolve("logistic", {}), rows, seed).fitted
    scale = rows.scale  # needs no labels, so that of all folds may be one
    jobs = [Job(chosen.params, FitAndValidation(data, *sides, scale), seed) for sides in parts]
    result = np.empty((len(data.labels), len(class_names)), np.float32)
    with Progress(f"fit {folds} folds", 0, "steps") as progress:
        found = fit_side_by_side("logistic", jobs, brief=True, watch=lambda *_: progress.update(1))
    for (_, held_out), fitted in zip(parts, found, strict=True):
        result[held_out] = predict(fitted.model, data.features.take(held_out), scale)
    return result


def check_installed() -> None:
    """Raise UserError when cleanlab is not there, which comes with an extra."""
    if find_spec("cleanlab") is None:
        raise UserError(
            "The package cleanlab, which looks for wrong labels, is not installed. 'make audit' installs it; without "
            "make: pip install 'vgg16-features[audit]'."
        )


def mislabelled(labels: NDArray[Any], found: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Rows (m,) whose label is likely wrong, the likeliest first, and the quality (n,) of all labels, from 0 to 1.

    By confident learning, from probabilities (n, classes) by classifiers that did not see the row. Source: Northcutt,
    Jiang & Chuang 2021, Confident Learning, https://doi.org/10.1613/jair.1.12125; by cleanlab.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    numbers = labels.astype(np.int64)
    rows = find_label_issues(numbers, found, return_indices_ranked_by=RANKED_BY, n_jobs=1)
    quality = get_label_quality_scores(numbers, found, method=RANKED_BY)
    return np.asarray(rows, np.intp), np.asarray(quality, np.float64)
