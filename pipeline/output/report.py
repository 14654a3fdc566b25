"""What a run says in words: its title, its report, and what is left on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.common.progress import format_seconds
from pipeline.common.text import count_of_files, percent
from pipeline.features import store
from pipeline.features.spec import FeatureSpec
from pipeline.models import classifiers
from pipeline.output import run_folder
from pipeline.output.run_folder import RunFolder

FEW = 10  # images of a class, below which its scores are rough
LOPSIDED = 10  # times as many images in one class as in another
SMALL = 3000  # images, below which cross-validation is worth its fits

NO_TEST = "no test scores: every image of the test split was left out"


def caveats(official: bool, weights: str) -> list[str]:
    """What everyone who reads a result must know about its inputs."""
    notes = [] if official else ["data not the official files"]
    return notes + (
        [] if weights == "imagenet" else ["untrained weights" if weights == "random" else f"weights {weights}"]
    )


def sizes_text(sizes: int | Sequence[int]) -> str:
    """Image sizes in words: ``64 and 96 px``."""
    return f"{' and '.join(map(str, [sizes] if isinstance(sizes, int) else sizes))} px"


def title(cache: store.Cache, asked: FeatureSpec, name: str) -> str:
    """What a run is of, in one line: the title of its pictures."""
    columns = f"{asked.columns:,} VGG16 columns at {sizes_text(asked.sizes)}"
    parts = [asked.dataset, name, columns, *([] if asked.limit is None else [f"first {asked.limit:,} rows"])]
    return " · ".join(parts + caveats(cache.provenance["official"] is True, cache.provenance["weights"]))


def scored(metrics: Mapping[str, Any]) -> str:
    """The accuracy on images that the model, or the models of the folds, did not see; in a few words."""
    accuracy, folds = metrics["accuracy"]["test"], metrics.get("cross_validation")
    return NO_TEST if accuracy is None else f"{'cross-validated' if folds else 'test'} accuracy {percent(accuracy)}"


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """What makes the scores rough, or easily misread."""
    found = [] if metrics["accuracy"]["test"] is not None else [NO_TEST]
    few = [name for name, scores in metrics["per_class"].items() if scores["support"] < FEW]
    if few and not found:
        names = ", ".join(few[:3]) + (f" and {len(few) - 3} more" if len(few) > 3 else "")
        found.append(f"fewer than {FEW} images of {names} were scored: what is said of them is rough")
    (small, least), (large, most) = metrics["images"]["smallest"], metrics["images"]["largest"]
    if most >= LOPSIDED * least:
        found.append(
            f"{large} has {most:,} images, {small} {least:,}: look at the balanced accuracy, which counts each class "
            f"alike (guessing the commonest class has an accuracy of {percent(metrics['majority'] or 0)})"
        )
    if not metrics.get("cross_validation") and sum(metrics["images"]["distinct"].values()) < SMALL:
        found.append(f"below {SMALL:,} images a single split says little: --cv 5 scores every image")
    return found


def left_out_text(metrics: Mapping[str, Any]) -> str:
    """Which rows a run did without, and the accuracy with them; "" where none was to be left out."""
    told = metrics.get("left_out") or {}
    parts = []
    if "excluded" in told:
        parts.append(f"{told['excluded_rows']:,} rows that {told['excluded']} lists")
    if "near_duplicates" in told and metrics.get("cross_validation"):
        parts.append("near duplicates count once and are in one fold")
    elif "near_duplicates" in told:
        parts.append(
            f"{told['test_duplicates']:,} test images that are near duplicates of training images (test accuracy with "
            f"them {percent(told['accuracy_with_duplicates'])})"
        )
    return "; ".join(parts)


def texts(metrics: Mapping[str, Any], table: str, spec: FeatureSpec, cache: store.Cache) -> tuple[str, str]:
    """The report of a run, with scikit-learn's classification report as ``table``; and the card of its model.

    The card, in Markdown, says what a person must know before using the model. After Mitchell et al., Model Cards for
    Model Reporting, https://arxiv.org/abs/1810.03993.
    """
    from pipeline.output import templating  # late: a run that is there is shown as it was written

    found = warnings(metrics)
    notes = caveats(metrics["dataset"]["official"] is True, metrics["features"]["weights"])
    if not metrics["converged"]:
        notes.append(f"did not converge: {metrics['convergence']}")
    shared: dict[str, Any] = {"m": metrics, "params": classifiers.describe(metrics["classifier"]["params"])}
    report = templating.render(
        "report.txt", **shared, table=table, notes=[*notes, *found], left_out=left_out_text(metrics),
        seconds=format_seconds(metrics["seconds"]["total"]), sizes=sizes_text(metrics["features"]["image_size"]),
    )  # fmt: skip
    return report, templating.render("model_card.md", **shared, spec=spec.to_dict(), cache=cache, warnings=found)


def summary(place: RunFolder) -> str:
    """A run's report and the paths of its pictures, for the terminal; of a folder of images, how many were not used."""
    text = (place.folder / "report.txt").read_text(encoding="utf-8")
    pictures = "\n".join(f"  {place.folder / name}" for name in run_folder.PICTURES)
    said = f"{text}\npictures:\n{pictures}\nmodel:\n  {place.model}\n  {place.card}\n"
    skipped = place.folder / "skipped.csv"  # stage one lists them
    if not skipped.is_file():
        return said
    count = sum(1 for _ in csv.reader(io.StringIO(skipped.read_text(encoding="utf-8")))) - 1
    return f"{said}not used:\n  {count_of_files(count)}, and why: {skipped}\n" if count else said
