"""Stage one's work: rows that are there already, in parts or in other caches, and the rest through the network.

What decides that there is something to compute is in `pipeline.features.extract`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.common.background import BackgroundWorker
from pipeline.common.errors import Interrupted, UserError
from pipeline.common.progress import Progress, format_bytes, format_seconds
from pipeline.common.text import count_of_files, printable
from pipeline.data import loader
from pipeline.data.dataset import Dataset, RowIds, Skipped, Unusable, few_reasons
from pipeline.features import reuse
from pipeline.features.options import ComputeOptions
from pipeline.features.parts import Build, Part, PartContent
from pipeline.network import by_numpy, device
from pipeline.network import compile as compiling
from pipeline.network.taps import columns_of
from pipeline.network.weights import VGGWeights, load_weights, say_untrained

if TYPE_CHECKING:
    from pipeline.common.bar import Bar

log = logging.getLogger("pipeline")


def check_images(dataset: Dataset, build: Build, batch_size: int) -> None:
    """Decode every image that no cache has, before anything is computed; raises UserError, naming all faulty ones."""
    members, spec = dataset.members, build.spec
    if members is None:
        return
    with reuse.known_rows(build.folder, spec, _digests(members)) as known:
        rows = [(name, int(row)) for name, who in members.items() for row in np.flatnonzero(~known.has(who.digests))]
    faults = list(dataset.skipped)
    with (
        Progress("checking", len(rows), "images") as progress,
        loader.batches(dataset.splits, rows, spec, batch_size=batch_size) as source,
    ):
        for batch in source:
            faults += [
                Skipped(members[split].names[row], str(image))
                for (split, row), image in batch
                if isinstance(image, Unusable)
            ]
            progress.update(len(batch))
    refuse_skipped(sorted(faults, key=lambda item: os.fsencode(item.file)), dataset.source)


def refuse_skipped(skipped: Sequence[Skipped], source: str) -> None:
    """Make files that cannot be used an error, which ``--strict`` asks for."""
    if skipped:
        raise UserError(
            f"{count_of_files(len(skipped))} of {source} cannot be used, which --strict makes an error: "
            f"{few_reasons(skipped, most=1000)}. Repair or remove them, or leave --strict out to go on without them."
        )


def make_plan(options: ComputeOptions, image_size: int) -> device.Plan:
    """Decide how to compute, on this machine or on a cluster, at a size in pixels."""
    return compiling.make_plan(
        options.precision, image_size=image_size, batch_size=options.batch_size, elsewhere=options.cluster
    )


def compute(options: ComputeOptions, dataset: Dataset, build: Build, plan: device.Plan) -> str:
    """Fill a build, whose lock is held, part by part, and finish it; return what was done, in one line for people.

    Raises UserError when no image of train can be used, and Interrupted on SIGINT or SIGTERM.
    """
    network, spec = load_weights(options.weights, options.data_dir), build.spec
    if network.digest != spec.weights_digest:
        raise UserError(
            f"The weights file {options.weights} changed while it was being used: its digest was "
            f"{spec.weights_digest[:12]}… and is {network.digest[:12]}… now. Run the same command again."
        )
    say_untrained(network.label)
    total = sum(build.rows.values())
    log.info(
        "computing %s features of %s at %d px in %s on %s, %d at a time, weights %s",
        f"{columns_of(spec.taps):,}", f"{total:,} images", spec.image_size, spec.precision, plan.label, plan.batch_size,
        network.label,
    )  # fmt: skip
    try:
        build.prepare()
        with Progress("features", total, "images") as progress:
            _fill(options, dataset, build, network, plan, progress)
        _check_rows_left(dataset, build)
        _finish(dataset, build, network, plan)
    except KeyboardInterrupt:
        if build.target.exists():  # it appears complete, and only what it was made of may be left
            raise Interrupted(f"Interrupted, but {build.target} is complete: nothing is left to compute.") from None
        raise Interrupted(
            f"Interrupted. {build.kept:,} of {total:,} rows are kept in {build.parts_folder}. Run the same command "
            f"again to go on from there."
        ) from None
    taps = len(build.spec.taps)
    what = f"{columns_of(build.spec.taps):,} columns of {taps} {'tap' if taps == 1 else 'taps'}"
    pace = f"{build.computed:,} images in {format_seconds(build.seconds)} ({_rate(build):.0f} images/s)"
    if _taken_over(build):
        pace += f", {_taken_over(build):,} taken over from other caches"
    return f"{build.target}: {format_bytes(build.target.stat().st_size)}, {what}, {pace}"


def _taken_over(build: Build) -> int:
    """Rows whose features another cache had; a leak was found by its features, so it was computed or taken over."""
    reasons = [why for dropped in build.dropped.values() for why in dropped.values()]
    without_features = sum(not Skipped.stored("", why).is_leak for why in reasons)
    return sum(build.rows.values()) - without_features - build.computed


def _rate(build: Build) -> float:
    """Images computed per second, in this run and those before it; 0 where none was."""
    return build.computed / max(build.seconds, 1e-9) if build.computed else 0.0


def _digests(members: Mapping[str, RowIds]) -> NDArray[np.uint8]:
    return np.concatenate([who.digests for who in members.values()])


# --- part by part -----------------------------------------------------------------------------


def _fill(
    options: ComputeOptions, dataset: Dataset, build: Build, network: VGGWeights, plan: device.Plan, progress: Bar
) -> None:
    """Load or compute part by part; each is hashed, written and fsynced while the next is computed."""
    members, spec = dataset.members, build.spec
    there = set(filter(build.has, build.parts))
    if there:
        log.info("going on where an earlier run stopped: %s rows are there", f"{sum(map(len, there)):,}")
    todo = [part for part in build.parts if part not in there]
    progress.skip(sum(map(len, there)))
    with ExitStack() as stack:
        # bool (rows of the part,): which of them another cache has
        known: dict[Part, NDArray[np.bool_]] = {part: np.zeros(len(part), bool) for part in todo}
        others = reuse.KnownRows({})
        if members is not None and todo:
            others = stack.enter_context(reuse.known_rows(build.folder, spec, _digests(members)))
            known = {part: others.has(members[part.split].digests[part.start : part.stop]) for part in todo}
            if len(others):
                log.info(
                    "taking over %s rows from %s", f"{sum(map(np.sum, known.values())):,}", ", ".join(others.files)
                )
        wanted = {part: np.flatnonzero(~known[part]) for part in todo if not known[part].all()}
        writer = stack.enter_context(BackgroundWorker())
        computed: Iterator[loader.Features | str] = iter(())
        if wanted and options.cluster is not None:
            from pipeline.features import on_workers  # late: it loads Dask

            arriving = on_workers.compute_parts(options, dataset, spec, network, plan.batch_size, wanted, progress)
            last = None  # when the part before came; until the first one did, workers loaded TensorFlow
            for part, given, origin, took in stack.enter_context(closing(arriving)):
                content = _assemble(build, part, given, known[part], others, members)
                seconds, last = took if last is None else time.monotonic() - last, time.monotonic()
                writer.submit(build.write, part, dataclasses.replace(content, seconds=seconds, computed_on=origin))
                progress.skip(int(known[part].sum()))
            writer.result()
            there |= wanted.keys()
        elif wanted:
            rows = [(part.split, part.start + int(row)) for part, own in wanted.items() for row in own]
            source = stack.enter_context(loader.batches(dataset.splits, rows, spec, batch_size=plan.batch_size))
            extractor = compiling.make_extractor(network.layers, **spec.network, plan=plan, threads=options.threads)
            computed = loader.compute_rows(source, extractor, progress.update)
        leaks = _Leaks(members)
        for part in build.parts:
            if part in there:
                writer.result()  # parts are counted in their order
                build.load(part, partial(leaks.without, part))
            else:
                began = time.monotonic()
                content = leaks.without(part, _assemble(build, part, computed, known[part], others, members))
                writer.submit(build.add, part, dataclasses.replace(content, seconds=time.monotonic() - began))
                progress.skip(int(known[part].sum()))
        writer.result()  # in the block, so that an interrupt meanwhile is met by all that leaving it does


def _assemble(
    build: Build,
    part: Part,
    computed: Iterator[loader.Features | str],
    known: NDArray[np.bool_],
    others: reuse.KnownRows,
    members: Mapping[str, RowIds] | None,
) -> PartContent:
    """Put a part together from the rows that another cache has and those that are computed."""
    made = list(itertools.islice(computed, int(np.sum(~known))))  # the next rows of all that are computed
    dropped = {
        row: found for row, found in zip(np.flatnonzero(~known).tolist(), made, strict=True) if isinstance(found, str)
    }
    rows = [found for found in made if not isinstance(found, str)]
    kept = np.array([row not in dropped for row in range(len(part))], bool)
    # Preallocated with an impossible value, then asserted gone: every row was written.
    features = np.full((int(kept.sum()), columns_of(build.spec.taps)), np.nan, np.float16)
    features[~known[kept]] = np.reshape(rows, (-1, features.shape[1]))
    if known.any() and members is not None:
        digests = members[part.split].digests[part.start : part.stop][known]
        features[known[kept]] = others.read(digests, build.spec.taps)
    if np.isnan(features).any():
        raise AssertionError(f"rows of {part} were not written")
    return PartContent(by_numpy.split(features, build.spec.taps), dropped, computed=len(rows))


class _Leaks:
    """Finds test rows whose features are those of a training row: the same picture in another file."""

    def __init__(self, members: Mapping[str, RowIds] | None) -> None:
        self._members = members
        self._train: dict[bytes, str] = {}

    def without(self, part: Part, content: PartContent) -> PartContent:
        """Drop the rows of a part of test that are in train; those of a part of train are remembered."""
        if self._members is None or not len(self._members["test"].names):
            return content
        names = self._members[part.split].names[part.start : part.stop]
        rows = [row for row in range(len(names)) if row not in content.dropped]
        digests = [hashlib.sha256(values.data).digest() for values in np.hstack(list(content.features.values()))]
        if part.split == "train":
            for row, digest in zip(rows, digests, strict=True):
                self._train.setdefault(digest, names[row])
            return content
        same = {
            row: Skipped.leak(
                names[row], f"at the network's size the same picture as {printable(self._train[digest])}"
            ).reason
            for row, digest in zip(rows, digests, strict=True)
            if digest in self._train
        }
        if not same:
            return content
        stay = np.array([row not in same for row in rows], bool)
        features = {tap: values[stay] for tap, values in content.features.items()}
        return dataclasses.replace(content, features=features, dropped={**content.dropped, **same})


def _check_rows_left(dataset: Dataset, build: Build) -> None:
    """Refuse features that nothing can be trained on. Parts of them are of no use to a later run either."""
    members, dropped = dataset.members, build.dropped["train"]
    if members is None or len(dropped) < build.rows["train"]:
        return
    build.discard()
    reasons = few_reasons([Skipped(members["train"].names[row], why) for row, why in dropped.items()], most=20)
    raise UserError(
        f"None of the {len(dropped):,} training images of {dataset.source} can be used: {reasons}. "
        f"Repair or replace them. No feature file was made."
    )


def _finish(dataset: Dataset, build: Build, network: VGGWeights, plan: device.Plan) -> None:
    from importlib.metadata import version  # late: a cache hit has no use for it

    packages = ["tensorflow", "keras", "numpy", "h5py", *([] if dataset.members is None else ["pillow"])]
    attributes = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "images_per_second": _rate(build),
        "versions": {package: version(package) for package in packages},
        "provenance": {
            "dataset_source": dataset.source,
            "official": dataset.official,
            **({"reading": dict(dataset.reading)} if dataset.reading else {}),
            "weights": network.label,
            "weights_source": network.source,
            "device": plan.label,
            "batch_size": plan.batch_size,
            "rows_computed": build.computed,
            "rows_taken_over": _taken_over(build),
            **device.describe(),
        },
    }
    log.info("joining %d part%s", len(build.parts), "s" if len(build.parts) != 1 else "")
    with Progress("joining", sum(build.rows.values()), "rows") as progress:
        build.finish(dataset, attributes, progress.update)
