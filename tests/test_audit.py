"""What is mislabelled, double, out of place or no picture; and a run without it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
from conftest import Run, assert_user_error, command, needs_browser, operate_map, show_as, violations
from PIL import Image
from test_cli import DIGITS, places

from pipeline.commands import audit
from pipeline.common.errors import UserError
from pipeline.data import dull
from pipeline.features.neighbours import Index
from pipeline.features.originals import Originals
from pipeline.features.rows import FeatureRows
from pipeline.models.history import Samples
from pipeline.selection import alike, copies, left_out, out_of_fold
from pipeline.selection.options import TrainOptions

FLIPPED = 6


def spotted(seed: int, label: int) -> np.ndarray:
    """A picture of one of two classes that can be told: uint8 (40, 40, 3)."""
    generator = np.random.default_rng(seed)
    picture = pictures.pixels(seed).astype(np.int64) // 3
    picture[..., label] += 90 + generator.integers(0, 40)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of each of two classes; six in the wrong one, three saved again, a blank and a long one."""
    folder = tmp_path_factory.mktemp("audit")
    for split, count, first in (("train", 60, 0), ("test", 20, 1000)):
        for label, name in enumerate(("red", "green")):
            (folder / "x" / split / name).mkdir(parents=True)
            for number in range(count):
                wrong = split == "train" and label == 0 and number < FLIPPED
                picture = spotted(first + 2 * number + label, 1 - label if wrong else label)
                Image.fromarray(picture).save(folder / "x" / split / name / f"{number:02d}.png")
    train, test = folder / "x" / "train", folder / "x" / "test"
    Image.open(train / "red" / "30.png").save(train / "red" / "saved-again.jpg", quality=80)
    Image.open(train / "green" / "31.png").save(test / "green" / "again.webp", quality=80)
    Image.open(train / "green" / "32.png").crop((1, 0, 40, 40)).save(test / "green" / "cropped.png")
    Image.new("RGB", (40, 40), (250, 250, 250)).save(train / "red" / "blank.png")
    Image.fromarray(spotted(99, 0)).resize((240, 40)).save(train / "red" / "long.png")
    return folder


def flags(folder: Path, *more: object) -> list[object]:
    taps = ["--taps", "block1_conv1.avg,block1_conv2.avg,block2_conv1.avg"]
    return ["--dataset", folder / "x", *DIGITS[2:], *taps, "--features-dir", folder / "features", *more]


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """The audit of the folder."""
    command("features", *flags(folder))
    said = command("audit", *flags(folder, "--output-dir", folder / "output"))
    (made,) = (folder / "output").glob("audit-*")
    assert f"train --exclude {made / 'audit.csv'}" in " ".join(said.split())
    return made


def listed(made: Path) -> list[dict[str, str]]:
    """The lines of its table."""
    return list(csv.DictReader((made / "audit.csv").open(encoding="utf-8")))


WRONG = {f"train/red/{number:02d}.png" for number in range(FLIPPED)}


@pytest.mark.tensorflow
def test_an_audit_finds_what_was_hidden(call: Run, folder: Path, made: Path) -> None:
    rows = listed(made)
    assert list(rows[0]) == list(left_out.COLUMNS)
    by_issue: dict[str, dict[str, str]] = {}
    for row in rows:
        by_issue.setdefault(row["issue"], {})[row["file"]] = row["suggestion"]
    assert set(list(by_issue["mislabelled"])[: FLIPPED + 3]) >= WRONG
    assert {by_issue["mislabelled"][file] for file in WRONG} == {"green"}
    assert by_issue["leak"]["test/green/again.webp"] == "train/green/31.png"
    assert by_issue["leak"]["test/green/cropped.png"] == "train/green/32.png"
    assert by_issue["duplicate"].get("train/red/saved-again.jpg", "train/red/30.png") == "train/red/30.png"
    assert set(by_issue["dull"]) == {"train/red/blank.png", "train/red/long.png"}
    assert "train/red/blank.png" in by_issue["outlier"]
    about = json.loads((made / "audit.json").read_bytes())
    assert about["found"] == {issue: len(by_issue.get(issue, {})) for issue in about["found"]}
    assert "cropped.png" in (made / "index.html").read_text(encoding="utf-8")
    again = call("audit", *flags(folder, "--output-dir", made.parent))
    assert "is there already" in again.stderr
    assert f" {about['found']['mislabelled']}  mislabelled" in again.stdout


