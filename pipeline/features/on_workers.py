"""Parts on the workers of a cluster: rows go out, features come back, in whatever order the workers finish.

What comes back is put together, proved and written by the process that asked, by the code that one machine uses.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import cluster, cluster_reach
from pipeline.common.bar import Bar
from pipeline.common.errors import UserError
from pipeline.data import loader
from pipeline.data.dataset import Dataset, Split
from pipeline.data.image_files import ImageArrays, ImageFiles
from pipeline.features.options import ComputeOptions
from pipeline.features.parts import Part
from pipeline.features.spec import FeatureSpec
from pipeline.network import compile as compiling
from pipeline.network import device, weights
from pipeline.network.weights import VGGWeights

PACKAGES = ("tensorflow", "numpy", "pillow")  # whose versions decide on the bits of a feature
DATA_DIR = "PIPELINE_DATA_DIR"  # of a worker's environment: where folders of images are, if not where they are here

Images = NDArray[np.uint8] | ImageFiles | ImageArrays
Computed = tuple[list[str | None], loader.Features]  # of each row why it cannot be used; the features of the others


@dataclass(frozen=True)
class Setup:
    """What a worker is sent once: the network and how it is to compute."""

    layers: Mapping[str, weights.Layer]
    spec: FeatureSpec
    batch_size: int  # images that go through together, the same on all workers
    threads: int | None  # that each computes with; None for those it was given
    folder: Path | None  # where the images are, when they are in a folder


def compute_parts(
    options: ComputeOptions,
    dataset: Dataset,
    spec: FeatureSpec,
    network: VGGWeights,
    batch_size: int,
    rows: Mapping[Part, NDArray[np.intp]],
    progress: Bar,
) -> Generator[tuple[Part, Iterator[loader.Features | str], str, float]]:
    """Have ``rows`` of parts computed, int (n,) from the first of each part.

    Yields each part as it comes, what `loader.compute_rows` gives of these rows, the machine and its processor, and the
    seconds that it took. Raises UserError when the cluster cannot do it.
    """
    where = str(options.cluster)
    folder = Path(dataset.source).absolute() if Path(dataset.source).is_dir() else None
    setup = Setup(network.layers, spec, batch_size, options.threads, folder)
    tasks = ((part, (_travelling(dataset.splits[part.split], part.start + own),)) for part, own in rows.items())
    with cluster_reach.connected(where, options.threads) as client:
        workers = cluster.Workers(client, where, PACKAGES, prepare, setup)
        running = workers.run(compute, tasks, lambda part: len(rows[part]), "images", progress.note)
        for part, computed, label, seconds in running:
            progress.update(len(rows[part]))
            yield part, loader.each_row(*computed), label, seconds


def _travelling(split: Split, rows: NDArray[np.intp]) -> Images:
    """Images as they are sent: those in memory themselves, of those in files the paths and digests."""
    images = split.images
    if isinstance(images, ImageFiles):
        return images.take(rows).moved(Path.absolute)
    if isinstance(images, (np.ndarray, ImageArrays)):
        return images[rows] if isinstance(images, np.ndarray) else images.take(rows)
    raise AssertionError(f"images of the type {type(images).__name__} cannot be sent")


# --- on a worker ------------------------------------------------------------------------------


def prepare(setup: Setup) -> tuple[tuple[Setup, loader.Compute, int], str]:
    """Compile the network, once for all tasks of a process; and say what computes.

    Raises UserError when the weights arrived as others, or this machine cannot compute in the spec's precision.
    """
    spec, found = setup.spec, weights.digest(setup.layers)
    if found != spec.weights_digest:
        raise UserError(f"its weights have the digest {found[:12]}…; expected {spec.weights_digest[:12]}…")
    plan = compiling.make_plan(spec.precision, image_size=spec.image_size, batch_size=setup.batch_size)
    threads = setup.threads or cluster.threads()
    extractor = compiling.make_extractor(setup.layers, **spec.network, plan=plan, threads=threads)
    on_gpu = "" if plan.device.startswith("CPU") else f", {plan.label}"
    return (setup, extractor, threads), f"{device.label(threads)}{on_gpu}"


def compute(prepared: tuple[Setup, loader.Compute, int], images: Images) -> Computed:
    """Features of some images; raises UserError when one is not here, or is not the one that was meant."""
    setup, extractor, threads = prepared
    if isinstance(images, ImageFiles):
        images = _here(images, setup.folder)
    faults: list[str | None] = []
    found: list[loader.Features] = []
    splits = {"part": Split(images, np.zeros(len(images), np.uint8))}
    rows = [("part", row) for row in range(len(images))]
    with loader.batches(splits, rows, setup.spec, batch_size=setup.batch_size, threads=threads) as source:
        for batch in source:
            own, features = loader.compute_batch(batch, extractor)
            faults += own
            found += [features] if len(features) else []
    return faults, np.concatenate(found) if found else np.empty((0, 0), np.float16)


def _here(images: ImageFiles, folder: Path | None) -> ImageFiles:
    """The same files where this worker has their folder: at the same path, or in a folder of its environment's."""
    own: Any = os.environ.get(DATA_DIR)
    if own is None or folder is None or folder.is_dir():
        return images
    return images.moved(lambda path: Path(own) / folder.name / path.relative_to(folder))
