"""What is most like an image: exactly the nearest rows, whoever asks and in whatever form."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import Run, assert_user_error
from PIL import Image
from test_cli import DIGITS
from test_folders import extract

import pipeline
from pipeline.common.errors import UserError
from pipeline.features import approximate, neighbours, store
from pipeline.features.neighbours import Index
from pipeline.features.rows import FeatureRows


@pytest.fixture(scope="module")
def insects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of twenty pictures under the network itself, untrained."""
    folder = tmp_path_factory.mktemp("similar")
    pictures.fill(folder / "insects", count=10)
    return folder


TAPS = ["--taps", "block1_conv1.avg,block2_conv1.avg"]


def flags(folder: Path) -> list[object]:
    return ["--dataset", folder / "insects", *DIGITS[2:], *TAPS, "--features-dir", folder / "features"]


def test_the_search_is_exact_in_memory_and_in_a_file(tmp_path: Path) -> None:
    pictures.fill(tmp_path / "x", count=30)
    assert extract(tmp_path / "x", tmp_path / "f").status == 0
    with store.open(next((tmp_path / "f").glob("*.h5"))) as cache:
        in_file = [cache.feature_rows(split, cache.spec.taps) for split in ("train", "test")]
        index = Index(in_file)
        everything = np.vstack([rows.array().astype(np.float64) for rows in in_file])
        mean, deviation = everything[: cache.rows["train"]].mean(axis=0), everything[: cache.rows["train"]].std(axis=0)
        standard = (everything - mean) / deviation
        standard /= np.linalg.norm(standard, axis=1, keepdims=True)
        want = 1 - standard @ standard.T
        asked = np.array([3, 59, 3, 0])
        np.testing.assert_allclose(index.rows(asked), everything[asked])
        wide = Index(in_file)
        wide.widen()
        assert wide._wide is not None
        for held in (index, Index([FeatureRows([rows.array()]) for rows in in_file]), wide):
            distances, rows = held.search(everything[asked].astype(np.float32), 7)
            np.testing.assert_allclose(distances, np.sort(want[asked], axis=1)[:, :7], atol=2e-5)
            np.testing.assert_allclose(np.take_along_axis(want[asked], rows, axis=1), distances, atol=2e-5)
            assert rows[:, 0].tolist() == asked.tolist()
            np.testing.assert_allclose(
                held.distances(np.array([0, 5, 5]), np.array([59, 5, 6])), want[[0, 5, 5], [59, 5, 6]], atol=2e-5
            )