@needs_browser
@pytest.mark.tensorflow
def test_the_page_of_an_audit_in_a_browser(browser: Callable[..., Any], made: Path, axe: str) -> None:
    """And it meets WCAG as far as axe can tell, and nothing sticks out."""
    found: dict[str, str] = {}
    for row in listed(made):
        what = f"{row['issue']}: {row['suggestion']}" if row["issue"] in ("mislabelled", "dull") else row["issue"]
        before = found.get(row["file"], f"{row['label']}, ")
        found[row["file"]] = f"{before}{'' if before.endswith(', ') else '; '}{what}"
    driver = browser()
    driver.get((made / "index.html").as_uri())
    about = json.loads((made / "audit.json").read_bytes())
    points = json.loads(driver.execute_script("return document.querySelector('.map script').textContent"))
    assert len(points["names"]) == sum(about["rows"].values()), "all are on the map"
    wrong = {
        points["names"][int(point)]: f"{('green', 'red')[1 - label]}, taken for {('green', 'red')[label]}"
        for point, label in points["rings"][1]["said"].items()
    }
    assert len(wrong) == round((1 - about["accuracy"]) * len(points["names"]))
    assert {name: wrong[name] for name in WRONG} == dict.fromkeys(WRONG, "red, taken for green")
    operate_map(driver, {"found above": found, "predicted wrongly by classifiers that did not see it": wrong})
    for width, dark in itertools.product((1280, 400), (False, True)):
        show_as(driver, width, dark)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width, "nothing sticks out"
        assert violations(driver, axe) == []


@pytest.mark.tensorflow
def test_a_run_goes_without_what_an_audit_lists(call: Run, folder: Path, made: Path, tmp_path: Path) -> None:
    """Its table was edited by a person, in a spreadsheet."""
    shutil.copytree(made, tmp_path / "output" / made.name)
    quick = [*places(tmp_path), "--no-learning-curve"]
    plain = call("train", *flags(folder, *quick))
    assert plain.returncode == 0, plain.stderr
    rows, edited = listed(made), tmp_path / "edited.csv"
    kept = [row for row in rows if row["file"] in WRONG or row["issue"] == "dull"]
    text = io.StringIO()
    writer = csv.DictWriter(text, left_out.COLUMNS, delimiter=";")
    writer.writeheader()
    writer.writerows(kept)
    edited.write_text(text.getvalue(), encoding="utf-8-sig")
    without = call("train", *flags(folder, *quick, "--exclude", edited, "--drop-duplicates"))
    assert without.returncode == 0, without.stderr
    found = [json.loads(path.read_bytes()) for path in (tmp_path / "output").glob("*/metrics.json")]
    (dropped,) = [metrics for metrics in found if "left_out" in metrics]
    (whole,) = [metrics for metrics in found if "left_out" not in metrics]
    assert dropped["left_out"]["excluded_rows"] == FLIPPED + 2
    assert 2 <= dropped["left_out"]["test_duplicates"] < 40
    sides = dropped["images"]["fit"] + dropped["images"]["validation"]
    assert sides < whole["images"]["fit"] + whole["images"]["validation"] - FLIPPED - 2, "duplicates count once"
    assert dropped["map"] != whole["map"], "they were scored on other rows"
    assert "test accuracy with them" in without.stdout
    same = call("train", *flags(folder, *quick, "--exclude", edited, "--drop-duplicates"))
    assert "is there already" in same.stderr
    folds = call("train", *flags(folder, *quick, "--exclude", edited, "--drop-duplicates", "--cv", "3", "--json"))
    assert folds.returncode == 0, folds.stderr
    crossed = json.loads(folds.stdout)
    report = (Path(crossed["folder"]) / "report.txt").read_text(encoding="utf-8")
    assert "near duplicates count once and are in one fold" in report
    scored = [*csv.DictReader((Path(crossed["folder"]) / "predictions.csv").open(encoding="utf-8"))]
    assert {row["file"].split("/")[1] == row["label"] for row in scored} == {True}, "the rows that are left, by name"
    assert not {row["file"] for row in scored} & {row["file"] for row in kept}
    swept = call("sweep", *flags(folder, *quick, "--exclude", edited, "--grid", "C=0.01,0.1"))
    assert f"{FLIPPED + 2} rows that {edited} lists" in swept.stdout

    other = tmp_path / "other.csv"
    other.write_text(edited.read_text(encoding="utf-8-sig").replace(kept[0]["data"], "sha256:0123456789abcdef"))
    said = assert_user_error(call("train", *flags(folder, *quick, "--exclude", other)), "another data set")
    assert "sha256:0123456789abcdef" in said
    assert kept[0]["data"] in said
    assert_user_error(
        call("train", *flags(folder, *places(tmp_path / "new"), "--drop-duplicates")), "no audit of this data set"
    )
    other.write_text("row\n1\n")
    assert_user_error(call("train", *flags(folder, *quick, "--exclude", other)), "none that audit wrote")


