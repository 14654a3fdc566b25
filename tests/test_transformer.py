"""VGG16's features within scikit-learn: its contract as far as images allow, and each image computed once."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pictures
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline import VGG16Features, load_features
from pipeline.common.errors import UserError
from pipeline.data import datasets
from pipeline.features import store

pytestmark = pytest.mark.tensorflow

TAP = "block3_pool.max"
IMAGES = np.stack([pictures.pixels(seed, 32, 32) for seed in range(12)])


def features(folder: Path, **more: object) -> VGG16Features:
    settings = {"taps": TAP, "image_size": 32, "weights": "random", "precision": "float32", "batch_size": 16}
    return VGG16Features(**{**settings, "features_dir": folder, **more})  # type: ignore[arg-type]


def computed(folder: Path) -> list[int]:
    """Rows that went through the network, of every cache of a folder."""
    return [store.verify(path).provenance["rows_computed"] for path in folder.glob("*.h5")]


def test_a_search_computes_each_image_once(tmp_path: Path) -> None:
    """10 candidates by 5 folds on the digits: 100 transforms, each image through the network once."""
    digits = datasets.load_dataset("digits", tmp_path, download=False).splits["train"]
    images, labels = digits.images[:200], digits.labels[:200]
    model = Pipeline([("vgg", features(tmp_path)), ("clf", LogisticRegression(max_iter=5, tol=0.1))])
    search = GridSearchCV(model, {"clf__C": [10.0**power for power in range(-6, 4)]}, cv=5).fit(images, labels)
    assert len(search.cv_results_["params"]) == 10
    assert search.best_score_ > 0.3
    different = len({image.tobytes() for image in images})
    assert sum(computed(tmp_path)) == different
    assert len(list(tmp_path.iterdir())) == len(list(tmp_path.glob("*.h5"))), "no locks or parts are left"


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    model = Pipeline([("vgg", features(tmp_path)), ("clf", LogisticRegression(max_iter=20, tol=0.1))])
    images = np.concatenate([IMAGES, 255 - IMAGES])
    scores = cross_val_score(model, images, np.arange(24) // 12, cv=3, n_jobs=2)
    assert len(scores) == 3
    assert sum(computed(tmp_path)) == 24


def test_rows_are_those_of_the_network_in_order(tmp_path: Path) -> None:
    from pipeline.network import vgg16, weights

    network = vgg16.Extractor(
        weights.random_weights().layers, (TAP,), image_size=32, precision="float32", batch_size=16
    )  # fmt: skip
    expected = network(IMAGES)[TAP].astype(np.float32)
    one = features(tmp_path).fit(IMAGES[:5])
    np.testing.assert_array_equal(one.transform(IMAGES[:5]), expected[:5])
    order = np.array([7, 3, 3, 11, 0, 7])
    np.testing.assert_array_equal(one.transform(IMAGES[order]), expected[order])
    assert sorted(computed(tmp_path)) == [2, 5]
    assert one.transform(IMAGES[:0]).shape == (0, 256)


def test_paths_arrays_and_folders_share_rows(tmp_path: Path) -> None:
    pictures.fill(tmp_path / "x", count=5)
    paths = sorted((tmp_path / "x").rglob("*.png"))
    one = features(tmp_path / "f")
    by_path = one.fit_transform([str(path) for path in paths])
    from PIL import Image

    arrays = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_array_equal(one.transform(arrays), by_path)
    (before,) = [
        path for path in (tmp_path / "f").glob("*.h5") if store.verify(path).provenance["rows_computed"] == 10
    ][:1]
    from pipeline.features.extract import extract
    from pipeline.features.options import ComputeOptions

    options = ComputeOptions(
        dataset=str(tmp_path / "x"), features_dir=tmp_path / "f", image_size=32, weights="random", precision="float32",
        taps=TAP, batch_size=16,
    )  # fmt: skip
    made = extract(options)
    assert store.verify(made.path).provenance["rows_computed"] == 0, "all rows were there"
    X, y = load_features(made.path)
    assert X.shape == (8, 256)
    assert X.dtype == np.float32
    assert sorted(y) == [0] * 4 + [1] * 4
    assert before.exists()


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(pictures.png(1))
    bad.write_bytes(pictures.FAULTS["truncated.png"][0](2))
    one = features(tmp_path / "f").fit([good, bad])
    with pytest.raises(UserError, match=r"1 of the images cannot be used; the first is .*bad\.png: damaged"):
        one.transform([good, bad])
    with pytest.raises(UserError, match=r"none\.png"):
        one.transform([tmp_path / "none.png"])
    assert one.transform([good]).shape == (1, 256)
    assert sum(computed(tmp_path / "f")) == 1, "what could be used was kept"


def test_it_is_guarded(tmp_path: Path) -> None:
    for wrong, cause in ((IMAGES / 255, "divided by 255"), (IMAGES.transpose(0, 3, 1, 2), "channels-first")):
        with pytest.raises(UserError, match=cause):
            features(tmp_path).fit(wrong)
    for wrong in ("a.png", 5, None):
        with pytest.raises(UserError, match="must be a uint8 array"):
            features(tmp_path).fit(wrong)
    for name, value in (
        ("taps", "fc1"),
        ("image_size", 8),
        ("fit_mode", "zoom"),
        ("precision", "half"),
        ("batch_size", 0),
    ):
        with pytest.raises(UserError, match=name.replace("_", " ").removesuffix(" mode")):
            features(tmp_path, **{name: value}).fit(IMAGES)


def test_clone_pickle_names_and_output(tmp_path: Path) -> None:
    one = features(tmp_path, taps=["block1_conv1.avg", TAP])
    assert clone(one).get_params() == one.get_params()
    found = one.fit_transform(IMAGES)
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.transform(IMAGES), found)
    names = one.get_feature_names_out()
    assert len(names) == found.shape[1] == 320
    assert names[0] == "block1_conv1.avg_0"
    assert names[-1] == f"{TAP}_255"
    one.set_output(transform="default")
    assert isinstance(one.transform(IMAGES), np.ndarray)


def test_set_output_gives_named_columns(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = features(tmp_path).set_output(transform="polars").fit_transform(IMAGES)
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == list(features(tmp_path).fit(IMAGES).get_feature_names_out())


def test_load_features_says_what_is_wrong(tmp_path: Path) -> None:
    features(tmp_path).fit_transform(IMAGES)
    (path,) = tmp_path.glob("*.h5")
    assert load_features(path, "test")[0].shape == (0, 256)
    for arguments, word in (
        ((path, "valid"), "split"),
        ((path, "train", "top"), "has no tap"),
        ((tmp_path / "x.h5",), "no feature"),
    ):
        with pytest.raises(UserError, match=word):
            load_features(*arguments)


NOT_APPLICABLE = {
    "check_array_api_input",
}


class Tables(VGG16Features):
    """The same over tables of numbers, each row made a picture, so that scikit-learn's checks can feed it.

    scikit-learn's checks know no images: told the truth by the tags, they are all skipped.
    """

    def fit(self, X, y=None):  # type: ignore[no-untyped-def]
        return super().fit(self._pictures(validate_data(self, X)))

    def transform(self, X):  # type: ignore[no-untyped-def]
        check_is_fitted(self)
        return super().transform(self._pictures(validate_data(self, X, reset=False)))

    @staticmethod
    def _pictures(table: np.ndarray) -> np.ndarray:
        digests = [hashlib.sha256(row.astype(np.float32).tobytes()).digest() for row in table]
        return np.frombuffer(b"".join(digest * 3 for digest in digests), np.uint8).reshape(-1, 4, 8, 3)

    def __sklearn_tags__(self):  # type: ignore[no-untyped-def]
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = True, False
        return tags


def test_scikit_learns_own_checks(tmp_path: Path) -> None:
    tables = Tables("block1_conv1.avg", image_size=32, weights="random", features_dir=tmp_path, batch_size=16)
    with config_context(assume_finite=False):  # stage two switches it on for its whole process
        results = check_estimator(tables, on_fail=None, on_skip=None)
    failed = {item["check_name"]: item["exception"] for item in results if item["status"] == "failed"}
    assert failed == {}
    assert sum(item["status"] == "passed" for item in results) > 40
    skipped = {item["check_name"] for item in results if item["status"] == "skipped"}
    assert skipped <= NOT_APPLICABLE, "what scikit-learn leaves out by itself"
    # As it is, it takes images alone: scikit-learn then has nothing to feed it but its parameters.
    with pytest.warns(SkipTestWarning, match="requires input"):
        check_estimator(features(tmp_path))