@pytest.mark.tensorflow
def test_an_image_a_row_and_a_copy_find_what_is_like_them(call: Run, insects: Path, tmp_path: Path) -> None:
    assert call("features", *flags(insects)).returncode == 0
    copy = tmp_path / "copy.png"
    shutil.copy(insects / "insects" / "bee" / "004.png", copy)
    Image.open(copy).resize((80, 80), Image.Resampling.BICUBIC).save(tmp_path / "larger.jpg", quality=90)
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")
    images = [copy, tmp_path / "larger.jpg", tmp_path / "broken.jpg", "train:2"]
    done = call("similar", *images, *flags(insects), "--top-k", "3", "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [len(line.split()) for line in lines[:10]] == [6, 6, 5, 5, 6, 5, 5, 6, 5, 5], "the name is said once"
    assert "broken.jpg: " in done.stdout
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height > 3 * 160
    read = list(csv.DictReader(io.StringIO(call("similar", *images, *flags(insects), "--format", "csv").stdout)))
    by_image = {name: [row for row in read if row["image"] == name] for name in map(str, images)}
    assert by_image["train:2"][0]["row"] != "train:2", "a row is not like itself"
    assert len(by_image["train:2"]) == 10
    for path in images[:2]:
        assert by_image[str(path)][0]["file"] == "bee/004.png"
        assert by_image[str(path)][0]["label"] == "bee"
    assert float(by_image[str(copy)][0]["distance"]) == pytest.approx(0, abs=1e-3)
    made = call("similar", *images, *flags(insects), "--output", tmp_path / "found.json")
    assert "found.json: the nearest rows of 3 images" in made.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["similar"][0]["image"] == "train:2"
    assert [item["file"] for item in found["skipped"]] == [str(tmp_path / "broken.jpg")]

    with pipeline.Neighbours(next((insects / "features").glob("*.h5"))) as near:
        assert repr(near.class_names) == "('ant', 'bee')"
        assert len(near) == 20
        distances, rows = near.kneighbors([copy], n_neighbors=3)
        assert near.names[rows[0, 0]] == "bee/004.png"
        pixels = np.asarray(Image.open(copy))
        again = near.kneighbors(pixels[None], n_neighbors=3)
        np.testing.assert_allclose(again[0], distances, atol=1e-3)
        with pytest.raises(UserError, match="between 1 and 20. Got 21"):
            near.kneighbors([copy], n_neighbors=21)
        with pytest.raises(UserError, match="cannot be used"):
            near.kneighbors([tmp_path / "broken.jpg"])

    assert_user_error(call("similar", tmp_path / "broken.jpg", *flags(insects)), "no image among 1 file", "broken.jpg")
    assert_user_error(call("similar", copy, tmp_path / "broken.jpg", *flags(insects), "--strict"), "--strict")
    assert_user_error(call("similar", "test:99", *flags(insects)), "no row test:99", "test has 4 rows")
    assert_user_error(call("similar", tmp_path / "nothing.png", *flags(insects)), "no image or folder", "nothing.png")
    assert_user_error(call("similar", *flags(insects)), "images parameter must be given")


@pytest.mark.tensorflow
def test_beyond_a_million_rows_an_index_is_built_kept_and_proved(
    insects: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What it finds is what a comparison with all rows finds, and no damaged or foreign one is used."""
    monkeypatch.setattr(neighbours, "MOST_EXACT", 10)
    cache = tmp_path / "insects.h5"
    shutil.copy(next((insects / "features").glob("*.h5")), cache)
    image = insects / "insects" / "bee" / "004.png"

    def found(asked: int, **more: object) -> tuple[np.ndarray, np.ndarray, str]:
        caplog.clear()
        with pipeline.Neighbours(cache, **more) as near:  # type: ignore[arg-type]
            return *near.kneighbors([image], asked), caplog.text

    monkeypatch.setattr(approximate, "is_there", lambda: False)
    distances, rows, said = found(7)
    assert "'make index' installs it" in said
    assert not list(tmp_path.glob("*.index"))
    monkeypatch.undo()
    monkeypatch.setattr(neighbours, "MOST_EXACT", 10)
    assert "building an index of 20 rows" in found(7)[2]
    (kept,) = tmp_path.glob("insects-*.index")
    for again in (found(7), found(7)):
        np.testing.assert_allclose(again[0], distances, atol=1e-5)
        assert again[1].tolist() == rows.tolist()
        assert "building" not in again[2]
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    _, again_rows, said = found(7)
    assert again_rows.tolist() == rows.tolist()
    assert "damaged after it was written: it is built again" in said
    of_one = found(7, taps="block1_conv1.avg")
    assert "building" in of_one[2], "of other taps it is another"
    assert len(list(tmp_path.glob("*.index"))) == 2


def test_an_index_finds_nearly_all_of_many_rows() -> None:
    """Of 20,000 rows in clusters, by cells and few axes."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((400, 600))
    rows = (centres[generator.integers(0, 400, 20_000)] + 0.5 * generator.standard_normal((20_000, 600))).astype("f2")
    sides = [FeatureRows([rows[:15_000]]), FeatureRows([rows[15_000:]])]
    exact, index = Index(sides), approximate.Approximate(sides, *approximate.build(sides, lambda count: None))
    asked = rows[::500].astype(np.float32) + 0.1
    want, got = exact.search(asked, 10), index.search(asked, 10)
    shared = [len(set(one) & set(other)) for one, other in zip(want[1], got[1], strict=True)]
    assert np.mean(shared) > 9
    np.testing.assert_allclose(got[0][:, 0], want[0][:, 0], atol=1e-4)
    want, got = (held.search(asked[:1], 19_000) for held in (exact, index))
    np.testing.assert_allclose(got[0], want[0], atol=1e-5, err_msg="all rows are compared where cells hold fewer")


def test_closing_does_not_wait_for_what_nobody_needs(insects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(rows: FeatureRows, progress: Callable[[int], object]) -> None:
        for _ in range(3000):
            time.sleep(0.01)
            progress(1)

    monkeypatch.setattr(neighbours, "moments", slow)
    with pipeline.Neighbours(next((insects / "features").glob("*.h5"))) as near:
        pass
    assert isinstance(near._reading.exception(), CancelledError)
