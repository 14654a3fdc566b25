"""A fitted model with all that comes before it: from images to classes, as `train` went.

>>> import pipeline
>>> model = pipeline.load_model("cifar10-logistic-1a2b3c4d")  # doctest: +SKIP
>>> model.predict(["photo.jpg"])  # doctest: +SKIP
array(['ship'], dtype='<U10')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.common.keys import safe_name
from pipeline.common.text import did_you_mean
from pipeline.data.dataset import LazyImages
from pipeline.features.images import ImageFeatures, identified
from pipeline.models import persistence


class ImageClassifier:
    """Predicts classes of images; sizes, view, fit, taps, precision and weights are those recorded with the model.

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
        self._guard = guard
        self._features = ImageFeatures(
            model.spec, model.weights, f"The model {model.path}", data_dir=data_dir, weights=weights,
            batch_size=batch_size,
        )  # fmt: skip

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
        given = identified(images, guarded=self._guard)
        found = [np.empty((0, len(self.classes_)))]
        for _, probabilities, faults in self.classify(given):
            for row, why in faults.items():
                raise UserError(f"The image {given.ids.names[row]} cannot be used: {why}. Leave it out.")
            found.append(probabilities)
        return np.concatenate(found[1:] or found)

    def classify(self, images: LazyImages) -> Iterator[tuple[list[int], NDArray[Any], Mapping[int, str]]]:
        """Batch by batch: rows that can be used, their probabilities (rows, classes), and why others cannot be."""
        for rows, features, faults in self._features.batches(images, "predicting"):
            none = np.empty((0, len(self.classes_)))
            yield rows, self.model.estimator.predict_proba(features) if rows else none, faults


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
