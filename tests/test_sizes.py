"""Several sizes in one run, what the network sees of an image, and presets: the same from features to predictions."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import ROOT, Run, assert_user_error, command
from PIL import Image

import pipeline
from pipeline.commands import predict, presets
from pipeline.commands.options import PredictOptions
from pipeline.common.errors import UserError
from pipeline.features import store
from pipeline.features.options import FeatureOptions
from pipeline.models import classifiers
from pipeline.network.taps import RICH_TAPS, columns_of
from pipeline.selection.options import TrainOptions
from pipeline.selection.trials import Trial

pytestmark = pytest.mark.tensorflow

TAPS = ("block2_conv2.std", "block3_pool.max", "block4_conv1.avg2x2")
ASKED = ["--weights", "random", "--precision", "float32", "--taps", ",".join(TAPS), "--views", "mirror"]
SIZES = ["--image-size", "40,32"]
LOGISTIC = ["--classifier", "logistic", "--C", "0.1", "--no-learning-curve"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of dark and light pictures, a cache of it for each size, and a run on both."""
    home = tmp_path_factory.mktemp("sizes")
    pictures.tones(home / "tones", 14)
    told = command("features", *_places(home, "dataset", "features"), *ASKED, *SIZES, "--batch-size", "16", "--json")
    assert [cache["spec"]["image_size"] for cache in json.loads(told)["caches"]] == [40, 32]
    command("train", *_places(home), *ASKED, *SIZES, "--C", "0.1")
    return home


def _places(home: Path, *which: str) -> list[str]:
    places = {"dataset": "tones", "features": "f", "models": "m", "output": "o"}
    names = {name: f"--{name}" if name == "dataset" else f"--{name}-dir" for name in which or places}
    return [word for name, flag in names.items() for word in (flag, str(home / places[name]))]


def _metrics(home: Path, folder: str = "o") -> list[dict[str, object]]:
    return [json.loads(path.read_bytes()) for path in sorted((home / folder).glob("*/metrics.json"))]


def test_a_run_has_the_columns_of_all_its_caches_side_by_side(made: Path) -> None:
    (metrics,) = _metrics(made)
    told = metrics["features"]
    assert isinstance(told, dict)
    assert told["image_size"] == [40, 32]
    assert told["view"] == "mirror"
    assert told["columns"] == 2 * columns_of(TAPS)
    joined, _ = pipeline.load_features(told["file"], "train", TAPS)
    singles = [pipeline.load_features(file, "train", TAPS)[0] for file in told["file"]]
    np.testing.assert_array_equal(joined, np.hstack(singles))
    for file, key, size in zip(told["file"], told["key"], (40, 32), strict=True):
        with store.open(Path(file)) as cache:
            assert (cache.spec.key(), cache.spec.image_size, cache.spec.view) == (key, size, "mirror")
    card = next((made / "m").glob("*.md")).read_text()
    assert "40 and at 32 pixels" in card
    assert "mirror image" in card
    assert (
        "VGG16 at 40 and 32 px, mean of image and mirror image" in next((made / "o").glob("*/report.txt")).read_text()
    )
    assert "40 32" in (made / "o" / "leaderboard.csv").read_text()


def test_predictions_and_shared_models_are_those_of_the_run(made: Path) -> None:
    (path,) = (made / "o").glob("*/predictions.csv")
    (model,) = (made / "m").glob("*.joblib")
    command("export", "--model", model)
    rows = list(csv.DictReader(path.open()))
    files = tuple(made / "tones" / row["file"] for row in rows)
    for kind in (".joblib", ".skops"):
        asked = PredictOptions(model=model.with_suffix(kind), images=files, format="csv", batch_size=16)
        found = list(csv.DictReader(io.StringIO(predict.predict(asked)[0])))
        assert [row["label_1"] for row in found] == [row["predicted"] for row in rows]
        for one, other in zip(found, rows, strict=True):
            assert float(one["probability_1"]) == pytest.approx(float(other["confidence"]), abs=1e-4)


def test_the_transformer_gives_the_same_columns(made: Path) -> None:
    told = _metrics(made)[0]["features"]
    assert isinstance(told, dict)
    files = sorted((made / "tones").glob("*/*.png"))
    features, _ = pipeline.load_features(told["file"], "train", TAPS)
    with store.open(Path(told["file"][0])) as cache:
        names = [made / "tones" / name for name in cache.members("train").names]
    vgg = pipeline.VGG16Features(
        TAPS, image_size=(40, 32), views="mirror", weights="random", precision="float32", features_dir=made / "f"
    ).fit(files)
    np.testing.assert_array_equal(vgg.transform(names), features)
    titles = vgg.get_feature_names_out()
    assert len(titles) == 2 * columns_of(TAPS)
    assert titles[0] == "40px_block3_pool.max_0"
    assert titles[-1].startswith("32px_")


def test_the_same_run_is_found_and_another_order_is_another_run(made: Path, call: Run, tmp_path: Path) -> None:
    again = call("train", *_places(made), *ASKED, *SIZES, "--C", "0.1")
    assert "is there already" in again.stderr
    other = ["--models-dir", tmp_path / "m", "--output-dir", tmp_path / "o"]
    for sizes in ("32,40", "40"):
        done = call("train", *_places(made, "dataset", "features"), *ASKED, *other, "--image-size", sizes, "--C", "0.1")
        assert done.returncode == 0, done.stderr
    names = {each["run"] for each in [*_metrics(made), *_metrics(tmp_path)]}
    assert len(names) == 3


