"""A fitted model on new images, and whom it may come from."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import Run, assert_user_error, command
from PIL import Image

import pipeline
from pipeline.commands import predict
from pipeline.commands.predict import PredictOptions
from pipeline.common.errors import UserError
from pipeline.common.quiet import interrupts_later
from pipeline.features import images
from pipeline.features.rows import FeatureRows
from pipeline.features.spec import FeatureSpec
from pipeline.models import classifiers, history, persistence
from pipeline.network import device
from pipeline.selection import protocol

pytestmark = pytest.mark.tensorflow

FLAGS = ["--weights", "random", "--precision", "float32", "--image-size", "32", "--taps", "block3_pool.max"]
FLAGS += ["--fit", "crop"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of dark and light pictures, its features, and a model of each kind."""
    home = tmp_path_factory.mktemp("predict")
    pictures.tones(home / "tones", 12)
    places = ["--features-dir", home / "f"]
    command("features", "--dataset", home / "tones", *FLAGS, "--batch-size", "16", *places)
    places += ["--models-dir", home / "m", "--output-dir", home / "o"]
    command("train", "--dataset", home / "tones", *FLAGS, *places, "--C", "0.1")
    return home


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may spoil."""
    for path in (made / "m").glob("*-logistic-*"):
        if path.suffix in (".joblib", ".json"):
            shutil.copy(path, tmp_path)
    (path,) = tmp_path.glob("*.joblib")
    return path


def options(model: Path, *images: Path, **more: object) -> PredictOptions:
    return PredictOptions(model=model, images=images, batch_size=16, **more)  # type: ignore[arg-type]


def test_predictions_are_those_of_the_run(made: Path, model: Path) -> None:
    """The same files through predict as through both stages: the same classes and confidences."""
    (path,) = (made / "o").glob("*/predictions.csv")
    rows = list(csv.DictReader(path.open()))
    text, _ = predict.predict(options(model, *(made / "tones" / row["file"] for row in rows), format="csv"))
    found = list(csv.DictReader(io.StringIO(text)))
    assert [row["label_1"] for row in found] == [row["predicted"] for row in rows]
    for one, other in zip(found, rows, strict=True):
        assert float(one["probability_1"]) == pytest.approx(float(other["confidence"]), abs=1e-5)
        assert float(one["probability_1"]) + float(one["probability_2"]) == pytest.approx(1)


def test_from_python_predictions_are_the_same(made: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of paths and of arrays, by the run's name and by the file, under the same rules."""
    paths = sorted((made / "tones" / "light").iterdir())[:5]
    _, told = predict.predict(options(model, *paths))
    loaded = pipeline.load_model(model.stem, models_dir=model.parent, batch_size=16)
    assert loaded.classes_.tolist() == ["dark", "light"]
    probabilities = loaded.predict_proba(paths)
    assert probabilities.shape == (5, 2)
    assert loaded.predict(paths).tolist() == ["light"] * 5
    for row, item in zip(probabilities, told["predictions"], strict=True):
        assert row.max() == pytest.approx(item["classes"][0]["probability"], abs=1e-6)
    arrays = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_allclose(
        pipeline.load_model(model, batch_size=16).predict_proba(arrays), probabilities, atol=1e-6
    )
    assert loaded.predict([]).shape == (0,)
    with pytest.raises(UserError, match=r"text\.jpg cannot be used: .* Leave it out"):
        (model.parent / "text.jpg").write_bytes(pictures.FAULTS["text.jpg"][0](1))
        loaded.predict([*paths, model.parent / "text.jpg"])
    with pytest.raises(UserError, match="look divided by 255"):
        loaded.predict(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(UserError, match=f"no model of the run {model.stem}x .*Did you mean {model.stem}"):
        pipeline.load_model(f"{model.stem}x", models_dir=model.parent)
    model.write_bytes(model.read_bytes() + b" ")
    with pytest.raises(UserError, match="It was not opened"):
        pipeline.load_model(model)


def test_a_folder_with_faults(made: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for name, (make, _) in pictures.FAULTS.items():
        (folder / name).write_bytes(make(1))
    for name, make_usable in pictures.USABLE.items():
        (folder / name).write_bytes(make_usable(1))
    text, answer = predict.predict(options(model, folder, format="json", top_k=1))
    assert json.loads(text) == answer
    assert [Path(item["file"]).name for item in answer["predictions"]] == sorted(pictures.USABLE, key=os.fsencode)
    assert {Path(item["file"]).name for item in answer["skipped"]} == set(pictures.FAULTS)
    assert all(len(item["classes"]) == 1 for item in answer["predictions"])
    target, sheet = tmp_path / "p.csv", tmp_path / "sheet.png"
    predict.predict(options(model, folder, output=target, sheet=sheet))
    assert len(target.read_text().splitlines()) == 1 + len(pictures.USABLE)
    with Image.open(sheet) as image:
        assert image.width > 500
    with pytest.raises(UserError, match=r"no image among 1 file: .*text\.jpg \(no image"):
        predict.predict(options(model, folder / "text.jpg"))
    target.unlink()
    with pytest.raises(UserError, match=rf"{len(pictures.FAULTS)} files of .* cannot be used, which --strict makes"):
        predict.predict(options(model, folder, output=target, strict=True))
    assert not target.exists(), "nothing is written then"
    text, _ = predict.predict(options(model, folder / "rgb.png", folder / "text.jpg"))
    head, last = text.partition("\n\n")[2].split(":\n")
    assert head == "1 file was not used", "the closing lines of a table"
    assert "text.jpg: no image" in " ".join(last.split())


def test_the_sheet_shows_what_was_classified(
    made: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of the files meanwhile."""
    folder = tmp_path / "new"
    shutil.copytree(made / "tones" / "light", folder)
    predict.predict(options(model, folder, sheet=tmp_path / "before.png"))
    best = predict._best

    def remove_then_best(*arguments: object) -> object:
        shutil.rmtree(folder, ignore_errors=True)
        return best(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "_best", remove_then_best)
    predict.predict(options(model, folder, sheet=tmp_path / "after.png"))
    assert not folder.exists()
    assert (tmp_path / "after.png").read_bytes() == (tmp_path / "before.png").read_bytes()


def test_the_table(made: Path, model: Path, call: Run) -> None:
    done = call(
        "predict", "--model", model, made / "tones" / "dark" / "00.png", made / "tones" / "light", "--top-k", "2"
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.split()[0].endswith("00.png")
    assert " %" in first
    assert len(rest) == 12
    assert "untrained" in done.stderr


def test_csv_says_nothing_beside_when_all_was_used(made: Path, model: Path, call: Run) -> None:
    done = call("predict", "--model", model, made / "tones" / "dark" / "00.png", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert "" not in done.stderr.splitlines()


def test_mistakes_get_one_paragraph(call: Run, model: Path, made: Path, tmp_path: Path) -> None:
    image = made / "tones" / "dark" / "00.png"
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([], ["images parameter must be given", "IMAGES="]),
        ([tmp_path / "none.jpg"], ["no image or folder", "none.jpg"]),
        ([tmp_path / "empty"], ["no image in", "empty"]),
        ([image, "--top-k", "0"], ["top k", "Got 0"]),
        ([image, "--format", "xml"], ["format", "'xml'"]),
        ([image, "--sheet", "x.jpg"], ["sheet", ".png"]),
        ([image, "--output", tmp_path / "no" / "x.csv"], ["no folder"]),
        ([image, "--output", tmp_path], ["a folder where", "Name a file"]),
        ([tmp_path / ("a" * 300)], ["name too long"]),
        ([image, "--weights", tmp_path / "none.h5"], ["needs the weights", "none.h5"]),
    ):
        assert_user_error(call("predict", "--model", model, *arguments), *words)
    assert_user_error(call("predict", "--model", tmp_path / "none.joblib", image), "no model", "train")


def test_a_model_in_bfloat16_serves_where_there_is_none(
    model: Path, made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """float32 is what bfloat16 rounds: what was trained on another machine is of use, and that is said.

    A few images are rounded in NumPy, whatever the processor has.
    """
    few = images.FEW_PIXELS
    monkeypatch.setattr(images, "FEW_PIXELS", 0)
    before, _ = predict.predict(options(model, made / "tones"))
    assert "computed in float32" not in caplog.text
    beside = model.with_suffix(".json")
    description = json.loads(beside.read_text())
    description["spec"]["precision"] = "bfloat16"
    description["key"] = FeatureSpec.from_dict(description["spec"]).key()
    beside.write_text(json.dumps(description))
    monkeypatch.setattr(device, "has_bfloat16", lambda: False)
    monkeypatch.setattr(device, "may_have_gpu", lambda: False)
    assert predict.predict(options(model, made / "tones"))[0] == before
    assert "They are computed in float32" in caplog.text
    caplog.clear()
    monkeypatch.setattr(images, "FEW_PIXELS", few)
    _, told = predict.predict(options(model, made / "tones" / "dark"))
    assert {item["classes"][0]["label"] for item in told["predictions"]} == {"dark"}
    assert "computed in float32" not in caplog.text


def test_an_interrupt_waits_until_tensorflow_is_loaded() -> None:
    done = []
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_later():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the block goes on")
    assert done
    assert signal.getsignal(signal.SIGINT) is handler


# --- whom to trust ----------------------------------------------------------------------------


class Hostile:
    """What unpickling would run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.target),)


def test_a_model_that_is_not_the_recorded_one_is_not_opened(made: Path, model: Path, tmp_path: Path) -> None:
    import joblib

    joblib.dump(Hostile(tmp_path / "ran"), model)
    with pytest.raises(UserError, match="not the file that was written here"):
        persistence.load_model(model)
    assert not (tmp_path / "ran").exists()


def test_models_without_or_with_another_description_are_refused(model: Path) -> None:
    beside = model.with_suffix(".json")
    good = json.loads(beside.read_text())
    for change, word in (
        ({"versions": {**good["versions"], "scikit-learn": "1.2.0"}}, "fitted by scikit-learn 1.2.0"),
        ({"spec": {**good["spec"], "format_version": 1}}, "another version of this program"),
        ({"spec": {name: value for name, value in good["spec"].items() if name != "fit"}}, "another version of this"),
        ({"sha256": None}, "none is"),
        ({"spec": {**good["spec"], "image_size": 64}}, "was edited"),
        ({"spec": {**good["spec"], "image_size": 64}, "key": None}, "was edited"),
        ({"classes": ["dark"]}, "do not belong together"),
        ({"spec": 7}, "cannot be read"),
        ({"versions": [1]}, "cannot be read"),
        ({"classes": None}, "cannot be read"),
    ):
        beside.write_text(json.dumps({**good, **change}))
        with pytest.raises(UserError, match=word):
            persistence.load_model(model)
    for text in ("{", "[]", "{}"):
        beside.write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            persistence.load_model(model)
    beside.unlink()
    with pytest.raises(UserError, match="beside it"):
        persistence.load_model(model)


def test_other_weights_are_refused(model: Path, made: Path) -> None:
    beside = model.with_suffix(".json")
    description = json.loads(beside.read_text())
    description["spec"]["weights_digest"] = "0" * 64
    description["key"] = FeatureSpec.from_dict(description["spec"]).key()
    beside.write_text(json.dumps(description))
    with pytest.raises(UserError, match="features of other weights"):
        predict.predict(options(model, made / "tones" / "dark" / "00.png"))


def test_a_shared_model_predicts_the_same(model: Path, made: Path) -> None:
    before, _ = predict.predict(options(model, made / "tones"))
    assert persistence.export(model) == model.with_suffix(".skops")
    assert predict.predict(options(model.with_suffix(".skops"), made / "tones"))[0] == before
    assert predict.predict(options(model, made / "tones"))[0] == before, "the .joblib file is as it was"


@pytest.mark.parametrize("classifier", classifiers.REGISTRY)
def test_every_classifier_can_be_shared(classifier: str, tmp_path: Path) -> None:
    """As train fits it, temperature and solver's state included."""
    generator = np.random.default_rng(0)
    labels = (np.arange(120) % 3).astype(np.uint8)
    features = (generator.standard_normal((120, 8)) + 3 * np.eye(3, 8)[labels]).astype(np.float32)

    data = history.Samples(FeatureRows([features]), labels, np.arange(120), np.arange(120))
    rows = protocol.prepare(data, 0, ("a", "b", "c"))
    few = {"max_epochs": 5} if classifier in ("mlp", "svm") else {}
    chosen = protocol.select(classifier, classifiers.resolve(classifier, few), rows, 0).fitted
    fitted, _ = protocol.refit(classifier, chosen, data, 0)
    loaded = persistence._from_skops(tmp_path / "x.skops", persistence.to_skops(tmp_path / "x.skops", fitted))
    np.testing.assert_array_equal(loaded.predict_proba(features), fitted.predict_proba(features))


def test_a_hostile_skops_file_is_refused(model: Path, tmp_path: Path) -> None:
    """Whoever shares a model writes its description, too: the digest fits, and yet nothing runs."""
    import hashlib

    import skops.io
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    hostile = Pipeline([("run", FunctionTransformer(func=os.system)), ("x", FunctionTransformer())])
    content = skops.io.dumps(hostile)
    for spoiled in (content, b"no skops file", content[: len(content) // 2]):
        shared = model.with_suffix(".skops")
        shared.write_bytes(spoiled)
        beside = model.with_suffix(".json")
        description = json.loads(beside.read_text())
        beside.write_text(json.dumps({**description, "skops_sha256": hashlib.sha256(spoiled).hexdigest()}))
        with pytest.raises(UserError, match="refused: it holds types|is damaged"):
            persistence.load_model(shared)
    with pytest.raises(UserError, match="cannot be stored in the format for sharing"):
        persistence.to_skops(model, hostile)


def test_the_card_says_what_matters(made: Path) -> None:
    (card,) = (made / "m").glob("*.md")
    text = card.read_text()
    for word in (
        "## Data", "tones", "## Features", "their middle square", "untrained", "block3_pool.max", "## Metrics", "| dark |",
        "log loss", "## Limits", "## How to use it", "## Whom to trust", "runs code when it is loaded", "does **not** protect",
    ):  # fmt: skip
        assert word in text, word