# --- its parts --------------------------------------------------------------------------------


def noisy(seed: int, classes: int, share: float, spread: float = 1) -> tuple[Samples, np.ndarray, np.ndarray]:
    """Rows of classes that overlap a little, some of them under another label; which, and the features."""
    generator = np.random.default_rng(seed)
    truth = np.arange(600) % classes
    features = (np.eye(classes, 40)[truth] * 4 + spread * generator.standard_normal((600, 40))).astype(np.float16)
    flipped = generator.random(600) < share
    labels = np.where(flipped, (truth + generator.integers(1, classes, 600)) % classes, truth)
    each = np.arange(600)
    return Samples(FeatureRows([features]), labels.astype(np.uint8), each, each), flipped, features


@pytest.mark.parametrize("classes", [2, 5])
def test_flipped_labels_are_found(classes: int) -> None:
    data, flipped, _ = noisy(0, classes, 0.05)
    found = out_of_fold.probabilities(data, tuple("abcde"[:classes]), folds=5, seed=0)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    rows, quality = out_of_fold.mislabelled(data.labels, found)
    first = np.argsort(quality)[: flipped.sum()]
    assert flipped[first].mean() > 0.8
    assert flipped[rows].mean() > 0.6
    assert quality[rows[0]] == quality.min()


def test_probabilities_are_of_those_that_saw_no_row_of_the_group() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    features = generator.standard_normal((60, 80)).astype(np.float16)[groups]
    labels = generator.integers(0, 2, 60).astype(np.uint8)[groups]
    rows, each = FeatureRows([features]), np.arange(600)
    alone = out_of_fold.probabilities(Samples(rows, labels, each, each), ("a", "b"), folds=5, seed=0)
    together = out_of_fold.probabilities(Samples(rows, labels, groups, groups), ("a", "b"), folds=5, seed=0)
    assert (alone.argmax(axis=1) == labels).mean() > 0.95
    assert (together.argmax(axis=1) == labels).mean() < 0.75


