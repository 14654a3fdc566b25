"""Look at a data set through its features: what is mislabelled, double, out of place, or no picture at all.

python -m pipeline audit --dataset photos

output/audit-<key>/audit.csv         what to look at, most suspicious first; a person takes lines out
                   duplicates.csv    all pairs of near duplicates
                   audit.json        how it was made, and how much was found
                   index.html        the same with the images, and a map

Nothing is deleted or relabelled: `train --exclude` fits without the rows that are still in the table.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.commands.options import AuditOptions
from pipeline.common import atomic
from pipeline.common.errors import file_errors
from pipeline.common.keys import digest_of
from pipeline.common.progress import Progress
from pipeline.common.text import text_table, to_csv, to_json
from pipeline.data import dull
from pipeline.features import arrays, compute, store
from pipeline.features.find import find
from pipeline.features.layout import SPLITS
from pipeline.features.neighbours import Index
from pipeline.features.options import FeatureOptions
from pipeline.features.originals import Originals, originals
from pipeline.features.spec import FeatureSpec
from pipeline.output.audit_page import Finding, Rows, render
from pipeline.selection import left_out

log = logging.getLogger("pipeline")

RULES = 1  # part of the key: raise it when the same features give another audit
ISSUES = {
    "mislabelled": "the label is likely wrong",
    "leak": "nearly the same as an image of train",
    "duplicate": "nearly the same as another image",
    "outlier": "far from its class and from all",
    "dull": "blank, tiny, or of an extreme shape",
}


def audit(features: FeatureOptions, options: AuditOptions) -> tuple[str, dict[str, Any]]:
    """Make an audit, unless it is there; return what is to be printed, and the same for programs.

    Raises UserError when there is no cache, it does not verify, a class has too few images for the folds, or cleanlab
    is missing.
    """
    paths, asked = find(features)
    key = digest_of([RULES, asked.key(), options.cv, options.seed, options.threshold])
    folder = options.output_dir / f"audit-{key[:8]}"
    about = None if options.force else _there(folder)
    if about is None:
        with store.open_all(paths, asked) as cache:
            if features.strict:
                compute.refuse_skipped(cache.skipped, features.dataset)
            with file_errors("write the audit", folder):
                atomic.make_folder(options.output_dir)
            contents = _contents(cache, asked, features, options)
        with file_errors("write the audit", folder), atomic.new_folder(folder) as new:
            for name, content in contents.items():
                atomic.write_atomically(new / name, content)
        about = json.loads(contents["audit.json"])
    else:
        log.info("%s is there already: nothing to compute (--force computes it again)", folder)
    found = [(f"{about['found'][issue]:,}", issue, what) for issue, what in ISSUES.items()]
    table = folder / "audit.csv"
    text = (
        f"{text_table(('rows', 'issue', ''), found)}\n\ntable: {table}\npage:  "
        f"{folder / 'index.html'}\n\nTake out of the table what is right as it is; 'python -m pipeline train --exclude "
        f"{table}' fits without the rest.\n"
    )
    return text, {**about, "folder": str(folder)}


def _there(folder: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((folder / "audit.json").read_bytes())
        complete = all((folder / name).is_file() for name in ("audit.csv", "duplicates.csv", "index.html"))
    except (OSError, ValueError):
        return None
    return dict(about) if complete and "found" in about else None


def _contents(
    cache: store.Cache, asked: FeatureSpec, features: FeatureOptions, options: AuditOptions
) -> dict[str, bytes]:
    """All files of an audit."""
    from pipeline.selection import alike, copies, out_of_fold  # late: what is there is shown without

    out_of_fold.check_installed()  # now, not after minutes of computing
    classes, images = cache.class_names, originals(cache, features.data_dir)
    if images.absent:
        log.warning("warning: %s Blank and tiny ones are not looked for", images.absent)
    grouping = copies.group(cache, [asked.taps])
    data = left_out.LeftOut().samples(cache, asked.taps, grouping, test=True)
    rows, labels = data.features, data.labels
    probabilities = out_of_fold.probabilities(data, classes, folds=options.cv, seed=options.seed)
    wrong, quality = out_of_fold.mislabelled(labels, probabilities)
    with Progress("neighbours", 0, "steps"):
        index = Index([rows])
        near = alike.compare(rows, index.scale, options.seed)
        pairs, distances = alike.pairs(near, index, options.threshold)
    far = alike.far_out(near, labels)
    train = cache.rows["train"]
    guesses = probabilities.argmax(axis=1)
    findings = [Finding("mislabelled", 1 - quality[row], int(row), classes[guesses[row]]) for row in wrong]
    findings += _doubles(pairs, distances, train)
    findings += [Finding("outlier", far[row], int(row)) for row in np.argsort(-far) if far[row]]
    findings += _dull(images, cache.rows)

    seen = Rows(labels, guesses, classes, images, lambda row: arrays.place_of(row, cache))
    lines = [
        (item.issue, f"{item.score:.4f}", *seen.place(item.row), seen.name(item.row) if images.names else "",
         classes[labels[item.row]], item.suggestion if item.other is None else seen.name(item.other),
         left_out.mark(asked.dataset_digest))
        for item in findings
    ]  # fmt: skip
    doubles = [
        (*seen.place(int(a)), *seen.place(int(b)), f"{distance:.6f}")
        for (a, b), distance in zip(pairs, distances, strict=True)
    ]
    found = Counter(item.issue for item in findings)
    about = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": {"name": asked.dataset, "digest": asked.dataset_digest},
        "features": {"file": str(cache.path), "key": asked.key(), **asked.image, "taps": list(asked.taps)},
        "folds": options.cv,
        "seed": options.seed,
        "rows": dict(cache.rows),
        "accuracy": float((guesses == labels).mean()),
        "threshold": options.threshold,
        "found": {issue: found[issue] for issue in ISSUES},
    }
    return {
        "audit.csv": to_csv(left_out.COLUMNS, lines),
        "duplicates.csv": to_csv(left_out.PAIR_COLUMNS, doubles),
        "audit.json": to_json(about),
        "index.html": render(about, ISSUES, findings, near, seen),
    }


def _doubles(pairs: NDArray[np.intp], distances: NDArray[np.float64], train: int) -> list[Finding]:
    """The later row of each pair, once, with the nearest earlier one; in test with one of train it is a leak."""
    found: dict[int, Finding] = {}
    for (first, second), distance in zip(pairs.tolist(), distances.tolist(), strict=True):
        leak = first < train <= second
        before = found.get(second)
        if before is None or (leak and before.issue != "leak"):
            found[second] = Finding("leak" if leak else "duplicate", 1 - distance, second, "", first)
    return sorted(found.values(), key=lambda item: (item.issue != "leak", -item.score, item.row))


def _dull(images: Originals, counts: Any) -> list[Finding]:
    """Images that show nothing, or hardly anything."""
    if images.absent:
        return []
    places = [(split, row) for split in SPLITS for row in range(counts[split])]
    rows, looks = [], []
    with ThreadPoolExecutor() as pool, Progress("looking", len(places), "images") as progress:
        for row, look in enumerate(pool.map(lambda place: dull.look(images.pixels(*place)), places)):
            if look is not None:  # of a file that is gone nothing is said
                rows.append(row)
                looks.append(look)
            progress.update(1)
    return [Finding("dull", 1.0, rows[number], reason) for number, reason in dull.faults(looks)]
