"""New images to features, under the settings of those that there are: of a model's, or of a cache's."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.common.progress import Progress
from pipeline.data import loader, pixel_check
from pipeline.data.dataset import LazyImages, Split, Unusable
from pipeline.data.image_files import ImageArrays, ImageFiles
from pipeline.features.spec import FeatureSpec
from pipeline.network import by_numpy, device
from pipeline.network import compile as compiling
from pipeline.network.weights import VGGWeights, load_weights, say_untrained

log = logging.getLogger("pipeline")

# Pixels, at the network's size, of images that are few: 64 at 64 px, 5 at 224. Up to that NumPy is done before
# TensorFlow is loaded.
FEW_PIXELS = 64 * 64 * 64


def identified(given: Any, *, guarded: bool) -> ImageFiles | ImageArrays:
    """Take arrays or paths, each with its digest; raises UserError when they are neither, or not as they should be."""
    if not hasattr(given, "__len__") or isinstance(given, (str, bytes, os.PathLike)):
        raise UserError(
            f"The images X must be a uint8 array (n, h, w, 3), or a sequence of such images or of paths. Got "
            f"{type(given).__name__}."
        )
    if len(given) and not (isinstance(given, np.ndarray) and given.dtype.kind not in "OUT"):
        given = list(given)
        if all(isinstance(item, (str, os.PathLike)) for item in given):
            return ImageFiles.identified([Path(item) for item in given])
    return ImageArrays.identified(pixel_check.check_images(given, guess=guarded))


class ImageFeatures:
    """Computes features, a few by NumPy; for more the network is loaded and compiled when the first image comes.

    Parameters
    ----------
    recorded : str
        The weights that the spec's were: ``imagenet``, ``random`` or a file.
    owner : str
        Whose spec it is, for messages: ``The model x.joblib``.
    weights : str, optional
        Where the recorded weights are now, if they were a file.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        recorded: str,
        owner: str,
        *,
        data_dir: Path,
        weights: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.spec, self._owner, self._choice = spec, owner, weights or recorded
        self._data_dir, self._batch_size = data_dir, batch_size
        self._few: dict[int, by_numpy.Network] = {}
        self._extractors: dict[int, tuple[int, loader.Compute]] = {}

    def batches(
        self, images: LazyImages | NDArray[np.uint8], title: str
    ) -> Iterator[tuple[list[int], NDArray[np.float32], Mapping[int, str]]]:
        """Batch by batch: rows that can be used, their features (rows, columns), and why others cannot be.

        Raises UserError when the weights cannot be had, or are others than those of the spec.
        """
        if not len(images):
            return
        parts = self.spec.parts
        few = len(images) * sum(part.image_size**2 for part in parts) <= FEW_PIXELS
        # One image need not pay for a batch; a power of two, so that few shapes are ever compiled.
        size = 1 << (len(images) - 1).bit_length()
        if not few:
            size = min(self._plan.batch_size, max(4, size))
        _ = self.network  # what is wrong with it is said before anything is decoded
        splits = {"images": Split(images, np.zeros(len(images), np.uint8))}
        every = [("images", row) for row in range(len(images))]
        with Progress(title, len(images), "images") as progress, ExitStack() as stack:
            sources = [stack.enter_context(loader.batches(splits, every, part, batch_size=size)) for part in parts]
            for batches in zip(*sources, strict=True):  # the same images, for each of the network's sizes
                decoded = itertools.chain(*batches)
                faults = {row: str(image) for (_, row), image in decoded if isinstance(image, Unusable)}
                rows = [row for (_, row), _ in batches[0] if row not in faults]
                columns = np.empty((len(rows), self.spec.columns), np.float32)
                if rows:
                    found: list[NDArray[Any]] = []
                    for part, batch in zip(parts, batches, strict=True):
                        compute = self._by_numpy(part) if few else self._compiled(part, size)
                        found += compute([image for (_, row), image in batch if row not in faults]).values()
                    np.concatenate(found, axis=1, out=columns)
                yield rows, columns, faults
                progress.update(len(batches[0]))

    def _by_numpy(self, part: FeatureSpec) -> loader.Compute:
        """The network at the size of a part of the spec, for any number of images."""
        if part.image_size not in self._few:
            self._few[part.image_size] = by_numpy.Network(self.network.layers, **part.network, precision=part.precision)
        return self._few[part.image_size]

    def _compiled(self, part: FeatureSpec, size: int) -> loader.Compute:
        """The network at the size of a part of the spec, for so many images at a time, or for more if that is there."""
        there = self._extractors.get(part.image_size)
        if there is None or there[0] < size:
            extractor = compiling.make_extractor(
                self.network.layers, **part.network, plan=dataclasses.replace(self._plan, batch_size=size)
            )
            there = self._extractors[part.image_size] = size, extractor
        return there[1]

    @cached_property
    def network(self) -> VGGWeights:
        """The weights of the spec, wherever they are now."""
        wanted = self.spec.weights_digest
        try:
            network = load_weights(self._choice, self._data_dir)
        except UserError as error:
            raise UserError(f"{self._owner} needs the weights it was made with: {error}") from error
        if network.digest != wanted:
            raise UserError(
                f"{self._owner} was made with features of other weights: their digest is {wanted[:12]}…, that of "
                f"{self._choice} is {network.digest[:12]}…. Name the file that it was made with by --weights."
            )
        say_untrained(network.label)
        return network

    @cached_property
    def _plan(self) -> device.Plan:
        """How to compute: in the spec's own precision, or in float32 where nothing here has bfloat16.

        bfloat16 rounds what float32 computes, and `features` takes a cache of either for the same, so what was made
        elsewhere is of use here, too.
        """
        wanted = self.spec.precision
        asked = "auto" if wanted == "bfloat16" and not device.has_bfloat16() else wanted
        size = max(self.spec.sizes)  # all of them take batches that the largest allows
        plan = compiling.make_plan(asked, image_size=size, batch_size=self._batch_size)
        if plan.precision != wanted:
            log.warning(
                "warning: %s was made with %s features, which this machine cannot compute. They are computed in %s, "
                "which differs by about 1 %%: results may differ a little from those of where it was made",
                f"{self._owner[:1].lower()}{self._owner[1:]}", wanted, plan.precision,
            )  # fmt: skip
        return plan
