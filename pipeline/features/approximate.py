"""A library's index of the rows of a cache, for more of them than are compared one by one while somebody waits.

faiss (https://faiss.ai) puts rows that are alike into cells, and looks into the nearest of these. What it finds are
candidates: how near they are is then computed from the rows themselves, so distances are exact, and only a row that was
not among the candidates is missed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import digest_of
from pipeline.features.neighbours import TINY, Found, Index, unit
from pipeline.features.rows import FeatureRows, Scale, moments
from pipeline.features.store import Cache

log = logging.getLogger("pipeline")

AXES, CELLS, LOOKED_INTO = 256, 1024, 64
FOR_AXES, FOR_A_CELL = 4000, 64  # rows that they are chosen by
CANDIDATES = 20  # for each row that is asked for, and not less than for ten
BLOCK = 4096  # rows that are added at a time
DIGEST = 32  # bytes


class Approximate(Index):
    """Rows that are searched among the candidates of an index, all of them where that has too few."""

    def __init__(self, sides: Sequence[FeatureRows], scale: Scale, lengths: NDArray[np.float32], found: Any) -> None:
        super().__init__(sides, known=(scale, lengths))
        self._found = found

    def widen(self) -> None:
        """Few rows are read for each search."""

    def _search(self, features: NDArray[np.float32], count: int) -> Found:
        asked, _ = unit(self.scale.standardise(features.copy()))
        _, candidates = self._found.search(asked, min(CANDIDATES * max(count, 10), len(self._lengths)))
        if (np.sum(candidates >= 0, axis=1) < count).any():
            return super()._search(features, count)
        distances, rows = np.empty((len(asked), count), np.float32), np.empty((len(asked), count), np.intp)
        for at, (one, own) in enumerate(zip(asked, candidates, strict=True)):
            near = own[own >= 0]
            products = self.scale.standardise(self.rows(near)) @ one
            far = np.clip(1 - products / np.maximum(self._lengths[near], TINY), 0, 2)
            order = far.argsort(kind="stable")[:count]
            distances[at], rows[at] = far[order], near[order]
        return distances, rows


def is_there() -> bool:
    """Whether the library is installed, which comes with an extra."""
    return find_spec("faiss") is not None


def load(
    cache: Cache, taps: Sequence[str], sides: Sequence[FeatureRows], progress: Callable[[int], object]
) -> Approximate:
    """The index of some taps of a cache, kept beside it; it is built where it is not there, or not what was written.

    ``progress`` is told the bytes seen.
    """
    import faiss  # late: an extra

    key = digest_of([cache.proof.decode("ascii"), list(taps)])
    path = cache.path.with_name(f"{cache.path.stem}-{key[:8]}.index")
    columns, rows = sides[0].shape[1], sum(cache.rows.values())
    if path.is_file():
        with file_errors("read the index", path):
            kept = np.fromfile(path, np.uint8)
        if kept[:DIGEST].tobytes() == _digest(key, kept[DIGEST:]):
            moments_of, lengths, index = np.split(kept[DIGEST:], [16 * columns, 16 * columns + 4 * rows])
            mean, variance = moments_of.view(np.float64).reshape(2, columns)
            scale = Scale(mean, variance, sides[0].shape[0])
            return Approximate(sides, scale, lengths.view(np.float32), faiss.deserialize_index(index))
        log.warning("warning: the index %s was cut, edited or damaged after it was written: it is built again", path)
    log.info("building an index of %s rows by faiss, once", f"{rows:,}")
    scale, all_lengths, found = build(sides, progress)
    held: list[NDArray[Any]] = [scale.mean, scale.variance, all_lengths, faiss.serialize_index(found)]
    content = np.concatenate([each.view(np.uint8) for each in held])
    try:
        with file_errors("keep the index", path):
            atomic.write_atomically(path, _digest(key, content) + content.tobytes())
    except UserError as error:
        log.warning("warning: %s Until then it is built each time", error)
    return Approximate(sides, scale, all_lengths, found)


def _digest(key: str, content: NDArray[np.uint8]) -> bytes:
    digest = hashlib.sha256(key.encode("ascii"))
    digest.update(content.data)
    return digest.digest()


def build(sides: Sequence[FeatureRows], progress: Callable[[int], object]) -> tuple[Scale, NDArray[np.float32], Any]:
    """Scale, lengths (rows,) and index: of unit vectors, whose Euclidean distance orders as the cosine does."""
    import faiss

    first, scale, lengths = sides[0], moments(sides[0], progress), []
    cells = max(1, min(CELLS, sum(side.shape[0] for side in sides) // FOR_A_CELL))
    generator = np.random.default_rng(0)
    sample = np.sort(generator.permutation(first.shape[0])[: max(FOR_AXES, FOR_A_CELL * cells)])
    axes = faiss.PCAMatrix(first.shape[1], min(AXES, first.shape[1], len(sample)))
    axes.train(unit(first.read(generator.permutation(sample)[:FOR_AXES], scale))[0])
    index: Any = faiss.index_factory(axes.d_out, f"IVF{cells},SQ8")
    index.nprobe = LOOKED_INTO
    blocks = (scale.standardise(block) for _, block in first.take(sample).blocks(BLOCK))
    index.train(np.concatenate([axes.apply(unit(block)[0]) for block in blocks]))
    found = faiss.IndexPreTransform(axes, index)
    for side in sides:
        for _, block in side.blocks(BLOCK):
            directions, length = unit(scale.standardise(block))
            lengths.append(length)
            found.add(directions)
            progress(2 * block.size)
    return scale, np.concatenate(lengths), found
