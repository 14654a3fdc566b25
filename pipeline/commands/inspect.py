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
from pipeline.data import datasets
from pipeline.data.dataset import NotFoundHere, listing
from pipeline.features import store
from pipeline.features.find import candidate_specs
from pipeline.features.options import FeatureOptions
from pipeline.features.spec import FeatureSpec
from pipeline.network.taps import TAP_COLUMNS
from pipeline.output import templating


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
        text = _screen(path, size, claimed, asked, fault=str(error))
        return text, {**damaged, "key": claimed.key(), "spec": claimed.to_dict()}
    summary = {
        "file": str(path), "bytes": size, "verifies": True, "fault": None, "key": cache.spec.key(),
        "spec": cache.spec.to_dict(), "rows": cache.rows, "class_names": cache.class_names, "created": cache.created,
        "versions": cache.versions, "provenance": cache.provenance, "computed_on": cache.computed_on,
        "skipped": told(cache.skipped),
    }  # fmt: skip
    return _screen(cache.path, cache.size, cache.spec, asked, cache), summary


def _screen(
    path: Path, size: int, spec: FeatureSpec, asked: FeatureOptions, cache: store.Cache | None = None, fault: str = ""
) -> str:
    """What is to be printed.

    Of a file that has a ``fault`` that is what its legible spec claims, and nothing else: bytes that do not verify are
    not shown to HDF5.
    """
    about: dict[str, Any] = {}
    if cache is not None:
        own, computed = cache.has_members, cache.computed_on
        about = {
            "cache": cache, "made": cache.provenance, "columns": TAP_COLUMNS,
            "digests": 2 * (len(spec.taps) + 1) + 2 + 6 * own + 2 * cache.has_groups + bool(computed),
            "parts": Counter(computed),  # what computed how many of them, where a cluster did
            "skipped": listing(cache.skipped, "", most=len(cache.skipped)),
        }  # fmt: skip
    return templating.render(
        "inspect.txt", path=path, size=format_bytes(size), spec=spec, fault=fault,
        comparison=_comparison(spec, asked), **{"skipped": "", **about},
    )  # fmt: skip


def _comparison(held: FeatureSpec, asked: FeatureOptions) -> str:
    """How what the file holds differs from what the same options would ask of ``features``.

    Nothing where no data set was named, and the file is of another than the default one.
    """
    if asked.dataset == FeatureOptions().dataset != held.dataset:
        return ""
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
        return f"this file serves it{unknown}"
    differences = min((spec.differences(held) for spec in specs), key=len)
    return f"this file does not serve it ('here' is asked, 'there' the file): {'; '.join(differences)}{unknown}"
