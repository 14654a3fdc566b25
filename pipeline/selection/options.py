"""What stage two is asked for, as on the command line."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.common.cluster_options import ClusterOptions
from pipeline.common.errors import UserError
from pipeline.common.options import Options, option
from pipeline.models import classifiers
from pipeline.selection.grid import SEED, Grid, read_file, read_flags
from pipeline.selection.trials import Trial

log = logging.getLogger("pipeline")

DEFAULT_CURVE_SEEDS = 3
# Images to fit on, below which presets have a simpler classifier: `mlp` was no better than `logistic` up to 22,500 rows
# of CIFAR-10 (64 px, 6,016 columns), a point worse on 4,000 of MNIST, and took longer.
FEW_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ClusterOptions):
    """A run, besides its features.

    ``options`` are those of the classifier that were given; ``preset`` is what choices were made by, for the record,
    and ``for_few`` the classifier that it has for few images.
    """

    classifier: str = option("logistic", "what is trained", metavar="NAME", choices=tuple(classifiers.REGISTRY))
    models_dir: Path = option(Path("models"), "fitted classifiers", metavar="DIR")
    output_dir: Path = option(Path("output"), "reports and figures", metavar="DIR")
    seed: int = option(0, SEED.help, least=0, most=classifiers.MAX_SEED)
    force: bool = option(False, "compute a run again that is there")
    cv: int | None = option(
        None,
        "cross-validate in N folds in place of holding out validation and test: for few images; never on a cluster",
        least=2,
    )
    repeats: int = option(1, "how often to cross-validate, each time in other folds", least=1)
    class_weight: str | None = option(
        None, "balanced: every class counts alike, however few images it has", metavar="NAME", choices=("balanced",)
    )
    exclude: Path | None = option(
        None, "a table of audit: fit without the rows that it still lists", metavar="AUDIT.csv"
    )
    drop_duplicates: bool = option(
        False, "leave near duplicates of training images, by the last audit, out of validation and test"
    )
    curve_seeds: int = option(DEFAULT_CURVE_SEEDS, "splits that the learning curve is drawn from", least=1)
    no_learning_curve: bool = option(False, "leave the learning curve out")
    figures: str = option("svg", "figures besides PNG: svg, or pdf as well", metavar="NAME", choices=("svg", "pdf"))
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    for_few: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings()
        if self.repeats > 1 and self.cv is None:
            raise UserError("The repeats parameter says how often to cross-validate, so it needs --cv N beside it.")

    def settings(self) -> dict[str, Any]:
        """Every option of the classifier, and how it weighs classes where that was asked for."""
        return self.weighted(self.classifier, classifiers.resolve(self.classifier, self.options))

    def weighted(self, classifier: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The same of parameters of a classifier; raises UserError when it cannot weigh them."""
        if self.class_weight is None:
            return dict(params)
        if not classifiers.get(classifier).weighs_classes:
            raise UserError(
                f"The classifier {classifier} cannot weigh classes. Leave out --class-weight, or choose another of "
                f"{', '.join(name for name, known in classifiers.REGISTRY.items() if known.weighs_classes)}."
            )
        return {**params, "class_weight": self.class_weight}

    def for_rows(self, rows: int) -> Self:
        """The same, for so many rows to fit on."""
        if self.for_few is None or rows >= FEW_ROWS:
            return self
        log.info("%s, as the preset %s has it for fewer than %s images", self.for_few, self.preset, f"{FEW_ROWS:,}")
        return dataclasses.replace(self, classifier=self.for_few, for_few=None)

    def of_trial(self, trial: Trial) -> Self:
        """The same, for the classifier, parameters and seed of a trial."""
        options = {name: value for name, value in trial.params.items() if name != "class_weight"}
        return dataclasses.replace(self, classifier=trial.classifier, options=options, seed=trial.seed, for_few=None)

    def keyed(self) -> dict[str, Any]:
        """All that changes a run's result, besides features, seed and protocol.

        What has its default is left out: the runs from before there was a choice keep their names.
        """
        more = {
            "cv": self.cv,
            "repeats": self.repeats if self.repeats > 1 else None,
            "curve_seeds": None if self.seeds == DEFAULT_CURVE_SEEDS else self.seeds,
        }
        return {**self.settings(), **{name: value for name, value in more.items() if value is not None}}

    @property
    def seeds(self) -> int:
        """How many splits the learning curve is drawn from; 0 without one."""
        return 0 if self.no_learning_curve else self.curve_seeds


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

    def grids(self) -> list[Grid]:
        """All grids that were asked for; one that names nothing where there was none.

        Raises UserError when one is none, or the file of experiments cannot be read.
        """
        name = self.training.classifier
        asked = [] if self.file is None else read_file(self.file, name)
        return asked + ([read_flags(self.grid, name)] if self.grid or self.file is None else [])