def test_pairs_are_all_that_there_are_and_outliers_are_alone() -> None:
    _, _, features = noisy(1, 3, 0, spread=0.5)
    generator = np.random.default_rng(2)
    features[500:550] = features[:50] + (generator.standard_normal((50, 40)) * 0.02).astype(np.float16)
    features[599] = 30 * generator.standard_normal(40)
    rows = FeatureRows([features])
    index = Index([rows])
    near = alike.compare(rows, index.scale, 0)
    standard = (features.astype(np.float64) - features.astype(np.float64).mean(axis=0)) / features.astype(
        np.float64
    ).std(axis=0)
    standard /= np.linalg.norm(standard, axis=1, keepdims=True)
    want = 1 - standard @ standard.T
    np.fill_diagonal(want, np.inf)
    tenth = np.sort(want, axis=1)[:, 9]
    relative = want / np.sqrt(np.outer(tenth, tenth))
    pairs, distances = alike.pairs(near, index, 0.35)
    assert sorted(map(tuple, pairs.tolist())) == [(row, 500 + row) for row in range(50)]
    assert (np.diff(distances) >= 0).all()
    np.testing.assert_allclose(distances, relative[pairs[:, 0], pairs[:, 1]], atol=1e-3)
    far = alike.far_out(near, np.arange(600) % 3)
    assert far.argmax() == 599
    assert 1 <= (far > 0).sum() <= 3
    places = alike.lay_out(near, np.arange(0, 600, 5), 0)
    assert places.shape == (120, 2)
    np.testing.assert_array_equal(places, alike.lay_out(near, np.arange(0, 600, 5), 0))


def test_near_duplicates_are_joined_as_copies_are() -> None:
    grouping = copies.Grouping(np.arange(10), np.arange(10), own=False, train=6)
    found = left_out.LeftOut(
        frozenset({("train", 2), ("test", 0), ("train", 99)}),
        [(("train", 0), ("train", 5)), (("train", 5), ("test", 3)), (("train", 99), ("test", 1))],
        {"near_duplicates": "x"},
    )
    joined = found.joined(grouping).images
    assert joined[0] == joined[5] == joined[6 + 3]
    assert len(np.unique(joined)) == 8
    assert found.kept({"train": 6}).tolist() == [0, 1, 3, 4, 5]
    assert found.kept({"train": 6, "test": 4}).tolist() == [0, 1, 3, 4, 5, 7, 8, 9]
    assert list(found.keyed()) == ["near_duplicates"]
    assert left_out.read(TrainOptions(), "0" * 64).keyed() == {}


def test_dull_images_are_told_with_the_reason() -> None:
    usual = [dull.Look(40, 40, 50.0)] * 5
    odd = [dull.Look(40, 40, 1.0), dull.Look(8, 12, 50.0), dull.Look(40, 300, 50.0), dull.Look(15, 15, 50.0)]
    assert dict(dull.faults([*usual, *odd])) == {
        5: "blank: pixels differ by 1.0 of 255",
        6: "tiny: 12 by 8 pixels",
        7: "extreme shape: 300 by 40 pixels",
        8: "tiny: 15 by 15 pixels",
    }
    assert dull.faults([dull.Look(8, 8, 50.0)] * 9) == [], "of a set of small ones none is"


def test_of_an_image_that_is_gone_nothing_is_said() -> None:
    class Images(list[np.ndarray]):
        def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
            if row == 1:
                raise UserError("There is no such file any more.")
            return super().__getitem__(row)

    usual, blank = (
        np.tile(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (1, 40, 3)),
        np.zeros((40, 40, 3), np.uint8),
    )
    images = Originals({"train": Images([usual, usual, usual, blank]), "test": Images([blank])}, {})
    assert [item.row for item in audit._dull(images, {"train": 4, "test": 1})] == [3, 4]


def test_a_table_of_rows_that_are_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    path.write_text(f"split,row,data\nvalidation,3,{left_out.mark('a' * 64)}\n")
    with pytest.raises(UserError, match="Line 2 has 'validation' and '3'"):
        left_out.read(TrainOptions(exclude=path), "a" * 64)
    path.write_text("split,row,data\n")
    assert left_out.read(TrainOptions(exclude=path), "a" * 64).rows == frozenset()
