"""Stage two: choose on validation, refit on all of train, score test once, leave a result.

python -m pipeline train --classifier logistic --taps all
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.commands.options import EnsembleOptions
from pipeline.common.errors import file_errors
from pipeline.common.text import printable, to_csv, to_json
from pipeline.features import arrays, compute, store
from pipeline.features.find import find
from pipeline.features.options import FeatureOptions
from pipeline.features.spec import FeatureSpec
from pipeline.models import classifiers
from pipeline.network.weights import say_untrained
from pipeline.output import report, run_folder
from pipeline.output.run_folder import RunFolder
from pipeline.selection import copies, left_out
from pipeline.selection.left_out import LeftOut
from pipeline.selection.options import TrainOptions
from pipeline.selection.trials import RunSpec, Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.pipeline import Pipeline

    from pipeline.features.rows import FeatureRows
    from pipeline.output.metrics import Scores
    from pipeline.selection.protocol import LearningCurve, Selection

log = logging.getLogger("pipeline")


def train(features: FeatureOptions, options: TrainOptions) -> RunFolder:
    """Make sure that the run asked for is there, and return where; its features must be in a cache.

    Raises UserError when there is no cache, it does not verify, or the labels do not allow the protocol;
    KeyboardInterrupt on SIGINT or SIGTERM; nothing has been written then.
    """
    start = time.monotonic()
    paths, asked = find(features)
    images = copies.recall(options.output_dir, asked.key())
    without = left_out.read(options, asked.dataset_digest)
    if images:
        options = options.for_rows(images.rows["train"])
    if images and not features.strict and is_there(place := place_of(asked, options, images, without.keyed()), options):
        return place
    with store.open_all(paths, asked) as cache:
        if features.strict:
            compute.refuse_skipped(cache.skipped, features.dataset)
        return train_on(cache, asked, options, start, without)


def train_on(
    cache: store.Cache, asked: FeatureSpec, options: TrainOptions, start: float, without: LeftOut
) -> RunFolder:
    """Do as `train` does, on an open cache that holds the features asked for; ``start`` is by `time.monotonic`."""
    plain, options = copies.group(cache, [asked.taps]), options.for_rows(cache.rows["train"])
    images = copies.count(plain)
    place = place_of(asked, options, images, without.keyed())
    run = Run(cache, asked, place, options, without.joined(plain), Clock(start))
    make(run, lambda: _compute(run, options, without))
    copies.remember(options.output_dir, asked.key(), images)
    return place


@dataclass(frozen=True)
class Run:
    """A run that is to be there: what it is computed from, and where it goes."""

    cache: store.Cache  # holds the features asked for
    asked: FeatureSpec
    place: RunFolder
    options: TrainOptions | EnsembleOptions
    grouping: copies.Grouping  # of all rows, near duplicates joined where that was asked for
    clock: Clock


def make(run: Run, compute: Callable[[], Outcome]) -> RunFolder:
    """Make sure that a run is there, and return where: compute it, once it can be saved, and save it."""
    cache, place, options = run.cache, run.place, run.options
    if is_there(place, options):
        return place
    import sklearn  # late: a run that is there is shown without it

    # Stage one refused whatever is not finite: checking a gigabyte again at every step would cost half the time.
    sklearn.set_config(assume_finite=True)
    say_untrained(cache.provenance["weights"])
    if cache.provenance["official"] is not True:
        log.warning("warning: these features come from files that are not the official %s", run.asked.dataset)
    with file_errors("write the results", place.output_dir):
        place.prepare()  # now, not after minutes of computing
    outcome = compute()
    if outcome.not_converged:
        log.warning(
            "warning: %s did not converge: %s. The run is kept, and marked", options.classifier, outcome.not_converged
        )
    results = _contents(run, outcome)
    with file_errors("write the results", place.output_dir, "The feature cache is as it was."):
        place.save(*results)
    return place


def is_there(place: RunFolder, options: TrainOptions | EnsembleOptions) -> bool:
    """Whether a run need not be computed, which is said."""
    there = not options.force and place.load() is not None
    if options.figures == "pdf":  # a run from before they were asked for has none
        there = there and all((place.folder / name).is_file() for name in run_folder.PRINTS)
    if there:
        log.info("%s is there already: nothing to compute (--force computes it again)", place.folder)
    return there


def place_of(
    asked: FeatureSpec,
    options: TrainOptions | EnsembleOptions,
    images: copies.Images,
    among: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Where the results of a run are, or will be; ``among`` says what else they depend on."""
    keyed = {**options.keyed(), **(among or {})}
    run = RunSpec(asked.key(), asked.dataset, options.classifier, keyed, options.seed, images.protocol)
    return RunFolder(run.name, options.output_dir, options.models_dir)


