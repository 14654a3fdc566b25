"""What stage two is asked for, as on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.options import Options, option
from pipeline.models import classifiers
from pipeline.selection.grid import SEED, Grid, read_file, read_flags


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """A run, besides its features; ``options`` are those of the classifier that were given."""

    classifier: str = option(
        "logistic", ", ".join(classifiers.REGISTRY), metavar="NAME", choices=tuple(classifiers.REGISTRY)
    )
    models_dir: Path = option(Path("models"), "fitted classifiers", metavar="DIR")
    output_dir: Path = option(Path("output"), "reports and figures", metavar="DIR")
    seed: int = option(0, SEED.help, least=0, most=classifiers.MAX_SEED)
    force: bool = option(False, "compute a run again that is there")
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        classifiers.resolve(self.classifier, self.options)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    """Many runs; ``training`` says what a grid does not vary."""

    training: TrainOptions
    taps: tuple[str, ...] = option(
        (), "all, top, or names separated by commas; given more than once, choices to compare", metavar="NAMES"
    )
    grid: tuple[str, ...] = option(
        (),
        "values of an option, as in C=1e-4..1,log,9 or C=0.001,0.01; may be given for several options",
        metavar="NAME=VALUES",
    )
    file: Path | None = option(None, "experiments to run; see experiments.toml", metavar="FILE.toml")
    yes: bool = option(False, "fit a very large grid without asking")
    no_halving: bool = option(False, "fit every candidate on all rows, however many there are")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.grids()

    def grids(self) -> list[Grid]:
        """All grids that were asked for; one that names nothing where there was none."""
        name = self.training.classifier
        asked = [] if self.file is None else read_file(self.file, name)
        return asked + ([read_flags(self.grid, name)] if self.grid or self.file is None else [])
