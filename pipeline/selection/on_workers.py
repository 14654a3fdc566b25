"""Fits on the workers of a cluster: candidates of a sweep, and the learning curve.

A worker reads the features from their file where it reaches it, proved to be the same; else they are sent to it, once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.common import cluster, cluster_reach
from pipeline.common.bar import Bar
from pipeline.common.errors import UserError
from pipeline.features import arrays, store
from pipeline.features.rows import FeatureRows
from pipeline.features.spec import FeatureSpec
from pipeline.models.history import FitAndValidation, Samples
from pipeline.network import device
from pipeline.selection import protocol
from pipeline.selection.trials import Trial, TrialResult

PACKAGES = ("scikit-learn", "scipy", "numpy")  # whose versions decide on what is fitted


@dataclass(frozen=True)
class Rows:
    """What a worker is sent once: training rows, or where they are."""

    paths: tuple[Path, ...]  # of the feature files whose columns stand side by side
    proofs: tuple[bytes, ...]  # `Cache.proof` of each
    spec: FeatureSpec  # what they must hold
    taps: tuple[str, ...]  # which columns are needed
    kept: NDArray[np.intp]  # (n,), the rows of train that are used
    labels: NDArray[Any]  # (n,), as are the next two, which `Samples` has
    groups: NDArray[np.intp]
    images: NDArray[np.intp]
    class_names: tuple[str, ...]
    # float16 (n, columns): the rows themselves, for a worker that does not reach the files.
    features: NDArray[np.float16] | None = None


@contextmanager
def workers(
    where: str, open_cache: store.Cache, spec: FeatureSpec, taps: tuple[str, ...], data: Samples, kept: NDArray[np.intp]
) -> Iterator[cluster.Workers]:
    """The workers of a cluster, for the block, each to be prepared with training rows.

    They are ``data``, whose columns are ``taps``: the rows of train that are ``kept``, int (n,), of an open cache of
    which ``spec`` is asked.
    """
    files = open_cache.parts
    rows = Rows(
        tuple(each.path.absolute() for each in files), tuple(each.proof for each in files), spec, taps, kept,
        data.labels, data.groups, data.images, open_cache.class_names,
    )  # fmt: skip
    with cluster_reach.connected(where, None) as client:
        yield cluster.Workers(
            client, where, PACKAGES, prepare, rows, lambda: replace(rows, features=data.features.array())
        )


def fit_groups(
    there: cluster.Workers, groups: Sequence[list[Trial]], rows: int, note: Callable[[str], object]
) -> Iterator[tuple[list[Trial], list[tuple[Mapping[str, Any], TrialResult]]]]:
    """Have trials fitted, as `protocol.arrange` puts them together, on so many distinct images.

    Yields each group when it is done, with what `protocol.fit_together` gives. Raises UserError when one of them cannot
    be fitted.
    """
    tasks = ((together, (fit_group, together, rows)) for together in groups)
    return _run(there, tasks, len, "candidates", note)


def follow(
    where: str, open_cache: store.Cache, spec: FeatureSpec, data: Samples, kept: NDArray[np.intp],
    curves: Sequence[protocol.Curve], progress: Bar,
) -> list[NDArray[np.float64]]:  # fmt: skip
    """Do as `protocol.follow` on the workers of a cluster, each seed by itself; see `workers`."""

    def images(number: int) -> int:
        return sum(curves[number].sizes)

    found = {}
    tasks = ((number, (follow_curve, curve)) for number, curve in enumerate(curves))
    with workers(where, open_cache, spec, spec.taps, data, kept) as there:
        for number, scores in _run(there, tasks, images, "images", progress.note):
            progress.update(images(number))
            found[number] = scores
    return [found[number] for number in range(len(curves))]


def _run(there: cluster.Workers, *how: Any) -> Iterator[tuple[Any, Any]]:
    """Each task as it is done, with its result; why it cannot be done is raised."""
    for task, done, _, _ in there.run(attempt, *how):
        if isinstance(done, UserError):
            raise done
        yield task, done


# --- on a worker ------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """Training rows, and what was found out about them."""

    data: Samples
    taps: tuple[str, ...]
    sides: Callable[[int], FitAndValidation]  # by a seed, each found out once
    cache: store.Cache | None  # open for as long as it is read


def prepare(rows: Rows) -> tuple[Prepared, str]:
    """Read the rows, once for all fits of a process, and say what fits.

    Raises `cluster.Lacking` when their files are not here, or others.
    """
    threads = cluster.threads()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # which `rows.cores` goes by; Dask sets 1
    threadpool_limits(threads)
    cache = None
    if rows.features is None:
        try:
            cache = store.open_all(rows.paths, rows.spec)
        except UserError as error:
            raise cluster.Lacking(str(error)) from error
        if tuple(each.proof for each in cache.parts) != rows.proofs:
            cache.close()
            raise cluster.Lacking("its feature files are others")
        features = arrays.load_split(cache, "train", rows.taps)[0]
        if len(rows.kept) < features.shape[0]:
            features = features.take(rows.kept)
    else:
        features = FeatureRows([rows.features])
    data = Samples(features, rows.labels, rows.groups, rows.images)
    sides = functools.cache(lambda seed: protocol.prepare(data, seed, rows.class_names))
    return Prepared(data, rows.taps, sides, cache), device.label(threads)


def attempt(prepared: Prepared, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do some work; why it cannot be done is its result, for that is none of the worker's faults."""
    try:
        return work(prepared, *arguments)
    except UserError as error:
        return UserError(str(error))


def fit_group(prepared: Prepared, together: list[Trial], rows: int) -> list[tuple[Mapping[str, Any], TrialResult]]:
    """Fit trials side by side."""
    return protocol.fit_together(together, prepared.sides(together[0].seed).first(rows), prepared.taps)


def follow_curve(prepared: Prepared, curve: protocol.Curve) -> NDArray[np.float64]:
    """Follow a learning curve."""
    return protocol.follow(prepared.data, [curve])[0]
