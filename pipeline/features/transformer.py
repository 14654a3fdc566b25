"""VGG16's features as a scikit-learn transformer, each image computed once, whoever asks and however often.

>>> from pipeline import VGG16Features
>>> from sklearn.linear_model import LogisticRegression
>>> from sklearn.pipeline import Pipeline
>>> model = Pipeline([("vgg", VGG16Features(taps="top")), ("clf", LogisticRegression())])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import digest_of
from pipeline.data.dataset import Dataset, Split
from pipeline.data.image_files import ImageArrays, ImageFiles
from pipeline.features import compute, parts, reuse
from pipeline.features.find import candidate_specs
from pipeline.features.images import identified
from pipeline.features.options import ComputeOptions, FeatureOptions
from pipeline.features.spec import FeatureSpec, name_infix
from pipeline.network.device import Plan
from pipeline.network.taps import TAP_COLUMNS, columns_of, parse_taps

NAME = "images"  # what the data set is called that new images make


class VGG16Features(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Pooled activations of VGG16, kept in the same verified caches as those of ``features``.

    Rows are found by the sha256 of their image: an image that any cache in ``features_dir`` has under the same
    settings is not computed again, and what is computed makes one more cache. So a search over a pipeline runs the
    network once for each image, not once for each candidate and fold, also with ``n_jobs``.

    Parameters
    ----------
    taps : str or sequence of str
        ``top`` (the classic pooled output, 512 columns), ``all`` (6,016), ``rich``, or names.
    image_size : int or sequence of int
        Height and width, in pixels, at which the network sees an image; of several, the columns stand side by side.
    views : {'plain', 'mirror'}
        Whether features are those of an image, or their mean with those of its mirror image.
    fit_mode : {'squash', 'crop', 'pad'}
        What happens to an image that is not square: ``--fit`` of the command line.
    weights : str
        ``imagenet``, ``random`` (untrained) or the path of a Keras file of VGG16.
    precision : {'auto', 'float32', 'bfloat16'}
    data_dir, features_dir : str or Path
        Where weights are, or go, and where caches are.
    batch_size : int, optional
        Images that go through the network together, chosen when left out; changes memory and speed only.
    cluster : str, optional
        A Dask cluster to compute on, as ``--cluster`` of the command line has it: ``local:2``, ``tcp://HOST:8786``.
    guard : bool
        Whether arrays that look divided by 255, standardised or BGR are refused. Shape and type are always checked.

    Notes
    -----
    ``transform`` takes a uint8 array (n, h, w, 3), a sequence of uint8 arrays (h, w, 3) of any sizes, or a sequence
    of paths, and gives float32 (n, columns). ``fit`` learns nothing, so nothing of a test fold leaks into it.
    """

    def __init__(
        self,
        taps: str | Sequence[str] = "top",
        *,
        image_size: int | Sequence[int] = 64,
        views: str = "plain",
        fit_mode: str = "squash",
        weights: str = "imagenet",
        precision: str = "auto",
        data_dir: str | Path = "data",
        features_dir: str | Path = "features",
        batch_size: int | None = None,
        cluster: str | None = None,
        guard: bool = True,
    ) -> None:
        self.taps = taps
        self.image_size = image_size
        self.views = views
        self.fit_mode = fit_mode
        self.weights = weights
        self.precision = precision
        self.data_dir = data_dir
        self.features_dir = features_dir
        self.batch_size = batch_size
        self.cluster = cluster
        self.guard = guard

    def fit(self, X: Any, y: Any = None) -> VGG16Features:  # noqa: N803 - scikit-learn's name
        """Check parameters and images; there is nothing to learn.

        Raises
        ------
        UserError
            When a parameter or an image is none that can be used.
        """
        self.sizes_ = self._options().image_size
        identified(X, guarded=self.guard)
        self.taps_ = parse_taps(self.taps)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Features of images.

        Parameters
        ----------
        X : ndarray, uint8 (n, h, w, 3), or sequence of ndarray, uint8 (h, w, 3), or of paths

        Returns
        -------
        ndarray, float32 (n, columns)

        Raises
        ------
        UserError
            When an image cannot be used, the weights cannot be had, or a cache does not verify.
        """
        check_is_fitted(self)
        options = self._options()
        given = identified(X, guarded=self.guard)
        if not len(given):
            return np.empty((0, len(self.sizes_) * columns_of(self.taps_)), np.float32)
        blocks = [self._at_one_size(dataclasses.replace(options, image_size=(size,)), given) for size in self.sizes_]
        return np.hstack(blocks) if len(blocks) > 1 else blocks[0]

    def _at_one_size(self, options: ComputeOptions, given: ImageFiles | ImageArrays) -> NDArray[np.float32]:
        """Features of images at the one size of the options."""
        specs, (size,) = candidate_specs(options), options.image_size
        with file_errors("use the features", options.features_dir):
            found = self._read_known(options, specs, given)
            if found is not None:
                return found
            plan = compute.make_plan(options, size)
            (spec,) = (spec for spec in specs if spec.precision == plan.precision)
            atomic.make_folder(options.features_dir)
            # One writer for all: whoever waits here finds, in a moment, most of what it was to compute.
            lock = options.features_dir / f"{NAME}{name_infix(size)}transform.lock"
            with atomic.lock(lock, parts.say_waiting):
                self._compute_missing(options, spec, plan, given)
            found = self._read_known(options, [spec], given)
        if found is None:
            raise AssertionError("rows were computed and are not there")
        return found

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns: tap and number, as ``block5_pool.avg_17``, behind the size where there are several."""
        check_is_fitted(self)
        sizes = [f"{size}px_" if len(self.sizes_) > 1 else "" for size in self.sizes_]
        return np.array(
            [f"{size}{tap}_{i}" for size in sizes for tap in self.taps_ for i in range(TAP_COLUMNS[tap])], dtype=object
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True  # paths
        tags.requires_fit = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _options(self) -> ComputeOptions:
        taps = ",".join(parse_taps(self.taps))
        given: dict[str, Any] = {**self.get_params(), "dataset": NAME, "fit": self.fit_mode, "taps": taps}
        names = {item.name for item in ComputeOptions.declared()} & set(given)
        return ComputeOptions(**{name: given[name] for name in names})

    def _read_known(
        self, options: FeatureOptions, specs: Sequence[FeatureSpec], given: ImageFiles | ImageArrays
    ) -> NDArray[np.float32] | None:
        """Features of all images, if the caches have them under one of the specs."""
        for spec in specs:
            with reuse.known_rows(options.features_dir, spec, given.ids.digests) as known:
                if known.has(given.ids.digests).all():
                    return known.read(given.ids.digests, spec.taps).astype(np.float32)
        return None

    @staticmethod
    def _compute_missing(
        options: ComputeOptions, spec: FeatureSpec, plan: Plan, given: ImageFiles | ImageArrays
    ) -> None:
        """Make a cache of the images that no other has; the caller holds the lock of all transformers."""
        with reuse.known_rows(options.features_dir, spec, given.ids.digests) as known:
            missing = np.flatnonzero(~known.has(given.ids.digests))
        if not len(missing):
            return
        _, first = np.unique(given.ids.digests[missing], axis=0, return_index=True)
        dataset = _dataset(given.take(missing[np.sort(first)]))
        spec = dataclasses.replace(spec, dataset_digest=dataset.digest)
        build = parts.Build(options.features_dir, spec, dataset.rows)
        with build.hold():
            compute.compute(options, dataset, build, plan)
        if build.skipped:
            first_fault = build.skipped[0]
            raise UserError(
                f"{len(build.skipped):,} of the images cannot be used; the first is {first_fault.file}: "
                f"{first_fault.reason}. Leave them out: every row must have its features. The others are kept."
            )


def _dataset(images: ImageFiles | ImageArrays) -> Dataset:
    """Images as a data set without labels, all of it train."""
    ids, labels = images.ids, np.zeros(len(images), np.uint8)
    return Dataset(
        name=NAME,
        rows={"train": len(images), "test": 0},
        class_names=("unlabelled",),
        digest=digest_of([NAME, sorted(digest.tobytes().hex() for digest in ids.digests)]),
        official=True,
        source="arrays or files given to VGG16Features",
        read=lambda: {"train": Split(images, labels), "test": Split(images, labels[:0])},
        members={"train": ids, "test": ids.first(0)},
    )
