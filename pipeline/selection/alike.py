"""Which rows are alike, and which are like no other: by the cosine of standardised features.

What is near is looked for among the leading principal axes, a fiftieth of the columns, in which 60,000 rows are
compared with each other in seconds; how near it is, is then taken in all columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from pipeline.features.neighbours import TINY, Index, unit
from pipeline.features.rows import FeatureRows, Scale

AXES, SAMPLE = 128, 4000
NEAREST = 20  # rows that a row is compared with
FEW = 10  # nearest rows that tell how near rows usually are
FURTHEST = 1 / 200
LIKELY = 0.75  # relative distance among the axes up to which that in all columns is looked at
MAP_AXES, MAP_STEPS = 50, 500


class Alike(NamedTuple):
    """Rows among the leading axes, float32 (n, axes), of length 1 at most, and the nearest of each, (n, NEAREST)."""

    rows: NDArray[np.float32]
    distances: NDArray[np.float32]  # Euclidean
    nearest: NDArray[np.intp]


def compare(rows: FeatureRows, scale: Scale, seed: int) -> Alike:
    """Find the nearest rows of each."""
    count = rows.shape[0]
    sample = np.random.default_rng(seed).choice(count, min(SAMPLE, count), replace=False)
    axes = min(AXES, len(sample), rows.shape[1])
    found = PCA(axes, svd_solver="randomized", random_state=seed).fit(unit(rows.read(np.sort(sample), scale))[0])
    basis, result = np.ascontiguousarray(found.components_.T), np.empty((count, axes), np.float32)

    def visit(here: slice, block: NDArray[np.float32], _: None) -> None:
        result[here] = unit(scale.standardise(block))[0] @ basis

    rows.reduce(visit, lambda: None)
    most = min(NEAREST, count - 1)
    distances, nearest = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(result).kneighbors()
    return Alike(result, distances.astype(np.float32), nearest)


def pairs(alike: Alike, index: Index, threshold: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Near duplicates: pairs (p, 2) of rows, and how far apart they are (p,), the nearest first.

    The cosine distance in all columns is relative to the mean of those that both rows have to their tenth nearest row,
    because plain skies are all near to each other, and duplicates are nearer than the rest of their neighbourhood:
    local scaling, after Zelnik-Manor & Perona 2004, Self-tuning spectral clustering.
    """
    tenth = min(FEW, alike.nearest.shape[1]) - 1

    def relative(distances: NDArray[Any], usual: NDArray[Any], one: Any, other: Any) -> NDArray[np.float64]:
        both = np.sqrt(usual[one].astype(np.float64) * usual[other])
        result: NDArray[np.float64] = np.divide(distances, both, out=np.zeros(both.shape), where=both > 0)
        return result

    every, squares = np.arange(len(alike.rows)), alike.distances**2
    rows, places = np.nonzero(relative(squares, squares[:, tenth], every[:, None], alike.nearest) <= LIKELY)
    ends = np.unique(np.sort(np.stack([rows, alike.nearest[rows, places]], axis=1), axis=1), axis=0)
    usual = index.distances(every, alike.nearest[:, tenth])
    distances = relative(index.distances(ends[:, 0], ends[:, 1]), usual, ends[:, 0], ends[:, 1])
    order = np.argsort(distances, kind="stable")
    order = order[distances[order] <= threshold]
    return ends[order], distances[order]


def far_out(alike: Alike, labels: NDArray[Any]) -> NDArray[np.float64]:
    """How far outliers are from all rows, (n,), as mean cosine distance to the nearest few; 0 for rows that are none.

    An outlier is among the furthest in two hundred both from all rows and from those of its class.
    """
    # Squared lengths outside the axes, where rows are taken to be at right angles.
    rest = np.maximum(1 - np.einsum("ij,ij->i", alike.rows, alike.rows), 0)

    def apart(distances: NDArray[Any], nearest: NDArray[np.intp]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = ((distances**2 + rest[:, None] + rest[nearest]) / 2).mean(axis=1)
        return found

    every = apart(alike.distances[:, :FEW], alike.nearest[:, :FEW])
    distances, nearest = np.zeros((len(labels), FEW)), np.zeros((len(labels), FEW), np.intp)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(FEW, len(own) - 1)
        if count:
            there, places = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(alike.rows[own]).kneighbors()
            few = np.arange(FEW) % count  # of a small class its few again
            distances[own], nearest[own] = there[:, few], own[places[:, few]]
    both = [every, apart(distances, nearest)]
    far = np.all([each >= np.quantile(each, 1 - FURTHEST) for each in both], axis=0)
    return np.where(far, every, 0.0)


def lay_out(alike: Alike, chosen: NDArray[np.intp], seed: int) -> NDArray[np.float64]:
    """A map of some rows: places (n, 2), each coordinate from 0 to 1, by t-SNE of the leading principal axes."""
    most = min(MAP_AXES, alike.rows.shape[1])
    perplexity = min(30.0, max(1.0, (len(chosen) - 1) / 4))
    method = TSNE(2, perplexity=perplexity, max_iter=MAP_STEPS, init="pca", random_state=seed)
    with threadpool_limits(1):  # each of its many short steps is over before threads have met
        found = method.fit_transform(alike.rows[chosen, :most]).astype(np.float64)
    low, high = found.min(axis=0), found.max(axis=0)
    places: NDArray[np.float64] = (found - low) / np.maximum(high - low, TINY)
    return places
