"""Which file serves: told by what each claims to hold, read as plain text, and verified when it is opened."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from pipeline.common.errors import UserError, file_errors
from pipeline.data import datasets
from pipeline.data.dataset import Dataset, NotFoundHere
from pipeline.features.options import FeatureOptions
from pipeline.features.spec import FeatureSpec
from pipeline.features.store import CacheError, peek_spec
from pipeline.network import device
from pipeline.network.taps import parse_taps
from pipeline.network.weights import weights_digest

log = logging.getLogger("pipeline")


def find(options: FeatureOptions) -> tuple[list[Path], FeatureSpec]:
    """Paths of the caches that serve the options, one for each size, and the spec of exactly what is asked of them.

    All are of one precision. Stage two needs the features, not the images: where the data set is not on this machine,
    the one cache of its name is used. Where there is none, or more than one, that is a UserError.
    """
    dataset, absent = None, None
    try:
        dataset = datasets.load_dataset(options.dataset, options.data_dir, download=False, how=options)
    except NotFoundHere as error:
        absent = error
    specs = candidate_specs(options, dataset)
    # Of each precision, for each size the caches that serve: the first precision that has one for every size.
    each = [[find_specs(options.features_dir, [part]) for part in spec.parts] for spec in specs]
    complete = [held for held in each if all(held)]
    if not complete and absent and options.dataset not in datasets.NAMES:
        raise absent  # neither a cache nor a folder has that name, so 'features' could not make one
    if not complete:
        best = max(each, key=lambda held: sum(map(bool, held)))
        missing = [size for size, held in zip(options.image_size, best, strict=True) if not held]
        command = f"python -m pipeline features {options.command_line()}".rstrip()
        raise UserError(
            f"There is no feature cache in {options.features_dir} for what was asked: {options.dataset} at "
            f"{' and '.join(map(str, missing))} px, views {options.views}, weights {options.weights}, precision "
            f"{options.precision}, taps {options.taps}, limit {options.limit or 'none'}. Make it with '{command}' "
            f"('make train' does so by itself)."
        )
    found = [pair for held in complete for caches in held for pair in caches]
    different = len({spec.dataset_digest for _, spec in found})
    if different > 1:
        names = ", ".join(path.name for path, _ in found)
        raise UserError(
            f"{options.dataset} itself is not in {options.data_dir}, and {options.features_dir} holds features of "
            f"{different} different data sets of that name: {names}. Name the data's folder with --data-dir, or "
            f"move the others away."
        )
    if dataset is None:
        log.info("%s itself is not in %s: using the features that are there", options.dataset, options.data_dir)
    chosen = [caches[0] for caches in complete[0]]
    return [path for path, _ in chosen], dataclasses.replace(chosen[0][1], more_sizes=options.image_size[1:])


def candidate_specs(options: FeatureOptions, dataset: Dataset | None = None) -> list[FeatureSpec]:
    """Specs that satisfy the options, the one to compute first; without a data set their digest of it is "".

    Several sizes are one spec, whose `FeatureSpec.parts` are those of the caches.
    ``auto`` is satisfied by either precision, and computed in the one that the processor is faster in. Raises
    UserError when the limit goes beyond the data set.
    """
    limit, name = options.limit, datasets.name_of(options.dataset)
    if limit is not None and dataset is not None:
        rows = dataset.rows
        if limit > max(rows.values()):
            raise UserError(
                f"The limit parameter must not go beyond the data set: {name} has {rows['train']:,} rows to "
                f"train and {rows['test']:,} to test. Got {limit:,}. Leave it out to take all."
            )
        if limit == max(rows.values()):
            limit = None  # nothing is left out, so these are the same features
    if options.precision == "auto":
        precisions = ["bfloat16", "float32"] if device.is_faster_in_bfloat16() else ["float32", "bfloat16"]
    else:
        precisions = [options.precision]
    # The images of these are square: however they are made to fit, the features are the same.
    fit = "squash" if name in datasets.NAMES else options.fit
    digest = weights_digest(options.weights, options.data_dir)
    return [
        FeatureSpec(
            dataset=name,
            dataset_digest="" if dataset is None else dataset.digest,
            weights_digest=digest,
            taps=parse_taps(options.taps),
            precision=precision,
            limit=limit,
            image_size=options.image_size[0],
            more_sizes=options.image_size[1:],
            fit=fit,
            view=options.views,
        )
        for precision in precisions
    ]


def find_specs(folder: Path, specs: Sequence[FeatureSpec]) -> list[tuple[Path, FeatureSpec]]:
    """Caches that claim to hold what a spec asks for, each with that spec, and those with more taps last.

    A file that has a spec's very name is one whatever it claims, so that a damaged one is refused and not passed over.
    A spec without a data set's digest is served by every data set of its name.
    """
    found: list[tuple[Path, FeatureSpec]] = []
    with file_errors("look for features", folder):
        for asked in specs:
            own, fits = folder / f"{asked.file_stem}.h5", []
            for path, held in claims(folder, f"{asked.name_prefix}*.h5"):
                spec = dataclasses.replace(asked, dataset_digest=asked.dataset_digest or held.dataset_digest)
                if path != own and held.covers(spec):
                    fits.append((path, spec, held != spec))
            found += [(own, asked)] if own.exists() else []
            found += [(path, spec) for path, spec, _ in sorted(fits, key=itemgetter(2))]
    return found


def claims(folder: Path, pattern: str) -> Iterator[tuple[Path, FeatureSpec]]:
    """Caches, by their names, and what each claims to hold; those of another format or unreadable are passed over."""
    for path in sorted(folder.glob(pattern)):
        try:
            spec = peek_spec(path)
        except (CacheError, OSError):
            continue
        yield path, spec
