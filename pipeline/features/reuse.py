"""Rows that are in some cache already: found by the digest of their image, under whatever data set it was computed.

A folder that grew, or shares images with another, has only its new ones computed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.features import layout, store
from pipeline.features.find import claims
from pipeline.features.spec import FeatureSpec, name_infix
from pipeline.network.taps import columns_of

log = logging.getLogger("pipeline")


class KnownRows:
    """Rows of open, verified caches: for the digest of an image the cache, its split and the row there."""

    def __init__(self, places: Mapping[bytes, tuple[store.Cache, str, int]]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def files(self) -> list[str]:
        """Names of the caches that rows come from."""
        return sorted({cache.path.name for cache, _, _ in self._places.values()})

    def has(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which rows are known, bool (n,), by their digests, uint8 (n, 32)."""
        return np.array([digest.tobytes() in self._places for digest in digests], bool)

    def read(self, digests: NDArray[np.uint8], taps: Sequence[str]) -> NDArray[np.float16]:
        """Features of rows that are known, float16 (n, columns of the taps together), in the order of their digests."""
        result = np.full((len(digests), columns_of(taps)), np.nan, np.float16)
        together: dict[tuple[store.Cache, str], list[tuple[int, int]]] = {}  # the places here, and the rows there
        for place, digest in enumerate(digests):
            cache, split, row = self._places[digest.tobytes()]
            together.setdefault((cache, split), []).append((place, row))
        for (cache, split), pairs in together.items():
            here, there = np.array(pairs).T
            rows, order = np.unique(there, return_inverse=True)
            result[here] = cache.feature_rows(split, taps).take(rows).array()[order]
        return result


@contextmanager
def known_rows(folder: Path, spec: FeatureSpec, digests: NDArray[np.uint8]) -> Iterator[KnownRows]:
    """Find rows by their images' digests, uint8 (n, 32), in the caches of a folder that hold such features.

    Each cache is verified before it is looked into, every byte of it, and stays open for the block, so what is read
    is what was verified. One that is damaged is passed over, and that is said.
    """
    wanted = {digest.tobytes() for digest in digests}
    places: dict[bytes, tuple[store.Cache, str, int]] = {}
    with ExitStack() as stack:
        for path in _similar(folder, spec):
            if wanted <= places.keys():
                break
            with ExitStack() as opened:
                try:
                    cache = opened.enter_context(store.open(path))
                    if not cache.has_members or not cache.spec.same_settings(spec):
                        continue
                    found = {split: cache.members(split).digests for split in layout.SPLITS}
                except UserError as error:
                    log.warning("warning: no rows are taken over from %s: %s", path, error)
                    continue
                new = {
                    digest.tobytes(): (cache, split, row)
                    for split, rows in found.items()
                    for row, digest in enumerate(rows)
                    if digest.tobytes() in wanted and digest.tobytes() not in places
                }
                if new:
                    places.update(new)
                    stack.enter_context(opened.pop_all())
        yield KnownRows(places)


def _similar(folder: Path, spec: FeatureSpec) -> list[Path]:
    """Caches that claim to hold such features, of any data set, newest first."""
    found = []
    for path, held in claims(folder, f"*{name_infix(spec.image_size)}*.h5"):
        with suppress(FileNotFoundError):  # removed meanwhile
            found += [(path.stat().st_mtime_ns, path)] if held.same_settings(spec) else []
    return [path for _, path in sorted(found, reverse=True)]
