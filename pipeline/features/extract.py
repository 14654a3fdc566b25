"""Stage one: decide whether the features are there, can be gone on with, or must be computed; then act.

python -m pipeline features --dataset cifar10 --image-size 64
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pipeline.common.errors import UserError, file_errors
from pipeline.common.progress import format_bytes
from pipeline.data import datasets
from pipeline.data.dataset import Dataset, Skipped, listing
from pipeline.features import compute, parts, store
from pipeline.features.find import candidate_specs, find, find_specs
from pipeline.features.options import ComputeOptions
from pipeline.features.spec import FeatureSpec
from pipeline.network import device
from pipeline.network.taps import columns_of
from pipeline.network.weights import say_untrained

log = logging.getLogger("pipeline")


class Extracted(NamedTuple):
    """A valid cache, and lines for people: its size, its columns, its rate or that it was there, what was left out."""

    path: Path
    summary: str


def extract_all(options: ComputeOptions) -> list[Extracted]:
    """Do as `extract` does for each size that is asked for: a cache for each, all in one precision."""
    if len(options.image_size) > 1 and options.precision == "auto":
        try:
            _, spec = find(options)
            precision = spec.precision
        except UserError:
            size = max(options.image_size)
            precision = compute.make_plan(options, size).precision
        options = dataclasses.replace(options, precision=precision)
    return [extract(dataclasses.replace(options, image_size=(size,))) for size in options.image_size]


def extract(options: ComputeOptions) -> Extracted:
    """Make sure that the features asked for, at one size, are in a valid cache.

    Raises UserError when an input is faulty, or what is on disk under the cache's name is not a valid cache, and
    Interrupted on SIGINT or SIGTERM.
    """
    if options.cluster is None and options.threads is not None and options.threads > device.cores():
        log.warning(
            "warning: %d threads on %d cores compute no faster, and usually slower", options.threads, device.cores()
        )
    folder = options.features_dir
    with ThreadPoolExecutor(1) as aside:  # both digests of a hit, of the images and of the features, are taken at once
        likely = find_specs(folder, candidate_specs(options))[:1]
        opening = [aside.submit(store.open, *guess) for guess in likely]
        dataset = datasets.load_dataset(options.dataset, options.data_dir, download=True, how=options)
        specs = candidate_specs(options, dataset)
        found = find_specs(folder, specs)[:1]
    if found:
        with opening[0].result() if found == likely else store.open(*found[0]) as hit:
            parts.Build(folder, hit.spec, hit.rows).tidy()
            return _found(hit, options)
    (size,) = options.image_size
    plan = compute.make_plan(options, size)
    (spec,) = (spec for spec in specs if spec.precision == plan.precision)
    return _build(options, dataset, spec, plan)


# --- deciding ---------------------------------------------------------------------------------


def _found(cache: store.Cache, options: ComputeOptions) -> Extracted:
    say_untrained(cache.provenance["weights"])
    columns = f"{columns_of(cache.spec.taps):,} columns"
    summary = f"{cache.path} is valid: {format_bytes(cache.size)}, {columns}, made {cache.created}; nothing to compute"
    return _extracted(options, summary, cache.path, cache.skipped, str(cache.provenance["dataset_source"]))


def _extracted(options: ComputeOptions, summary: str, path: Path, skipped: Sequence[Skipped], source: str) -> Extracted:
    """A cache with its closing lines; under ``--strict`` it must have left nothing out."""
    if options.strict:
        compute.refuse_skipped(skipped, source)
    lines = listing(skipped, f": see 'python -m pipeline inspect {path}'")
    return Extracted(path, "\n".join(filter(None, (summary, lines))))


# --- acting -----------------------------------------------------------------------------------


def _build(options: ComputeOptions, dataset: Dataset, spec: FeatureSpec, plan: device.Plan) -> Extracted:
    """Compute a cache, unless another process made it while this one waited for the lock."""
    dataset = dataset.first(spec.limit)
    for name, count in dataset.rows.items():
        if spec.limit is not None and count < len(dataset.class_names):
            raise UserError(
                f"The limit parameter must leave at least as many rows as classes: {len(dataset.class_names)} in "
                f"{dataset.name}. Got {count} rows of {name}."
            )
    build = parts.Build(options.features_dir, spec, dataset.rows)
    kept = f"The parts that are finished are kept in {build.parts_folder}."
    with file_errors("write the features", options.features_dir, kept), build.hold():
        for made_meanwhile in find_specs(options.features_dir, [spec])[:1]:
            with store.open(*made_meanwhile) as cache:
                return _found(cache, options)
        if options.strict:
            compute.check_images(dataset, build, plan.batch_size)
        _check_space(build)
        summary = compute.compute(options, dataset, build, plan)
    return _extracted(options, summary, build.target, build.skipped, dataset.source)


def _check_space(build: parts.Build) -> None:
    """Refuse to begin what the disk cannot hold: the parts and, for a moment, the final file."""
    there = sum(entry.stat().st_size for entry in build.parts_folder.glob("*")) if build.parts_folder.exists() else 0
    result = 2 * sum(build.rows.values()) * columns_of(build.spec.taps)
    needed = int(2.05 * result) - there  # 5 % for HDF5's own and the labels
    free = shutil.disk_usage(build.folder).free
    if free < needed:
        raise UserError(
            f"The disk of {build.folder} has {format_bytes(free)} free; computing these features takes "
            f"{format_bytes(needed)} ({format_bytes(result)} for the result, as much again for the parts "
            f"until it is complete). Free some space, choose fewer --taps, or another disk with --features-dir."
        )
