"""A two-stage cached feature pipeline for image classification: VGG16 once, classifiers as often as you like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.common.errors import UserError
    from pipeline.features.arrays import class_names, load_features
    from pipeline.features.transformer import VGG16Features

__version__ = "0.2.0"

__all__ = ["UserError", "VGG16Features", "class_names", "load_features"]

_HOMES = {
    "UserError": "common.errors",
    "VGG16Features": "features.transformer",
    "class_names": "features.arrays",
    "load_features": "features.arrays",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import pipeline`` costs nothing (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pipeline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
