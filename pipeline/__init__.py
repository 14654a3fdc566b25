"""A two-stage cached feature pipeline for image classification: VGG16 once, classifiers as often as you like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.common.errors import UserError
    from pipeline.features.arrays import class_names
    from pipeline.features.neighbours import Neighbours
    from pipeline.features.transformer import VGG16Features
    from pipeline.models.image_classifier import load_model
    from pipeline.output.displays import (
        CalibrationDisplay,
        ConfusionMatrixDisplay,
        HistoryDisplay,
        LearningCurveDisplay,
    )
    from pipeline.output.frames import caches, runs
    from pipeline.output.results import load_run
    from pipeline.selection.arrays import load_features, row_names

__version__ = "0.2.0"

__all__ = [
    "CalibrationDisplay",
    "ConfusionMatrixDisplay",
    "HistoryDisplay",
    "LearningCurveDisplay",
    "Neighbours",
    "UserError",
    "VGG16Features",
    "caches",
    "class_names",
    "load_features",
    "load_model",
    "load_run",
    "row_names",
    "runs",
]

_HOMES = {
    "CalibrationDisplay": "output.displays",
    "ConfusionMatrixDisplay": "output.displays",
    "HistoryDisplay": "output.displays",
    "LearningCurveDisplay": "output.displays",
    "Neighbours": "features.neighbours",
    "UserError": "common.errors",
    "VGG16Features": "features.transformer",
    "caches": "output.frames",
    "class_names": "features.arrays",
    "load_features": "selection.arrays",
    "load_model": "models.image_classifier",
    "load_run": "output.results",
    "row_names": "selection.arrays",
    "runs": "output.frames",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import pipeline`` costs nothing (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from pipeline.common.progress import in_notebook, show_log

    if in_notebook():
        show_log()
    return getattr(import_module(f"pipeline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
