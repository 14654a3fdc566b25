"""What the commands besides the two stages are asked for."""

from __future__ import annotations

import logging
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.options import Options, option
from pipeline.models.classifiers import MAX_SEED

FORMATS = ("table", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class MessageOptions(Options):
    """How much a command says, and to whom."""

    quiet: bool = option(False, "say nothing of the work, only warnings and the result")
    verbose: bool = option(False, "say when each thing was done, and where in the program an error arose")
    json: bool = option(False, "print the result as JSON, for programs")

    @property
    def level(self) -> int:
        """From which level on the log is shown."""
        return logging.WARNING if self.quiet else logging.DEBUG if self.verbose else logging.INFO


@dataclass(frozen=True, kw_only=True)
class ListOptions(Options):
    """How a list of something for each image is given."""

    format: str | None = option(
        None, "how the list is written; what the output's name implies when left out", metavar="NAME", choices=FORMATS
    )
    output: Path | None = option(None, "write the list there")
    sheet: Path | None = option(None, "write a contact sheet of thumbnails there", metavar="FILE.png")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise UserError(f"The sheet parameter must name a .png file. Got {self.sheet} instead.")

    @property
    def resolved_format(self) -> str:
        """The format asked for, or the one that the output's name implies."""
        implied = "" if self.output is None else self.output.suffix.lower().removeprefix(".")
        return self.format or (implied if implied in FORMATS else "table")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ListOptions):
    """What `predict` is asked for."""

    images: tuple[Path, ...] = option(MISSING, "what to classify", metavar="IMAGE|FOLDER", positional=True)
    model: Path = option(MISSING, "a model that train wrote", metavar="FILE.joblib")
    top_k: int = option(5, "classes shown for each image", metavar="K", least=1)
    data_dir: Path = option(Path("data"), "where weights are, or go", metavar="DIR")
    weights: str | None = option(None, "where the model's own weights are now, if they were a file", metavar="FILE")
    follow_links: bool = option(False, "follow symbolic links out of a folder")
    strict: bool = option(False, "make images that cannot be used an error")
    batch_size: int | None = option(None, "images that go together", least=1, most=1024)


@dataclass(frozen=True, kw_only=True)
class SimilarOptions(ListOptions):
    """What `similar` is asked for, besides the features that it searches."""

    images: tuple[Path, ...] = option(
        MISSING, "images to find the like of, or rows of the cache, as train:12", metavar="IMAGE|FOLDER|ROW",
        positional=True,
    )  # fmt: skip
    top_k: int = option(10, "rows shown for each image", metavar="K", least=1)


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Options):
    """What `audit` is asked for, besides the features that it looks at."""

    output_dir: Path = option(Path("output"), "reports and figures", metavar="DIR")
    cv: int = option(5, "folds: each row is judged by classifiers fitted on the others", least=2)
    threshold: float = option(
        0.5, "relative distance up to which two images are near duplicates: less is stricter", least=0, most=1
    )
    seed: int = option(0, "of folds, samples and the map", least=0, most=MAX_SEED)
    force: bool = option(False, "make an audit again that is there")


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(Options):
    """What `ensemble` is asked for; all that is not a flag follows from the runs, or is what `train` lets choose."""

    runs: tuple[str, ...] = option(MISSING, "the runs, by their names", metavar="RUN", positional=True)
    data_dir: Path = option(Path("data"), "data sets, for their images", metavar="DIR")
    features_dir: Path = option(Path("features"), "feature caches", metavar="DIR")
    models_dir: Path = option(Path("models"), "fitted classifiers", metavar="DIR")
    output_dir: Path = option(Path("output"), "reports and figures", metavar="DIR")
    force: bool = option(False, "compute an ensemble again that is there")
    figures: str = option("svg", "figures besides PNG: svg, or pdf as well", metavar="NAME", choices=("svg", "pdf"))
    classifier: str = "ensemble"
    preset: None = None
    seed: int = 0

    def keyed(self) -> dict[str, Any]:
        """All that changes its result, besides features, seed and protocol."""
        return {"runs": sorted(self.runs)}


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Options):
    """What `inspect` is asked for, besides the features to compare with."""

    file: Path = option(MISSING, "a feature file", metavar="FILE.h5", positional=True)
    verify: bool = option(False, "exit with status 2 on any fault")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """What `report` is asked for."""

    dataset: str | None = option(None, "print the runs of this data set alone", metavar="NAME")
    data_dir: Path = option(Path("data"), "data sets, for their images", metavar="DIR")
    output_dir: Path = option(Path("output"), "where the runs are", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What `export` is asked for."""

    model: Path = option(MISSING, "a model that train wrote", metavar="FILE.joblib")