@dataclass(frozen=True)
class Outcome:
    """What was computed of a run."""

    selection: Selection
    curve: LearningCurve
    scores: Scores
    model: Pipeline  # fitted on all rows that there are to fit on
    not_converged: str | None  # why it did not
    sides: Mapping[str, Any]  # how many distinct images each has
    rows: NDArray[np.intp]  # those that were scored, with their labels and features
    labels: NDArray[Any]
    scored: FeatureRows
    cross_validation: Mapping[str, Any] = field(default_factory=dict)  # what `metrics.json` says of it
    left_out: Mapping[str, Any] = field(default_factory=dict)
    probabilities: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # for `ensemble`, where it has use for them


def _compute(run: Run, options: TrainOptions, without: LeftOut) -> Outcome:
    """Choose on validation, refit on all of train, score test; or cross-validate."""
    cache, asked, grouping, clock = run.cache, run.asked, run.grouping, run.clock
    if options.cv is not None:
        from pipeline.commands import crossval

        params = classifiers.candidates(options.classifier, options.settings(), asked.columns)
        candidates = [Trial(options.classifier, asked.taps, each, options.seed) for each in params]
        return crossval.train(run, candidates, options, without)
    # Late, all of it: a run that is there is shown without scikit-learn.
    from pipeline.models import history
    from pipeline.output.metrics import score
    from pipeline.selection import protocol, splits

    name, classes, taps = options.classifier, cache.class_names, asked.taps
    data, kept = without.samples(cache, taps, grouping), without.kept({"train": cache.rows["train"]})
    clock.lap("load")
    log.info("%s on %s features of %s rows", name, f"{asked.columns:,}", f"{cache.rows['train']:,}")
    rows = protocol.prepare(data, options.seed, classes)
    selection = protocol.select(name, options.settings(), rows, options.seed)
    chosen = selection.fitted
    log.info(
        "chosen on validation: %s (accuracy %.2f %%, log loss %.4f)",
        classifiers.describe(chosen.params), 100 * chosen.validation[1], chosen.validation[0],
    )  # fmt: skip
    said = protocol.probabilities(chosen, rows, kept)
    clock.lap("search")
    sides = {**protocol.sizes_of_sides(rows), **protocol.class_sizes(data, classes)}
    elsewhere = None
    if options.cluster is not None and options.seeds:
        from pipeline.selection import on_workers  # late: it loads Dask

        elsewhere = functools.partial(on_workers.follow, options.cluster, cache, asked, data, kept)
    curve = protocol.learning_curve(name, chosen, rows, options.seed, classes, seeds=options.seeds, elsewhere=elsewhere)
    del rows
    clock.lap("evaluate")
    model, reason = protocol.refit(name, chosen, data, options.seed)
    learnt = np.unique(data.images)
    del data
    clock.lap("fit")
    test_features, test_labels = arrays.load_split(cache, "test", taps)
    clock.lap("load")
    images = grouping.images[grouping.train :]
    tested = splits.one_of_each(images)  # a copy tells nothing new: each image is counted and listed once
    probabilities = history.predict(model, test_features.take(tested))
    excluded = cache.rows["train"] - len(kept)
    told = left_out_of(without, excluded)
    if without.pairs:
        new = ~np.isin(images[tested], learnt)
        everything = score(probabilities[None], test_labels[tested], classes).accuracy
        told = left_out_of(without, excluded, len(tested) - int(new.sum()), everything)
        tested, probabilities = tested[new], probabilities[new]
    scores = score(probabilities[None], test_labels[tested], classes)
    clock.lap("evaluate")
    return Outcome(
        selection, curve, scores, model, reason or chosen.not_converged, sides, tested, test_labels[tested],
        test_features.take(tested), left_out=told, probabilities=said,
    )  # fmt: skip


def left_out_of(without: LeftOut, excluded: int, duplicates: int = 0, accuracy: float | None = None) -> dict[str, Any]:
    """What ``metrics.json`` says of rows that were left out: how many, by which tables, and the accuracy with them."""
    more = {"test_duplicates": duplicates, "accuracy_with_duplicates": accuracy} if without.pairs else {}
    return {**without.source, "excluded_rows": excluded, **more} if without.source else {}


