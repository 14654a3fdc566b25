"""A fitted model with all that comes before it: from images to classes, as `train` went.

>>> import pipeline
>>> model = pipeline.load_model("cifar10-logistic-1a2b3c4d")  # doctest: +SKIP
>>> model.predict(["photo.jpg"])  # doctest: +SKIP
array(['ship'], dtype='<U10')
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.common.keys import safe_name
from pipeline.common.progress import Progress
from pipeline.common.text import did_you_mean
from pipeline.data import loader
from pipeline.data.dataset import LazyImages, Split, Unusable
from pipeline.models import persistence
from pipeline.network import compile as compiling
from pipeline.network import device
from pipeline.network.weights import VGGWeights, load_weights, say_untrained

log = logging.getLogger("pipeline")


class ImageClassifier:
    """Predicts classes of images; size, fit, taps, precision and weights are those recorded with the model.

    Attributes
    ----------
    classes_ : ndarray of str (classes,)
        What the columns of `predict_proba` mean.
    model : persistence.Model
        The classifier itself, from features to numbers of classes, and its description.
    """

    def __init__(
        self,
        model: persistence.Model,
        *,
        data_dir: Path = Path("data"),
        weights: str | None = None,
        batch_size: int | None = None,
        guard: bool = True,
    ) -> None:
        self.model = model
        self.classes_ = np.array([model.classes[int(label)] for label in model.estimator.classes_])
        self._data_dir, self._weights, self._batch_size, self._guard = data_dir, weights, batch_size, guard

    def __repr__(self) -> str:
        return f"<ImageClassifier {self.model.path.stem}: {len(self.classes_)} classes>"

    def predict(self, images: Any) -> NDArray[np.str_]:
        """The most probable class of each image.

        Parameters
        ----------
        images : ndarray, uint8 (n, h, w, 3), or sequence of ndarray, uint8 (h, w, 3), or of paths

        Returns
        -------
        ndarray of str (n,)

        Raises
        ------
        UserError
            When an image cannot be used, or the weights that the model was trained with cannot be had.
        """
        classes: NDArray[np.str_] = self.classes_[self.predict_proba(images).argmax(axis=1)]
        return classes

    def predict_proba(self, images: Any) -> NDArray[Any]:
        """Probabilities of all classes, float (n, classes), for each image; otherwise as `predict`."""
        from pipeline.features.transformer import identified  # late: it loads scikit-learn

        given = identified(images, guarded=self._guard)
        found = [np.empty((0, len(self.classes_)))]
        for _, probabilities, faults in self.classify(given):
            for row, why in faults.items():
                raise UserError(f"The image {given.ids.names[row]} cannot be used: {why}. Leave it out.")
            found.append(probabilities)
        return np.concatenate(found[1:] or found)

    def classify(self, images: LazyImages) -> Iterator[tuple[list[int], NDArray[Any], Mapping[int, str]]]:
        """Batch by batch: rows that can be used, their probabilities (rows, classes), and why others cannot be."""
        if not len(images):
            return
        network, spec, plan = self.network, self.model.spec, self._plan
        # One image need not pay for a batch; a power of two, so that few shapes are ever compiled.
        plan = dataclasses.replace(plan, batch_size=min(plan.batch_size, max(4, 1 << (len(images) - 1).bit_length())))
        splits = {"images": Split(images, np.zeros(len(images), np.uint8))}
        every = [("images", row) for row in range(len(images))]
        extractor: Callable[[Any], loader.Features] | None = None
        with (
            Progress("predicting", len(images), "images") as progress,
            loader.batches(splits, every, spec, batch_size=plan.batch_size) as source,
        ):
            for batch in source:
                faults = {row: str(image) for (_, row), image in batch if isinstance(image, Unusable)}
                usable = {row: image for (_, row), image in batch if not isinstance(image, Unusable)}
                probabilities = np.empty((0, len(self.classes_)))
                if usable:
                    extractor = extractor or compiling.make_extractor(
                        network.layers,
                        spec.taps,
                        image_size=spec.image_size,
                        interpolation=spec.interpolation,
                        plan=plan,
                    )
                    features = extractor(list(usable.values()))
                    columns = np.hstack([features[tap] for tap in spec.taps]).astype(np.float32)
                    probabilities = self.model.estimator.predict_proba(columns)
                yield list(usable), probabilities, faults
                progress.update(len(batch))

    @cached_property
    def network(self) -> VGGWeights:
        """The weights that the model was trained with, wherever they are now."""
        path, wanted = self.model.path, self.model.spec.weights_digest
        choice = self._weights or self.model.weights
        try:
            network = load_weights(choice, self._data_dir)
        except UserError as error:
            raise UserError(f"The model {path} needs the weights it was trained with: {error}") from error
        if network.digest != wanted:
            raise UserError(
                f"The model {path} was trained on features of other weights: their digest is {wanted[:12]}…, that of "
                f"{choice} is {network.digest[:12]}…. Name the file that it was trained with by --weights."
            )
        say_untrained(network.label)
        return network

    @cached_property
    def _plan(self) -> device.Plan:
        """How to compute: in the model's own precision, or in float32 where nothing here has bfloat16.

        bfloat16 rounds what float32 computes, and `features` takes a cache of either for the same, so a model that was
        trained elsewhere is of use here, too.
        """
        wanted = self.model.spec.precision
        asked = "auto" if wanted == "bfloat16" and not device.has_bfloat16() else wanted
        plan = compiling.make_plan(asked, image_size=self.model.spec.image_size, batch_size=self._batch_size)
        if plan.precision != wanted:
            log.warning(
                "warning: the model was trained on %s features, which this machine cannot compute. They are computed "
                "in %s, which differs by about 1 %%: probabilities may differ a little from those of where it was "
                "trained",
                wanted, plan.precision,
            )  # fmt: skip
        return plan


def load_model(
    run: str | Path,
    *,
    models_dir: str | Path = "models",
    data_dir: str | Path = "data",
    weights: str | None = None,
    batch_size: int | None = None,
    guard: bool = True,
) -> ImageClassifier:
    """Load what a run fitted, if it is what its description says it is.

    Parameters
    ----------
    run : str or Path
        A run's name, or the path of a ``.joblib`` or ``.skops`` file.
    models_dir, data_dir : str or Path
        Where models are, and where the weights of VGG16 are, or go.
    weights : str, optional
        Where the model's own weights are now, if they were a file.
    batch_size : int, optional
        Images that go through the network together, chosen when left out; changes memory and speed only.
    guard : bool
        Whether arrays that look divided by 255, standardised or BGR are refused. Shape and type are always checked.

    Raises
    ------
    UserError
        When there is no such model, its digest is not the recorded one, or another version made it.
    """
    path = Path(run)
    if path.suffix not in (persistence.JOBLIB, persistence.SKOPS):
        folder = Path(models_dir)
        path = folder / f"{safe_name(str(run))}{persistence.JOBLIB}"
        if not path.is_file():
            near = did_you_mean(str(run), (each.stem for each in folder.glob(f"*{persistence.JOBLIB}")))
            raise UserError(f"There is no model of the run {run} in {folder}.{near} pipeline.runs() lists all runs.")
    return ImageClassifier(
        persistence.load_model(path), data_dir=Path(data_dir), weights=weights, batch_size=batch_size, guard=guard
    )
