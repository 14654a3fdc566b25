"""A run out of runs: the weighted mean of what their models say.

python -m pipeline ensemble RUN RUN…
"""

from __future__ import annotations

import dataclasses
import io
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.commands.options import EnsembleOptions
from pipeline.commands.train import Clock, Outcome, Run, make, place_of
from pipeline.common.errors import UserError, file_errors
from pipeline.features import arrays, store
from pipeline.features.find import find_specs
from pipeline.features.spec import FeatureSpec
from pipeline.models import history, persistence, vote
from pipeline.models.jobs import Fitted
from pipeline.models.persistence import Model
from pipeline.network.taps import describe_taps, order_taps
from pipeline.output.metrics import score
from pipeline.output.results import RunResults, load_run
from pipeline.output.run_folder import PROBABILITIES, RunFolder
from pipeline.selection import copies
from pipeline.selection.protocol import LearningCurve, Selection


def ensemble(options: EnsembleOptions) -> RunFolder:
    """Make sure that the ensemble asked for is there, and return where.

    Raises UserError when a run is not there, they are not of the same rows, or no cache has the columns of all.
    """
    start = time.monotonic()
    if len(set(options.runs)) < max(2, len(options.runs)):
        raise UserError(
            f"The runs parameter must name two runs or more, each once. Got {', '.join(options.runs)} instead. "
            f"pipeline.runs() and the page of runs list what there is."
        )
    runs = [load_run(name, options.output_dir) for name in sorted(options.runs)]
    for run in runs:
        _check(run, runs[0])
    options = dataclasses.replace(options, seed=runs[0].metrics["seed"])
    models = {
        run.name: persistence.load_model(RunFolder(run.name, options.output_dir, options.models_dir).model)
        for run in runs
    }
    asked = _joined({name: model.spec for name, model in models.items()})
    with store.open_all(_caches(options, asked), asked) as cache:
        grouping = copies.group(cache, [asked.taps])
        place = place_of(asked, options, copies.count(grouping))
        joined = Run(cache, asked, place, options, grouping, Clock(start))
        return make(joined, lambda: _compute(joined, runs, models))


def _check(run: RunResults, first: RunResults) -> None:
    """Refuse a run that cannot be judged by the same rows as another."""
    if run.metrics.get("cross_validation"):
        raise UserError(
            f"The run {run.name} is cross-validated: an ensemble is chosen on one validation split. Train it without "
            f"--cv."
        )
    if not (run.folder / PROBABILITIES).is_file():
        raise UserError(
            f"The run {run.name} has no {PROBABILITIES}, by which an ensemble is chosen: it was made by an earlier "
            f"version, or is an ensemble itself. Train it again with --force, or name another."
        )
    for what, mine, theirs in (
        ("data set", run.metrics["dataset"]["digest"], first.metrics["dataset"]["digest"]),
        ("limit", run.metrics["features"].get("limit"), first.metrics["features"].get("limit")),
        ("seed", run.metrics["seed"], first.metrics["seed"]),
        ("rows left out", run.metrics.get("left_out"), first.metrics.get("left_out")),
    ):
        if mine != theirs:
            raise UserError(
                f"The runs {first.name} and {run.name} are not of the same rows: their {what} differ"
                f"{'' if what.startswith('rows') else 's'} ({str(theirs)[:12]} and {str(mine)[:12]}), so that nothing "
                f"can be chosen between them. Name runs on the same data with the same --seed."
            )


def _joined(specs: Mapping[str, FeatureSpec]) -> FeatureSpec:
    """A spec that has the columns of all."""
    (name, first), *others = specs.items()
    sizes = tuple(dict.fromkeys(size for spec in specs.values() for size in spec.sizes))
    taps = order_taps(tap for spec in specs.values() for tap in spec.taps)
    fields: Any = {"image_size": sizes[0], "more_sizes": sizes[1:], "taps": taps}
    joined = dataclasses.replace(first, **fields)
    for other, spec in others:
        differences = joined.differences(dataclasses.replace(spec, **fields))
        if differences:
            raise UserError(
                f"The runs {name} and {other} are of features that cannot stand side by side: "
                f"{'; '.join(differences)}. The runs of an ensemble may differ in sizes, taps and classifiers."
            )
    return joined


