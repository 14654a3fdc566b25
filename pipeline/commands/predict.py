"""Classify images of one's own with a model that `train` fitted.

python -m pipeline predict --model models/RUN.joblib IMAGE|FOLDER…

Size, fit, taps, precision and weights are those that are recorded with the model; nobody has to remember them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.commands.listing import check_targets, check_usable, deliver, gather, told
from pipeline.commands.options import PredictOptions
from pipeline.common.text import aligned, percent, printable, shorten, to_csv
from pipeline.data.dataset import Image, Skipped
from pipeline.data.image_files import FoundFiles
from pipeline.models import persistence
from pipeline.models.image_classifier import ImageClassifier
from pipeline.output import contact_sheet


class Prediction(NamedTuple):
    """What a model says of an image: its most probable classes with their probabilities, best first."""

    file: str
    best: list[tuple[str, float]]


def predict(options: PredictOptions) -> tuple[str, dict[str, Any]]:
    """Classify images; return what is to be printed, and the same for programs.

    Raises UserError when the model is refused, its weights cannot be had, not one image can be used, or, under
    ``strict``, one cannot.
    """
    paths, skipped = gather(options.images, follow_links=options.follow_links)
    model = persistence.load_model(options.model)
    check_targets(options)
    classifier = ImageClassifier(
        model, data_dir=options.data_dir, weights=options.weights, batch_size=options.batch_size
    )
    predictions, faults, thumbnails = _classify(classifier, paths, options)
    skipped = [*skipped, *faults]
    check_usable(predictions, skipped, options.images, strict=options.strict)
    count = len(predictions)
    return deliver(
        options,
        {"model": printable(str(options.model)), "predictions": _told(predictions), "skipped": told(skipped)},
        {"table": lambda most: _table(predictions, most), "csv": lambda _: _csv(predictions)},
        lambda: _sheet(model, predictions, thumbnails),
        skipped,
        f"{count:,} {'prediction' if count == 1 else 'predictions'}",
    )


def _classify(
    classifier: ImageClassifier, paths: Sequence[Path], options: PredictOptions
) -> tuple[list[Prediction], list[Skipped], list[Image]]:
    """Predictions of all images that can be used, the others and why, and thumbnails of the first."""
    predictions: list[Prediction] = []
    faults: list[Skipped] = []
    thumbnails: list[Image] = []
    files = FoundFiles(paths, thumbnail_side=contact_sheet.THUMBNAIL if options.sheet else None)
    for rows, probabilities, unusable in classifier.classify(files):
        faults += [Skipped(str(paths[row]), why) for row, why in unusable.items()]
        predictions += _best(classifier.classes_, [str(paths[row]) for row in rows], probabilities, options.top_k)
        if len(thumbnails) >= contact_sheet.MOST:
            files.thumbnail_side = None
        elif files.thumbnail_side:
            thumbnails += [files.thumbnails.pop(row) for row in rows]
    return predictions, faults, thumbnails


def _best(classes: Any, names: Sequence[str], probabilities: Any, top_k: int) -> list[Prediction]:
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        Prediction(name, [(str(classes[column]), float(row[column])) for column in best])
        for name, row, best in zip(names, probabilities, order, strict=True)
    ]


def _told(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions, for programs."""
    return [
        {
            "file": printable(item.file),
            "classes": [{"label": label, "probability": round(value, 6)} for label, value in item.best],
        }
        for item in predictions
    ]


def _csv(predictions: Sequence[Prediction]) -> str:
    """Each image with its classes, best first."""
    places = range(1, len(predictions[0].best) + 1)
    header = ["file", *(f"{name}_{place}" for place in places for name in ("label", "probability"))]
    rows = (
        [printable(item.file), *(cell for label, value in item.best for cell in (label, f"{value:.6f}"))]
        for item in predictions
    )
    return to_csv(header, rows).decode("utf-8")


def _table(predictions: Sequence[Prediction], most: int) -> str:
    """The same for people, in lines of so many columns."""
    cells = [[f"{shorten(label, 24)} {percent(value, 1)}" for label, value in item.best] for item in predictions]
    names = [printable(item.file) for item in predictions]
    cell_width = max(len(cell) for row in cells for cell in row) + 2
    for_names = max(12, most - cell_width)
    in_a_line = max(1, (most - min(for_names, max(map(len, names)))) // cell_width)
    lines = [
        [shorten(name, for_names) if at == 0 else "", *row[at : at + in_a_line]]
        for name, row in zip(names, cells, strict=True)
        for at in range(0, len(row), in_a_line)
    ]
    return aligned(lines)


def _sheet(model: persistence.Model, predictions: Sequence[Prediction], thumbnails: Sequence[Image]) -> bytes:
    shown = predictions[: contact_sheet.MOST]
    note = f"{len(predictions):,} images" + (
        f", the first {len(shown):,} shown" if len(shown) < len(predictions) else ""
    )
    cells = [
        contact_sheet.Cell(pixels, printable(item.file), *item.best[0], percent(item.best[0][1], 0))
        for item, pixels in zip(shown, thumbnails, strict=False)  # of the last batch there may be more
    ]
    return contact_sheet.draw(cells, f"{model.path.stem}: most probable class", note)
