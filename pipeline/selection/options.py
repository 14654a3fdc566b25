"""What `train` and `sweep` are asked for, besides the features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.models import classifiers


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `train` is asked for, besides the features."""

    classifier: str = "logistic"
    options: Mapping[str, Any] = field(default_factory=dict)
    models_dir: Path = Path("models")
    output_dir: Path = Path("output")
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        classifiers.resolve(self.classifier, self.options)
        classifiers.check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What `sweep` is asked for, besides the features.

    Attributes
    ----------
    training : TrainOptions
        The classifier and its options where a grid does not vary them, folders and seed.
    taps : tuple of str
        Choices of taps, each as ``--taps`` has it; the built-in ones when there is none.
    grids : tuple of (str, values)
        As `grid.parse_grid` gives them.
    file : Path or None
        An experiment file.
    sure : bool
        Whether a very large grid is meant.
    halving : bool
        Whether large grids are thinned out on fewer rows first.
    """

    training: TrainOptions
    taps: tuple[str, ...] = ()
    grids: tuple[tuple[str, Any], ...] = ()
    file: Path | None = None
    sure: bool = False
    halving: bool = True