def _caches(options: EnsembleOptions, asked: FeatureSpec) -> list[Any]:
    found = [find_specs(options.features_dir, [part]) for part in asked.parts]
    missing = [size for size, held in zip(asked.sizes, found, strict=True) if not held]
    if missing:
        raise UserError(
            f"There is no feature cache in {options.features_dir} of {asked.dataset} at "
            f"{' and '.join(map(str, missing))} px with all taps of these runs, {describe_taps(asked.taps)}. Make it "
            f"with 'python -m pipeline features', the flags of these runs and --taps {','.join(asked.taps)}."
        )
    return [held[0][0] for held in found]


def _compute(joined: Run, runs: Sequence[RunResults], models: Mapping[str, Model]) -> Outcome:
    """Weigh the runs on validation, then score the mean of their models, fitted on all of train, on test once."""
    cache, asked, clock = joined.cache, joined.asked, joined.clock
    # Best first, so that the history says what each adds to those before it.
    order = sorted(runs, key=lambda run: run.metrics["log_loss"]["validation"])
    fitted = _weighed(order, cache.labels("train"))
    clock.lap("search")
    estimator = vote.voters(models, fitted.params, asked)
    clock.lap("fit")
    features, labels = arrays.load_split(cache, "test", asked.taps)
    rows = runs[0].predictions["index"]
    features, labels = features.take(rows), labels[rows]
    clock.lap("load")
    scores = score(history.predict(estimator, features)[None], labels, cache.class_names)
    clock.lap("evaluate")
    trials = [
        {
            "run": run.name,
            "log_loss": run.metrics["log_loss"]["validation"],
            "accuracy": run.metrics["accuracy"]["validation"],
            "converged": run.metrics["converged"],
        }
        for run in order
    ]
    images = runs[0].metrics["images"]
    curve = LearningCurve([images["fit"]], np.array([[fitted.train[1]]]), np.array([[fitted.validation[1]]]))
    sides = {name: images[name] for name in ("fit", "validation", "groups_of_sides", "smallest", "largest")}
    left_out = runs[0].metrics.get("left_out", {})
    return Outcome(
        Selection(fitted, trials), curve, scores, estimator, None, sides, rows, labels, features, left_out=left_out
    )


def _weighed(runs: Sequence[RunResults], labels: NDArray[Any]) -> Fitted:
    """The weight of each run, by what the runs say of validation; its history is over how many of them are joined."""
    kept = [_read(run) for run in runs]
    for run, each in zip(runs, kept, strict=True):
        if any(not np.array_equal(each[rows], kept[0][rows]) for rows in ("fit_rows", "validation_rows")):
            raise UserError(
                f"The runs {runs[0].name} and {run.name} were not validated on the same rows, as other copies of "
                f"images are found by other taps. Name runs on the same taps."
            )
    sides = [
        (np.stack([each[side] for each in kept]).astype(np.float32), labels[kept[0][f"{side}_rows"]])
        for side in ("fit", "validation")
    ]
    steps = []
    for count in range(1, len(runs) + 1):
        weights = vote.weigh(sides[1][0][:count], sides[1][1]).round(4)
        weights /= weights.sum()
        train, validation = (history.scores_of(np.tensordot(weights, each[:count], 1), own) for each, own in sides)
        steps.append(history.Step(count, *train, *validation))
    shares = {run.name: round(float(weight), 4) for run, weight in zip(runs, weights, strict=True)}
    record = history.History("runs", steps, len(runs))
    return Fitted(shares, record, train, validation, None, None, validation[0])


def _read(run: RunResults) -> dict[str, NDArray[Any]]:
    path = run.folder / PROBABILITIES
    with file_errors("read the run", path):
        content = path.read_bytes()
    try:
        found = dict(np.load(io.BytesIO(content), allow_pickle=False))
        return {name: found[name] for name in ("fit_rows", "fit", "validation_rows", "validation")}
    except (ValueError, EOFError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}. Train the run {run.name} again with --force.") from error
