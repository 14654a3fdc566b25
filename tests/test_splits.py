"""Which rows are on which side: copies stay together, every class is everywhere, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, train_test_split

from pipeline.common.errors import UserError
from pipeline.selection import splits

NAMES = [f"class {number}" for number in range(100)]


@st.composite
def images(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.intp], int]:
    """Labels and groups of rows in any order: up to five classes of 2 to 30 images, each present 1 to 9 times."""
    copies = draw(st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=30), min_size=2, max_size=5))
    labels = np.concatenate([np.full(sum(each), label) for label, each in enumerate(copies)])
    groups = np.repeat(np.arange(sum(map(len, copies))), np.concatenate(copies))
    seed = draw(st.integers(0, 2**32 - 1))
    order = np.random.default_rng(seed).permutation(len(labels))
    return labels[order], splits.join_groups(groups[order]), seed


def check_sides(labels: NDArray[np.int64], groups: NDArray[np.intp], fit: splits.Rows, held_out: splits.Rows) -> None:
    assert not set(groups[fit]) & set(groups[held_out])
    assert set(labels[fit]) == set(labels[held_out]) == set(labels)


@given(images())
def test_no_group_is_on_both_sides(drawn: tuple[NDArray[np.int64], NDArray[np.intp], int]) -> None:
    labels, groups, seed = drawn
    classes = NAMES[: labels.max() + 1]
    parts = splits.split(labels, groups, seed, classes)
    assert sorted([*parts.fit, *parts.held_out]) == list(range(len(labels)))
    check_sides(labels, groups, parts.fit, parts.held_out)
    assert len(set(groups[parts.held_out])) == splits.validation_rows(len(set(groups)), len(classes))
    for number, end in enumerate(parts.ends, 1):
        assert len(set(groups[parts.fit[:end]])) == number
        assert not set(groups[parts.fit[:end]]) & set(groups[parts.fit[end:]])
    enough = splits.groups_with_every_class(labels, parts)
    assert set(labels[parts.fit[: parts.ends[enough - 1]]]) == set(labels)
    assert set(labels[parts.fit[: parts.ends[enough - 2]]]) < set(labels)

    fewest = min(len(set(groups[labels == label])) for label in range(len(classes)))
    for count in (2, 3, 5):
        least = max(count, 4 if count == 2 else 3)  # two are left to choose on and to fit
        if fewest < least:
            with pytest.raises(UserError, match="copies of an image count once. Fewer found for"):
                splits.folds(labels, groups, count, seed, classes, least)
            continue
        found = splits.folds(labels, groups, count, seed, classes, least)
        assert sorted(np.concatenate([held_out for _, held_out in found])) == list(range(len(labels)))
        for fit, held_out in found:
            check_sides(labels, groups, fit, held_out)
            inner = splits.split(labels[fit], groups[fit], seed, classes)
            check_sides(labels, groups, fit[inner.fit], fit[inner.held_out])


@given(st.lists(st.integers(2, 40), min_size=2, max_size=5), st.integers(0, 2**32 - 1))
def test_rows_without_copies_are_split_as_scikit_learn_does(counts: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    groups, classes = splits.join_groups(np.arange(len(labels))), NAMES[: len(counts)]
    assert groups.tolist() == list(range(len(labels)))
    parts = splits.split(labels, groups, seed, classes)
    size = splits.validation_rows(len(labels), len(counts))
    _, expected = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed)
    lacking = len(set(labels)) - len(set(labels[expected]))
    assert np.count_nonzero(parts.held_out != expected) == lacking, "but for classes that would have no row"
    assert parts.ends.tolist() == list(range(1, len(parts.fit) + 1))
    if min(counts) >= 3:
        expected_folds = StratifiedKFold(3, shuffle=True, random_state=seed).split(labels, labels)
        for found, fold in zip(splits.folds(labels, groups, 3, seed, classes), expected_folds, strict=True):
            assert [each.tolist() for each in found] == [each.tolist() for each in fold]


def test_every_beginning_of_the_rows_is_stratified_and_seeded() -> None:
    labels, groups = np.repeat([0, 1, 2], [500, 300, 200]), np.arange(1000)
    parts = splits.split(labels, groups, 0, NAMES[:3])
    assert np.bincount(labels[parts.held_out]).tolist() == [50, 30, 20]
    for size in (10, 60, 333, 900):
        shares = np.bincount(labels[parts.fit[:size]], minlength=3) / size
        np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=1.5 / size)
    assert (splits.split(labels, groups, 0, NAMES[:3]).held_out == parts.held_out).all()
    assert (splits.split(labels, groups, 1, NAMES[:3]).held_out != parts.held_out).any()


def test_groups_are_joined_over_what_is_shared() -> None:
    by_image = np.array([5, 5, 2, 3, 4, 2])
    by_person = np.array([0, 1, 2, 1, 4, 5])
    joined = splits.join_groups(by_image, by_person)
    assert joined.tolist() == [0, 0, 1, 0, 2, 1]
    assert splits.one_of_each(joined).tolist() == [0, 2, 4]


def test_what_cannot_be_split_says_how_many_images_it_needs() -> None:
    labels, groups = np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 1, 2, 2, 2, 3, 4])
    with pytest.raises(UserError, match=r"at least 2 distinct images.*Fewer found for: class 1 \(1\)\. Add images"):
        splits.split(labels, groups, 0, NAMES[:3])
    with pytest.raises(UserError, match=r"at least 7 distinct.*class 0 \(2\), class 1 \(1\), class 2 \(2\)"):
        splits.folds(labels, groups, 7, 0, NAMES[:3])


def test_a_group_of_several_classes_counts_for_the_rarest() -> None:
    """Such as a page with many letters: the classes that few pages have are still on both sides."""
    labels = np.array([0, 1] * 2 + [0] * 20)
    groups = np.array([0, 0, 1, 1, *range(2, 22)])
    for seed in range(10):
        parts = splits.split(labels, groups, seed, NAMES[:2])
        check_sides(labels, groups, parts.fit, parts.held_out)