def _contents(run: Run, outcome: Outcome) -> tuple[dict[str, bytes], bytes, dict[str, Any], str]:
    """Return the run folder's files, the model file, its description and its card."""
    import joblib

    from pipeline.output import figures, maps

    cache, asked, options = run.cache, run.asked, run.options
    classes, scores, chosen = cache.class_names, outcome.scores, outcome.selection.fitted
    created = datetime.now(UTC).isoformat(timespec="seconds")
    title = report.title(cache, asked, options.classifier)
    metrics = {
        "run": run.place.name,
        "created": created,
        "dataset": {
            "name": asked.dataset,
            "digest": asked.dataset_digest,
            "official": cache.provenance["official"],
            # A folder is known by where it is: the page shows images from there.
            **({"folder": str(cache.provenance["dataset_source"])} if cache.has_members else {}),
            **({"reading": cache.provenance["reading"]} if "reading" in cache.provenance else {}),
        },
        "features": {
            "file": _one_or_all([str(each.path) for each in cache.parts]),
            "key": _one_or_all([each.spec.key() for each in cache.parts]),
            **asked.image,
            "image_size": _one_or_all(asked.sizes),
            "precision": asked.precision,
            "taps": list(asked.taps),
            "columns": asked.columns,
            "weights": cache.provenance["weights"],
            "limit": asked.limit,
        },
        "preset": options.preset,
        "classifier": {"name": options.classifier, "params": chosen.params},
        "converged": outcome.not_converged is None,
        "convergence": outcome.not_converged,
        "search": outcome.selection.trials,
        "seed": options.seed,
        "images": {**dataclasses.asdict(copies.count(run.grouping)), **outcome.sides},
        "accuracy": {"train": chosen.train[1], "validation": chosen.validation[1], "test": scores.accuracy},
        "log_loss": {"train": chosen.train[0], "validation": chosen.validation[0], "test": scores.log_loss},
        **scores.fields,
        "cross_validation": outcome.cross_validation or None,
        "map": maps.keep(options.output_dir, asked.key(), outcome.scored, outcome.rows),
        **({"left_out": outcome.left_out} if outcome.left_out else {}),
        "seconds": {},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("scikit-learn", "numpy", "scipy", "joblib")},
            **{f"features_{package}": number for package, number in cache.versions.items()},
        },
    }
    for warning in report.warnings(metrics):
        log.warning("warning: %s", warning)
    curve = outcome.curve
    scored = f"{title}\n{report.scored(metrics)}"
    formats = (*figures.FORMATS, *([".pdf"] if options.figures == "pdf" else []))
    pictures = {
        "history": figures.history(chosen.history, title, len(classes), formats=formats),
        "calibration": figures.calibration(scores.calibration, title, formats=formats),
        "learning_curve": figures.learning_curve(curve.sizes, curve.train, curve.validation, title, formats=formats),
        "confusion_matrix": figures.confusion_matrix(scores.confusions, classes, scored, formats=formats),
    }
    buffer = io.BytesIO()
    joblib.dump(outcome.model, buffer, compress=3)
    run.clock.lap("evaluate")
    metrics["seconds"] = run.clock.seconds()
    text, card = report.texts(metrics, scores.text, asked, cache)
    contents = {
        "report.txt": text.encode("utf-8"),
        "metrics.json": to_json(metrics),
        "history.csv": chosen.history.to_csv(),
        "learning_curve.csv": curve.to_csv(),
        "predictions.csv": _predictions(cache, outcome),
        **{stem + suffix: content for stem, files in pictures.items() for suffix, content in files.items()},
    }
    if outcome.probabilities:
        np.savez_compressed(packed := io.BytesIO(), allow_pickle=False, **outcome.probabilities)
        contents[run_folder.PROBABILITIES] = packed.getvalue()
    if cache.has_members:
        contents["skipped.csv"] = to_csv(
            ("file", "reason"), [(printable(each.file), each.reason) for each in cache.skipped]
        )
    description = {
        "created": created,
        "spec": asked.to_dict(),
        "key": asked.key(),
        "taps": list(asked.taps),
        "classes": list(classes),
        "classifier": metrics["classifier"],
        "weights": cache.provenance["weights"],
        "weights_source": cache.provenance["weights_source"],
        "official": cache.provenance["official"],
        "versions": metrics["versions"],
    }
    return contents, buffer.getvalue(), description, card


def _one_or_all(values: Sequence[Any]) -> Any:
    """The value of a run's one cache, or the list of all."""
    return values[0] if len(values) == 1 else list(values)


class Clock:
    """Adds up wall-clock seconds under names."""

    def __init__(self, start: float) -> None:
        self._start = self._last = start
        self._spent = dict.fromkeys(("load", "search", "fit", "evaluate"), 0.0)

    def lap(self, name: str) -> None:
        """Count the time since the last lap under ``name``."""
        now = time.monotonic()
        self._spent[name] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """All laps and their total, in seconds, to milliseconds."""
        return {
            **{name: round(spent, 3) for name, spent in self._spent.items()},
            "total": round(time.monotonic() - self._start, 3),
        }


def _predictions(cache: store.Cache, outcome: Outcome) -> bytes:
    """The rows that were scored as CSV; of images of one's own with the file of each."""
    classes, scores = cache.class_names, outcome.scores
    lines = [
        [row, classes[label], classes[guess], f"{confidence:.6f}"]
        for row, label, guess, confidence in zip(
            outcome.rows, outcome.labels, scores.predicted, scores.confidences, strict=True
        )
    ]
    header = ["index", "label", "predicted", "confidence"]
    if cache.has_members:
        header.append("file")
        scored = ("train", "test") if outcome.cross_validation else ("test",)
        names = [name for split in scored for name in cache.members(split).names]
        lines = [[*line, printable(names[line[0]])] for line in lines]
    return to_csv(header, lines)