def test_sweep_and_cross_validation_take_the_columns_of_all_caches(made: Path, call: Run, tmp_path: Path) -> None:
    other = ["--models-dir", tmp_path / "m", "--output-dir", tmp_path / "o", *_places(made, "dataset", "features")]
    swept = call(
        "sweep", *[word for word in ASKED if word not in ("--taps", ",".join(TAPS))], *SIZES, *other, "--taps", TAPS[0],
        "--taps", ",".join(TAPS), "--grid", "C=0.01,0.1",
    )  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    (table,) = (tmp_path / "o" / "sweeps").glob("*.csv")
    assert {row["columns"] for row in csv.DictReader(table.open())} == {
        str(2 * columns_of(taps)) for taps in (TAPS[:1], TAPS)
    }
    folded = call("train", *ASKED, *SIZES, *other, "--cv", "3", "--C", "0.1")
    assert folded.returncode == 0, folded.stderr
    assert (
        {each["features"]["columns"] for each in _metrics(tmp_path)}
        <= {  # type: ignore[index]
            2 * columns_of(taps) for taps in (TAPS[:1], TAPS)
        }
    )


def test_what_cannot_be_joined_is_explained(made: Path, call: Run, tmp_path: Path) -> None:
    asked = [*_places(made), *ASKED]
    assert_user_error(call("train", *asked, "--image-size", "32,40,32"), "name each size once", "32,40,32")
    words = ("48 px", "views mirror", "python -m pipeline features", "--image-size 32,48", "--views mirror")
    assert_user_error(call("train", *asked, "--image-size", "32,48"), *words)
    with store.open(Path(_metrics(made)[0]["features"]["file"][0])) as cache:  # type: ignore[index]
        spec = dataclasses.replace(cache.spec, more_sizes=(32,))
    (tmp_path / "tones" / "dark").mkdir(parents=True)
    for i in range(14):
        Image.fromarray(pictures.pixels(i, 40, 50)).save(tmp_path / "tones" / "dark" / f"{i}.png")
    (tmp_path / "tones" / "light").symlink_to(made / "tones" / "light")
    command("features", *_places(tmp_path, "dataset", "features"), *ASKED, "--image-size", "32", "--follow-links")
    (path,) = (tmp_path / "f").glob("*-32px-*.h5")
    with store.open(path) as cache:
        digests = (cache.spec.dataset_digest[:12], spec.dataset_digest[:12])
        first = stack_of(made)
        with first, pytest.raises(UserError) as refused:
            cache.places_of(first, "train")
    for word in (*digests, str(path), str(first.path), "cannot be joined"):
        assert word in str(refused.value)


def stack_of(home: Path) -> store.Cache:
    return store.open(next((home / "f").glob("*-40px-*.h5")))


@pytest.mark.parametrize(("tap", "size", "works"), [("block5_pool", 32, 64), ("block5_pool", 63, 64)])
def test_quadrants_of_a_single_pixel_are_refused(tap: str, size: int, works: int) -> None:
    with pytest.raises(
        UserError, match=rf"{tap}\.avg2x2 .* single pixel at an image size of {size}.* from {works} px on"
    ):
        FeatureOptions(image_size=(128, size), taps=f"{tap}.avg2x2")
    FeatureOptions(image_size=(works, 128), taps=f"{tap}.avg2x2")


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_a_preset_is_choices_that_are_allowed(name: str) -> None:
    """At every size that it has, for a classifier that there is; and they are those of the documentation."""
    asked = FeatureOptions(**presets.PRESETS[name], preset=name)
    many = TrainOptions(classifier=presets.CLASSIFIER, for_few=presets.FOR_FEW)
    assert many.for_rows(20_000) is many
    assert many.for_rows(19_999).classifier == presets.FOR_FEW
    chosen = many.of_trial(Trial("svm", RICH_TAPS, classifiers.resolve("svm", {"alpha": 1.0}), 0))
    assert chosen.for_rows(100) is chosen, "a sweep has compared them"
    told = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    sizes = " and ".join(map(str, asked.image_size))
    assert f"| `{name}` | {sizes} px | {asked.views} | `{asked.taps}` | `{presets.CLASSIFIER}` |" in told


def test_a_flag_wins_over_a_preset_which_is_recorded(call: Run, tmp_path: Path) -> None:
    places = [*_places(tmp_path, "features", "models", "output"), "--dataset", "digits", "--limit", "60"]
    features = [*_places(tmp_path, "features"), "--dataset", "digits", "--limit", "60", "--weights", "random"]
    done = call("features", "--preset", "fast", "--image-size", "40", *features)
    assert done.returncode == 0, done.stderr
    assert "--image-size as given, not the preset's 32" in done.stderr
    asked = ["--preset", "fast", "--image-size", "40", "--weights", "random", *places]
    done = call("train", *asked)
    assert done.returncode == 0, done.stderr
    assert "logistic, as the preset fast has it for fewer than 20,000 images" in done.stderr
    (metrics,) = _metrics(tmp_path)
    assert metrics["preset"] == "fast"
    told = metrics["features"]
    assert isinstance(told, dict)
    assert (told["image_size"], told["view"], tuple(told["taps"])) == (40, "plain", RICH_TAPS)
    assert metrics["classifier"]["name"] == "logistic"  # type: ignore[index]
    assert "is there already" in call("train", *asked).stderr
    plain = ["--image-size", "40", "--taps", "rich", "--weights", "random", "--curve-seeds", "1", *places]
    assert "is there already" in call("train", *plain).stderr, "the preset is no part of the run's key"
    assert "mlp" in call("train", *asked, "--C", "1").stderr, "an option is one of the preset's classifier"
    assert_user_error(call("train", "--preset", "fats"), "one of fast, default, best", "Did you mean fast?")
