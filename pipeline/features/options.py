"""What stage one is asked for, as on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.common.cluster_options import ClusterOptions
from pipeline.common.errors import UserError
from pipeline.common.options import option
from pipeline.data.options import SIZE, VIEWS, FitOptions, FolderOptions
from pipeline.network.device import MAX_THREADS
from pipeline.network.taps import check_sizes, parse_taps


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(FolderOptions, FitOptions):
    """Which features, of what, and where."""

    image_size: tuple[int, ...] = option(
        (64,), "height and width the network sees; several, with commas between, stand side by side", **SIZE
    )
    views: str = option(
        "plain", "plain, or mirror: the mean of the features of an image and its mirror image", choices=VIEWS
    )
    preset: str | None = option(
        None, "choices for speed or accuracy; a flag given beside it wins", choices=("fast", "default", "best")
    )
    dataset: str = option("cifar10", "cifar10, digits or a folder of images", metavar="NAME")
    data_dir: Path = option(Path("data"), "data sets and weights", metavar="DIR")
    features_dir: Path = option(Path("features"), "feature caches", metavar="DIR")
    weights: str = option("imagenet", "imagenet, random (untrained) or a Keras file", metavar="NAME|FILE")
    precision: str = option(
        "auto",
        "what the convolutions compute in; auto is what is faster here",
        metavar="NAME",
        choices=("auto", "float32", "bfloat16"),
    )
    taps: str = option("all", "all, rich, top, or names separated by commas", metavar="NAMES")
    limit: int | None = option(None, "only the first N rows of each split", least=1)
    strict: bool = option(False, "make images that cannot be used an error")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.image_size)) < len(self.image_size):
            raise UserError(
                f"The image size parameter must name each size once. Got {','.join(map(str, self.image_size))} instead."
            )
        for size in self.image_size:
            check_sizes(parse_taps(self.taps), size)


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(FeatureOptions, ClusterOptions):
    """How they are computed, besides: it changes memory and speed, never what is asked for."""

    batch_size: int | None = option(
        None,
        "images that go through the network together",
        least=1,
        most=1024,  # rows of a part, which is what a batch belongs to
    )
    threads: int | None = option(None, "threads that compute the features", least=1, most=MAX_THREADS)
