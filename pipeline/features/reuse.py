"""Rows that are in some cache already: found by the digest of their image, under whatever data set it was computed.

A folder that grew, or shares images with another, has only its new ones computed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.features import layout, store
from pipeline.features.find import claims
from pipeline.features.spec import FeatureSpec, name_infix
from pipeline.network.taps import TAP_COLUMNS

log = logging.getLogger("pipeline")


class _Place(NamedTuple):
    source: int
    split: str
    row: int


class KnownRows:
    """Rows of open, verified caches.

    Parameters
    ----------
    sources : sequence of Cache
    places : dict
        Where the row of a digest is.
    """

    def __init__(self, sources: Sequence[store.Cache], places: dict[bytes, _Place]) -> None:
        self._sources, self._places = sources, places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def files(self) -> list[str]:
        """Names of the caches that rows come from."""
        return sorted({self._sources[place.source].path.name for place in self._places.values()})

    def has(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which rows are known, bool (n,), by their digests, uint8 (n, 32)."""
        return np.array([digest.tobytes() in self._places for digest in digests], bool)

    def read(self, digests: NDArray[np.uint8], taps: Sequence[str]) -> dict[str, NDArray[np.float16]]:
        """Features of rows that are known: for each tap float16 (n, columns), in the order of their digests."""
        result = {tap: np.full((len(digests), TAP_COLUMNS[tap]), np.nan, np.float16) for tap in taps}
        places = [self._places[digest.tobytes()] for digest in digests]
        for source, split in sorted({(place.source, place.split) for place in places}):
            here = [i for i, place in enumerate(places) if (place.source, place.split) == (source, split)]
            rows = np.array([places[i].row for i in here])
            for tap in taps:
                result[tap][here] = self._sources[source].some_features(split, tap, rows)
        return result


@contextmanager
def known_rows(folder: Path, spec: FeatureSpec, digests: NDArray[np.uint8]) -> Iterator[KnownRows]:
    """Find rows by their images' digests, uint8 (n, 32), in the caches of a folder that hold such features.

    Each cache is verified before it is looked into, every byte of it, and stays open for the block, so what is read
    is what was verified. One that is damaged is passed over, and that is said.
    """
    wanted = {digest.tobytes() for digest in digests}
    sources: list[store.Cache] = []
    places: dict[bytes, _Place] = {}
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
                    digest.tobytes(): _Place(len(sources), split, row)
                    for split, rows in found.items()
                    for row, digest in enumerate(rows)
                    if digest.tobytes() in wanted and digest.tobytes() not in places
                }
                if new:
                    places.update(new)
                    sources.append(cache)
                    stack.enter_context(opened.pop_all())
        yield KnownRows(sources, places)


def _similar(folder: Path, spec: FeatureSpec) -> list[Path]:
    """Caches that claim to hold such features, of any data set, newest first."""
    found = [path for path, held in claims(folder, f"*{name_infix(spec.image_size)}*.h5") if held.same_settings(spec)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
