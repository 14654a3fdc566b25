"""A two-stage cached feature pipeline for image classification: VGG16 once, classifiers as often as you like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.common.errors import UserError as UserError
    from pipeline.features.arrays import class_names as class_names
    from pipeline.features.neighbours import Neighbours as Neighbours
    from pipeline.features.transformer import VGG16Features as VGG16Features
    from pipeline.models.image_classifier import load_model as load_model
    from pipeline.output.displays import CalibrationDisplay as CalibrationDisplay
    from pipeline.output.displays import ConfusionMatrixDisplay as ConfusionMatrixDisplay
    from pipeline.output.displays import HistoryDisplay as HistoryDisplay
    from pipeline.output.displays import LearningCurveDisplay as LearningCurveDisplay
    from pipeline.output.frames import caches as caches
    from pipeline.output.frames import runs as runs
    from pipeline.output.results import load_run as load_run
    from pipeline.selection.arrays import load_features as load_features
    from pipeline.selection.arrays import row_names as row_names

__version__ = "0.2.0"

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
__all__ = list(_HOMES)


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
