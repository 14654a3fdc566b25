"""Classify images of one's own with a model that `train` fitted.

python -m pipeline predict --model models/RUN.joblib IMAGE|FOLDER…

Size, fit, taps, precision and weights are those that are recorded with the model; nobody has to remember them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.commands.options import PredictOptions
from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.progress import Progress
from pipeline.common.text import count_of_files, printable, to_csv, to_json
from pipeline.data import folder, loader
from pipeline.data.dataset import Image, Skipped, Split, Unusable, few_reasons, listing
from pipeline.data.image_files import FoundFiles
from pipeline.features import compute
from pipeline.models import persistence
from pipeline.network import compile as compiling
from pipeline.network import device
from pipeline.network.weights import VGGWeights, load_weights, say_untrained
from pipeline.output import contact_sheet

log = logging.getLogger("pipeline")


class Prediction(NamedTuple):
    """What a model says of an image: its most probable classes with their probabilities, best first."""

    file: str
    best: list[tuple[str, float]]


def predict(options: PredictOptions) -> str:
    """Classify images; return what is to be printed.

    Raises
    ------
    UserError
        When the model is refused, its weights cannot be had, not one image can be used, or, under ``strict``, one
        cannot.
    """
    paths, skipped = _gather(options.images, follow_links=options.follow_links)
    model = persistence.load_model(options.model)
    for target in filter(None, (options.output, options.sheet)):
        _check_target(target)
    network = _network(model, options)
    predictions, faults, thumbnails = _classify(model, network, paths, options)
    skipped = [*skipped, *faults]
    if not predictions:
        raise UserError(f"There is no image among {count_of_files(len(skipped))}: {few_reasons(skipped)}.")
    if options.strict:
        compute.refuse_skipped(skipped, _named(options.images))
    text = _formatted(options.resolved_format, options.model, predictions, skipped)
    if options.sheet is not None:
        with file_errors("write the contact sheet", options.sheet):
            atomic.write_atomically(options.sheet, _sheet(model, predictions, thumbnails))
        log.info("contact sheet: %s", options.sheet)
    closing = f"{listing(skipped, '')}\n" if skipped else ""
    if options.output is None:
        if options.resolved_format == "table":
            return f"{text}\n{closing}" if closing else text
        if closing:
            log.warning("%s", closing.rstrip())  # beside what a program reads
        return text
    with file_errors("write the predictions", options.output):
        atomic.write_atomically(options.output, text.encode("utf-8"))
    count = len(predictions)
    return f"{printable(str(options.output))}: {count:,} {'prediction' if count == 1 else 'predictions'}\n{closing}"


def _check_target(path: Path) -> None:
    """Raise UserError unless a file can be written there: now, not after an hour of computing."""
    with file_errors("write the file", path):
        if path.is_dir():
            raise UserError(f"There is a folder where {path} is to be written. Name a file.")
        if not path.parent.is_dir():
            raise UserError(f"There is no folder {path.parent} to write {path.name} to. Make it, or name another.")
        if not os.access(path.parent, os.W_OK):
            raise UserError(
                f"The folder {path.parent} cannot be written to. Give yourself permission, or name another."
            )


# --- which images -----------------------------------------------------------------------------


def _gather(named: Sequence[Path], *, follow_links: bool) -> tuple[list[Path], list[Skipped]]:
    """Every image file that is named, or in a folder that is named, and what in these is none."""
    paths: list[Path] = []
    skipped: list[Skipped] = []
    for path in named:
        with file_errors("read the images", path):
            if path.is_dir():
                found, left_out = folder.list_images(path, follow_links=follow_links)
                paths += [path / name for name in found]
                skipped += [Skipped(str(path / item.file), item.reason) for item in left_out]
            elif path.exists():
                paths.append(path)
            else:
                raise UserError(f"There is no image or folder {printable(str(path))}. Check the path.")
    if not paths:
        what = f" {count_of_files(len(skipped))} cannot be used: {few_reasons(skipped)}." if skipped else ""
        raise UserError(f"There is no image in {_named(named)}.{what}")
    return paths, skipped


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(printable(str(path)) for path in paths)


# --- computing --------------------------------------------------------------------------------


def _network(model: persistence.Model, options: PredictOptions) -> VGGWeights:
    """The weights that the model was trained with, wherever they are now."""
    wanted = model.spec.weights_digest
    choice = options.weights or model.weights
    try:
        network = load_weights(choice, options.data_dir)
    except UserError as error:
        raise UserError(f"The model {model.path} needs the weights it was trained with: {error}") from error
    if network.digest != wanted:
        raise UserError(
            f"The model {model.path} was trained on features of other weights: their digest is {wanted[:12]}…, that of "
            f"{choice} is {network.digest[:12]}…. Name the file that it was trained with by --weights."
        )
    say_untrained(network.label)
    return network


def _plan(model: persistence.Model, options: PredictOptions) -> device.Plan:
    """Decide how to compute: in the model's own precision, or in float32 where nothing here has bfloat16.

    bfloat16 rounds what float32 computes, and `features` takes a cache of either for the same, so a model that was
    trained elsewhere is of use here, too.
    """
    wanted = model.spec.precision
    asked = "auto" if wanted == "bfloat16" and not device.has_bfloat16() else wanted
    plan = compiling.make_plan(asked, image_size=model.spec.image_size, batch_size=options.batch_size)
    if plan.precision != wanted:
        log.warning(
            "warning: the model was trained on %s features, which this machine cannot compute. They are computed in "
            "%s, which differs by about 1 %%: probabilities may differ a little from those of where it was trained",
            wanted, plan.precision,
        )  # fmt: skip
    return plan


def _classify(
    model: persistence.Model, network: VGGWeights, paths: Sequence[Path], options: PredictOptions
) -> tuple[list[Prediction], list[Skipped], list[Image]]:
    """Push images through the network and the model, batch by batch; give thumbnails of the first besides."""
    plan = _plan(model, options)
    spec = model.spec
    # One image need not pay for a batch; a power of two, so that few shapes are ever compiled.
    plan = dataclasses.replace(plan, batch_size=min(plan.batch_size, max(4, 1 << (len(paths) - 1).bit_length())))
    predictions: list[Prediction] = []
    faults: list[Skipped] = []
    rows = [("images", row) for row in range(len(paths))]
    source_files = FoundFiles(paths, thumbnail_side=contact_sheet.THUMBNAIL if options.sheet else None)
    thumbnails: list[Image] = []
    splits = {"images": Split(source_files, np.zeros(len(paths), np.uint8))}
    extractor: Callable[[Any], loader.Features] | None = None
    with (
        Progress("predicting", len(paths), "images") as progress,
        loader.batches(splits, rows, spec, batch_size=plan.batch_size) as source,
    ):
        for batch in source:
            usable = [(row, image) for (_, row), image in batch if not isinstance(image, Unusable)]
            faults += [Skipped(str(paths[row]), str(image)) for (_, row), image in batch if isinstance(image, Unusable)]
            if usable:
                pixels = [image for _, image in usable]
                if extractor is None:
                    extractor = compiling.make_extractor(
                        network.layers,
                        spec.taps,
                        image_size=spec.image_size,
                        interpolation=spec.interpolation,
                        plan=plan,
                    )
                features = extractor(pixels)
                columns = np.hstack([features[tap] for tap in spec.taps]).astype(np.float32)
                names = [str(paths[row]) for row, _ in usable]
                predictions += _best(model, names, columns, options.top_k)
                if len(thumbnails) >= contact_sheet.MOST:
                    source_files.thumbnail_side = None
                elif source_files.thumbnail_side:
                    thumbnails += [source_files.thumbnails.pop(row) for row, _ in usable]
            progress.update(len(batch))
    return predictions, faults, thumbnails


def _best(model: persistence.Model, names: Sequence[str], features: Any, top_k: int) -> list[Prediction]:
    names_of_columns = [model.classes[int(label)] for label in model.estimator.classes_]
    probabilities = model.estimator.predict_proba(features)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        Prediction(name, [(names_of_columns[column], float(row[column])) for column in best])
        for name, row, best in zip(names, probabilities, order, strict=True)
    ]


# --- saying it --------------------------------------------------------------------------------


def _formatted(kind: str, model: Path, predictions: Sequence[Prediction], skipped: Sequence[Skipped]) -> str:
    """One line for each image, its classes best first; or the same for programs."""
    if kind == "json":
        found = [
            {
                "file": printable(item.file),
                "classes": [{"label": label, "probability": round(value, 6)} for label, value in item.best],
            }
            for item in predictions
        ]
        faults = [{"file": printable(item.file), "reason": item.reason} for item in skipped]
        return to_json({"model": printable(str(model)), "predictions": found, "skipped": faults}).decode("utf-8")
    if kind == "csv":
        places = range(1, len(predictions[0].best) + 1)
        header = ["file", *(f"{name}_{place}" for place in places for name in ("label", "probability"))]
        rows = (
            [printable(item.file), *(cell for label, value in item.best for cell in (label, f"{value:.6f}"))]
            for item in predictions
        )
        return to_csv(header, rows).decode("utf-8")
    cells = [
        [printable(item.file), *(f"{label} {100 * value:.1f} %" for label, value in item.best)] for item in predictions
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _sheet(model: persistence.Model, predictions: Sequence[Prediction], thumbnails: Sequence[Image]) -> bytes:
    shown = predictions[: contact_sheet.MOST]
    note = f"{len(predictions):,} images" + (
        f", the first {len(shown):,} shown" if len(shown) < len(predictions) else ""
    )
    cells = [
        contact_sheet.Cell(pixels, printable(item.file), *item.best[0])
        for item, pixels in zip(shown, thumbnails, strict=False)  # of the last batch there may be more
    ]
    return contact_sheet.draw(cells, f"{model.path.stem}: most probable class", note)
