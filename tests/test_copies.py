"""A folder full of copies, as scraped ones are: what is validated must not have been fitted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import Run
from PIL import Image
from test_cli import DIGITS, places
from test_folders import TAPS, extract

from pipeline.features import store
from pipeline.features.rows import FeatureRows
from pipeline.models import classifiers, history
from pipeline.output.metrics import wilson_interval
from pipeline.selection import copies, protocol, splits


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with nothing to tell two classes by: each of 160 to learn from six times, 5 of 80 to test on twice."""
    folder = tmp_path_factory.mktemp("noise")
    for split, count, seed in (("train", 80, 0), ("test", 40, 5000)):
        pictures.fill(folder / "noise" / split, count=count, seed=seed)
        for path in sorted((folder / "noise" / split).rglob("*.png"))[: 5 if split == "test" else None]:
            for number in range(1 if split == "test" else 5):
                if number == 0:  # other bytes, the same pixels
                    Image.open(path).save(path.with_suffix(".bmp"))
                else:
                    shutil.copy(path, path.with_name(f"{path.stem}-{number}.png"))
    assert extract(folder / "noise", folder / "features").status == 0
    return folder


@pytest.mark.parametrize("name", ["logistic", "ridge"])
def test_noise_is_not_learned_however_often_it_is_copied(name: str) -> None:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        groups = splits.join_groups(generator.permutation(np.repeat(np.arange(400), 6)))
        features = generator.standard_normal((400, 192)).astype(np.float32)[groups]
        data = history.Samples(FeatureRows([features]), generator.integers(0, 2, 400)[groups], groups, groups)
        chosen = protocol.select(
            name, classifiers.resolve(name, {}), protocol.prepare(data, seed, ("a", "b")), seed
        ).fitted
        low, high = wilson_interval(round(40 * chosen.validation[1]), 40)
        assert low < 0.5 < high
        assert chosen.params[classifiers.get(name).tuned_option] in classifiers.get(name).space(192)[:2], "strong"


def test_copies_are_found_counted_and_told(call: Run, noise: Path, tmp_path: Path) -> None:
    flags = ["--dataset", noise / "noise", *DIGITS[2:6], "--features-dir", noise / "features", *TAPS]
    flags += places(tmp_path)
    done = call("train", *flags)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "output").glob("*/metrics.json")
    metrics = json.loads(path.read_bytes())
    images = metrics["images"]
    assert images["rows"] == {"train": 960, "test": 85}
    assert (images["fit"], images["validation"], images["distinct"]["test"]) == (144, 16, 80)
    low, high = wilson_interval(round(16 * metrics["accuracy"]["validation"]), 16)
    assert low < 0.5 < high
    assert low < metrics["accuracy"]["test"] < high
    low, high = metrics["interval"]["test"]
    assert high - low > 0.2, "of 80 images"
    for text in ((path.parent / "report.txt").read_text(), next((tmp_path / "models").glob("*.md")).read_text()):
        assert "144 distinct images to fit on, 16 to validate on, 80 to test on" in text
        assert "800 rows of train and 5 of test are copies of these" in text
    assert len((path.parent / "predictions.csv").read_text().splitlines()) == 81

    again = call("train", *flags)
    assert "is there already" in again.stderr
    shutil.rmtree(tmp_path / "output" / copies.FOLDER)
    assert "is there already" in call("train", *flags).stderr


def test_a_run_of_an_earlier_version_is_found_where_there_are_no_copies_alone(noise: Path) -> None:
    (path,) = (noise / "features").glob("*.h5")
    with store.open(path) as cache:
        found = copies.count(copies.group(cache, [cache.spec.taps]))
        assert found == copies.Images({"train": 960, "test": 85}, {"train": 160, "test": 80}, 0)
        assert found.protocol == copies.PROTOCOL_WITH_COPIES
    with store.open(next((Path(__file__).parent / "earlier" / "features").glob("posters*.h5"))) as cache:
        assert copies.count(copies.group(cache, [cache.spec.taps])).protocol == copies.PROTOCOL
