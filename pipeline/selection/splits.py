"""Which rows are on which side: stratified, seeded, and never parts of one group on both.

Rows that belong together, such as copies of one image, are a group: an integer for each row, ``groups`` (n,), says
which. Each group is split as if it were one row, and its other rows follow. Where every row is a group of its own the
sides are those of the rows alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedKFold, train_test_split

from pipeline.common.errors import UserError

VALIDATION_SHARE = 0.1

Rows = NDArray[np.intp]


class Split(NamedTuple):
    """Row numbers of two sides."""

    fit: Rows  # to fit on: group by group, in an order of which every beginning is stratified
    held_out: Rows  # to score
    ends: Rows  # (groups of fit,): fit[:ends[g - 1]] are g groups


def join_groups(*labelings: NDArray[Any], linked: Rows | None = None) -> Rows:
    """Groups (n,), numbered from 0: rows are together where any labeling (n,) has the same value for both.

    ``linked`` (any, 2) are pairs of rows that are together, too.
    """
    rows = len(labelings[0])
    ends = [np.unique(labeling, return_index=True, return_inverse=True)[1:] for labeling in labelings]
    first = np.concatenate([first[inverse] for first, inverse in ends])
    one, other = np.tile(np.arange(rows), len(ends)), first
    if linked is not None:
        one, other = np.concatenate([one, linked[:, 0]]), np.concatenate([other, linked[:, 1]])
    links = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(rows, rows))
    found: Rows = connected_components(links, directed=False)[1].astype(np.intp)
    return found


def one_of_each(groups: Rows) -> Rows:
    """The first row of each group, ascending."""
    return np.sort(np.unique(groups, return_index=True)[1])


class _Grouped:
    """Groups as rows: the label of each, a check that there are enough, and the way back."""

    def __init__(self, labels: NDArray[Any], groups: Rows) -> None:
        self._order = np.argsort(groups, kind="stable")
        _, self._starts, self.sizes = np.unique(groups[self._order], return_index=True, return_counts=True)
        # A group of several classes counts as one of its rarest class, which has the fewest others.
        rarest_first = np.lexsort((np.bincount(labels)[labels], groups))
        self.labels = labels[rarest_first[self._starts]]
        span = groups.max() + 1
        self.counts = np.bincount(np.unique(labels * span + groups) // span)  # groups that have each class
        alone = np.bincount(self.labels)[self.labels] < 2  # what is in other groups, too, but the rarest in this alone
        self.labels = np.where(alone & (self.counts[self.labels] > 1), np.bincount(self.labels).argmax(), self.labels)

    def need(self, least: int, purpose: str, advice: str, class_names: Sequence[str]) -> None:
        """Refuse classes of fewer groups."""
        counts = np.r_[self.counts, np.zeros(len(class_names) - len(self.counts), int)]
        scarce = [f"{name} ({found})" for name, found in zip(class_names, counts, strict=True) if found < least]
        if scarce:
            named = ", ".join(scarce[:10]) + (f" and {len(scarce) - 10} more" if len(scarce) > 10 else "")
            raise UserError(
                f"Every class needs at least {least} distinct images, {purpose}; images of one group and copies of an "
                f"image count once. Fewer found for: {named}. {advice}"
            )

    def rows(self, chosen: Rows) -> Rows:
        """The rows of some groups, group by group."""
        sizes = self.sizes[chosen]
        before = np.repeat(self._starts[chosen] - np.cumsum(sizes) + sizes, sizes)
        return self._order[before + np.arange(len(before))]


def validation_rows(rows: int, classes: int) -> int:
    """How many of so many distinct training images are validation: the share, and at least one for each class."""
    return max(round(VALIDATION_SHARE * rows), classes)


def split(
    labels: NDArray[Any], groups: Rows, seed: int, class_names: Sequence[str], images: Rows | None = None
) -> Split:
    """Part the training rows into those to fit on and those to validate on, by their labels and groups, int (n,).

    Of rows with equal ``images`` one validates: a copy tells nothing new. Raises UserError when a class has fewer than
    two groups.
    """
    grouped = _Grouped(labels, groups)
    grouped.need(2, "one to learn from and one to validate on", "Add images, or leave out --limit.", class_names)
    every, labels = labels, grouped.labels
    validation = validation_rows(len(labels), len(class_names))
    fit, held_out = train_test_split(np.arange(len(labels)), test_size=validation, stratify=labels, random_state=seed)
    for label in np.setdiff1d(labels, labels[held_out]):  # a rare class, whose share was rounded to no row
        commonest = np.bincount(labels[held_out]).argmax()
        given, taken = np.argmax(labels[held_out] == commonest), np.argmax(labels[fit] == label)
        held_out[given], fit[taken] = fit[taken], held_out[given]
    places = np.empty(len(fit))  # group i of the n of its class comes at (i + 1/2) / n
    for label in range(len(class_names)):
        own = np.flatnonzero(labels[fit] == label)
        places[own] = (np.arange(len(own)) + 0.5) / len(own)
    fit = fit[np.argsort(places, kind="stable")]
    chosen = Split(grouped.rows(fit), grouped.rows(held_out), np.cumsum(grouped.sizes[fit]))
    _check_classes(every, chosen.fit, class_names)
    if images is not None:
        chosen = chosen._replace(held_out=chosen.held_out[one_of_each(images[chosen.held_out])])
    return chosen


def folds(
    labels: NDArray[Any], groups: Rows, count: int, seed: int, class_names: Sequence[str], least: int = 2
) -> list[tuple[Rows, Rows]]:
    """Row numbers to fit on and to score, for each of ``count`` folds; both ascending.

    Raises UserError when a class has fewer groups than ``least``, or than one for every fold.
    """
    grouped = _Grouped(labels, groups)
    advice = "Ask for fewer folds with --cv, or add images."
    grouped.need(max(count, least), f"for {count} folds with every class in each", advice, class_names)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # of groups of several classes, counted above
        parts = list(StratifiedKFold(count, shuffle=True, random_state=seed).split(grouped.labels, grouped.labels))
    found = [(np.sort(grouped.rows(fit)), np.sort(grouped.rows(held_out))) for fit, held_out in parts]
    for fit, _ in found:
        _check_classes(labels, fit, class_names)
    return found


def _check_classes(labels: NDArray[Any], fit: Rows, class_names: Sequence[str]) -> None:
    """Refuse to fit without a class, which groups of several classes can take to the other side altogether."""
    absent = np.setdiff1d(np.arange(len(class_names)), labels[fit])
    if len(absent):
        raise UserError(
            f"The groups leave no image of {class_names[absent[0]]} to learn from: its few groups are all on the other "
            f"side, because they hold other classes, too. Try another --seed, or make the groups smaller."
        )


def fewest(labels: NDArray[Any], groups: Rows) -> int:
    """How many groups the rarest class has."""
    return int(_Grouped(labels, groups).counts.min())


def groups_with_every_class(labels: NDArray[Any], chosen: Split) -> int:
    """How many groups of the rows to fit on, from their beginning, hold every class: rare ones come late."""
    last = int(np.unique(labels[chosen.fit], return_index=True)[1].max())
    return int(np.searchsorted(chosen.ends, last, side="right")) + 1
