"""Tell in one screen what a feature file holds, how it was made, and whether it verifies.

python -m pipeline inspect features/FILE.h5 --verify
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.commands.listing import told
from pipeline.common.errors import UserError, file_errors
from pipeline.common.progress import Progress, format_bytes
from pipeline.common.text import printable
from pipeline.data import datasets
from pipeline.data.dataset import NotFoundHere, listing
from pipeline.features import store
from pipeline.features.find import candidate_specs
from pipeline.features.options import FeatureOptions
from pipeline.features.spec import FeatureSpec
from pipeline.network.taps import TAP_COLUMNS, columns_of


def inspect(path: Path, asked: FeatureOptions, *, must_verify: bool) -> tuple[str, dict[str, Any]]:
    """Describe a feature file, for people and for programs, and say how its spec differs from what is asked for.

    Raises CacheError when the file has a fault and must verify, or is so damaged that nothing can be said of it.
    """
    try:
        size = path.stat().st_size if path.is_file() else 0
        with file_errors("read the feature file", path), Progress("verifying", size, "B", scale=True) as progress:
            cache = store.verify(path, progress.update)
    except store.CacheError as error:
        try:
            claimed = store.peek_spec(path)
        except (store.CacheError, OSError):
            raise error from None
        if must_verify:
            raise
        damaged = {"file": str(path), "bytes": size, "verifies": False, "fault": error.fault}
        text = _lines(_of_damaged(path, size, claimed, str(error), asked))
        return text, {**damaged, "key": claimed.key(), "spec": claimed.to_dict()}
    summary = {
        "file": str(path), "bytes": size, "verifies": True, "fault": None, "key": cache.spec.key(),
        "spec": cache.spec.to_dict(), "rows": cache.rows, "class_names": cache.class_names, "created": cache.created,
        "versions": cache.versions, "provenance": cache.provenance, "computed_on": cache.computed_on,
        "skipped": told(cache.skipped),
    }  # fmt: skip
    skipped = listing(cache.skipped, "", most=len(cache.skipped))
    return _lines(_of_valid(cache, asked)) + (f"{skipped}\n" if skipped else ""), summary


def _of_valid(cache: store.Cache, asked: FeatureOptions) -> dict[str, str]:
    spec, made = cache.spec, cache.provenance
    counts = Counter(cache.computed_on).items()  # what computed how many of the parts, where a cluster did
    parts = "; ".join(f"{name or 'where it was finished'} ({count:,})" for name, count in counts)
    rows = ", ".join(f"{count:,} {split}" for split, count in cache.rows.items())
    taps = ", ".join(f"{tap} ({TAP_COLUMNS[tap]})" for tap in spec.taps)
    names = ", ".join(map(printable, cache.class_names[:12])) + (
        f", … ({len(cache.class_names)})" if len(cache.class_names) > 12 else ""
    )
    weights = {"random": "random: untrained, seeded"}.get(str(made.get("weights")), str(made.get("weights")))
    official = "the official files" if made.get("official") is True else "NOT the official files"
    versions = ", ".join(f"{package} {number}" for package, number in cache.versions.items())
    setup = f"{made.get('processor')}, {made.get('cores')} cores, batches of {made.get('batch_size')}"
    digests = 2 * (len(spec.taps) + 1) + 2 + 6 * cache.has_members + 2 * cache.has_groups + bool(cache.computed_on)
    images, named = ("files of one's own", ", names") if cache.has_members else (official, "")
    return {
        "file": f"{cache.path} ({format_bytes(cache.size)}, format {spec.format_version})",
        "key": spec.key(),
        "verifies": f"yes, all {digests} digests (whole file, labels, class names, features{named})",
        "data": f"{spec.dataset}, {images}, from {made.get('dataset_source')}",
        "": f"digest {spec.dataset_digest}",
        "rows": rows + (f" (the first {spec.limit:,} of each split)" if spec.limit else ""),
        "classes": names,
        "weights": f"{weights}, from {made.get('weights_source')}",
        " ": f"digest {spec.weights_digest}",
        "images": _images(spec),
        "columns": f"{columns_of(spec.taps):,} float16: {taps}",
        "made": f"{cache.created}, {cache.images_per_second:.0f} images/s",
        "by": f"{setup}; {versions}",
        **({"parts": parts} if parts else {}),
        **_comparison(spec, asked),
    }


def _of_damaged(path: Path, size: int, spec: FeatureSpec, fault: str, asked: FeatureOptions) -> dict[str, str]:
    """What the legible spec claims, and nothing else: bytes that do not verify are not shown to HDF5."""
    return {
        "file": f"{path} ({format_bytes(size)}, format {spec.format_version})",
        "key": spec.key(),
        "verifies": f"NO: {fault}",
        "data": f"it claims to hold features of {spec.dataset}" + (f", limit {spec.limit:,}" if spec.limit else ""),
        "": f"digest {spec.dataset_digest}",
        "weights": f"digest {spec.weights_digest}",
        "images": _images(spec),
        "columns": f"{columns_of(spec.taps):,}: {', '.join(spec.taps)}",
        **_comparison(spec, asked),
    }


def _images(spec: FeatureSpec) -> str:
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in spec.image.items())
    return f"{settings}, {spec.interpolation}; computed in {spec.precision}"


def _lines(values: dict[str, str]) -> str:
    return "".join(f"{name.strip():<11}{value}\n" for name, value in values.items())


def _comparison(held: FeatureSpec, asked: FeatureOptions) -> dict[str, str]:
    """How what the file holds differs from what the same options would ask of ``features``.

    Nothing where no data set was named, and the file is of another than the default one.
    """
    if asked.dataset == FeatureOptions().dataset != held.dataset:
        return {}
    try:
        dataset = datasets.load_dataset(asked.dataset, asked.data_dir, download=False, how=asked)
        unknown = ""
    except UserError as error:
        dataset = None
        absent = isinstance(error, NotFoundHere)
        why = f"{asked.dataset} is not in {asked.data_dir}" if absent else str(error).rstrip(".")
        unknown = f" (the data's digest not compared: {why})"
    specs = candidate_specs(asked, dataset)
    specs = [dataclasses.replace(spec, dataset_digest=spec.dataset_digest or held.dataset_digest) for spec in specs]
    if any(held.covers(spec) for spec in specs):
        return {"asked for": f"this file serves it{unknown}"}
    differences = min((spec.differences(held) for spec in specs), key=len)
    told = f"this file does not serve it ('here' is asked, 'there' the file): {'; '.join(differences)}{unknown}"
    return {"asked for": told}
