"""Leaderboard and page: what they list, and the page as a person meets it, in a real browser."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from conftest import Run, assert_user_error, needs_browser, operate_map, show_as, violations

from pipeline.common.errors import UserError
from pipeline.common.text import to_csv, to_json
from pipeline.features.rows import FeatureRows
from pipeline.models.history import History, Step
from pipeline.output import figures, leaderboard, maps, page, run_folder, run_images, templating, thumbnails
from pipeline.output import metrics as certainty
from pipeline.output.results import load_run

CLASSES = ("cat <b>", "dog & co", "ant", "bee")
ROWS = 340  # fewer than the digits' test split has

Make = Callable[..., Path]

HISTORY = History("iteration", [Step(n, 1 / n, 1 - 0.5 / n, 1.2 / n, 0.9 - 0.5 / n) for n in range(1, 31)], kept=30)
SCORES = np.array([[0.65] * 3, [0.7, 0.71, 0.72], [0.8] * 3])
BINS = certainty.calibration(np.linspace(0.3, 1, 60), np.arange(60) % 4 > 0)
CURVE = to_csv(
    ("rows", "seed", "train_accuracy", "validation_accuracy"),
    [(size, seed, 0.9, SCORES[row, seed]) for row, size in enumerate((50, 100, 200)) for seed in range(3)],
)
DRAWINGS = {
    f"{stem}{suffix}": content
    for stem, files in {
        "history": figures.history(HISTORY, "digits · logistic", 4),
        "learning_curve": figures.learning_curve([50, 100, 200], SCORES + 0.1, SCORES, "digits · logistic"),
        "calibration": figures.calibration(BINS, "digits · logistic"),
    }.items()
    for suffix, content in files.items()
}


def make_run(output: Path, name: str, accuracy: float, **changes: Any) -> Path:
    """A run folder as `train` leaves it, with made-up numbers."""
    generator = np.random.default_rng(abs(hash(name)) % 2**32 if "seed" not in changes else changes.pop("seed"))
    labels = np.arange(ROWS) % len(CLASSES)
    right = generator.random(ROWS) < accuracy
    predicted = np.where(right, labels, (labels + generator.integers(1, len(CLASSES), ROWS)) % len(CLASSES))
    confidences = generator.uniform(0.3, 1, ROWS)
    found = float(np.mean(predicted == labels))
    bins = certainty.calibration(confidences, predicted == labels)
    metrics = {
        "run": name,
        "created": "2026-11-23T20:00:00+00:00",
        "dataset": {"name": "digits", "digest": "0" * 64, "official": True},
        "features": {
            "file": "features/gone.h5", "key": "k", "image_size": 64, "precision": "bfloat16",
            "taps": ["block5_pool.avg"], "columns": 512, "weights": "imagenet", "limit": None,
        },
        "classifier": {"name": name.split("-")[1], "params": {"C": accuracy / 100}},
        "converged": True,
        "convergence": None,
        "search": [],
        "seed": 0,
        "accuracy": {"train": 0.99, "validation": found - 0.01, "test": found},
        "log_loss": {"train": 0.1, "validation": 0.5, "test": 0.5},
        "interval": {"test": list(certainty.wilson_interval(round(found * ROWS), ROWS))},
        "calibration": bins,
        "per_class": {label: {"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 100} for label in CLASSES},
        "seconds": {"load": 1.0, "search": 2.0, "fit": 3.0, "evaluate": 4.0, "total": 10.0 + 100 * accuracy},
        "versions": {"python": "3.11"},
    }  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split("__")
        where: dict[str, Any] = metrics
        for parent in parents:
            where = where[parent]
        where[last] = value
    folder = output / name
    folder.mkdir(parents=True)
    for file in run_folder.RUN_FILES:
        (folder / file).write_bytes(b"")
    (folder / "metrics.json").write_bytes(to_json(metrics))
    for name, content in {**DRAWINGS, "history.csv": HISTORY.to_csv(), "learning_curve.csv": CURVE}.items():
        (folder / name).write_bytes(content)
    rows = zip(range(ROWS), labels, predicted, confidences, strict=True)
    lines = ((i, CLASSES[a], CLASSES[b], f"{c:.6f}") for i, a, b, c in rows)
    (folder / "predictions.csv").write_bytes(to_csv(("index", "label", "predicted", "confidence"), lines))
    return folder


@pytest.fixture(scope="module")
def digits_digest() -> str:
    from pipeline.data import datasets

    return datasets.load_dataset("digits", Path(), download=False).digest


@pytest.fixture
def output(tmp_path: Path, digits_digest: str) -> Path:
    folder = tmp_path / "output"
    for seed, (name, accuracy) in enumerate(
        {"digits-logistic-aaaaaaaa": 0.8, "digits-mlp-bbbbbbbb": 0.9, "digits-ridge-cccccccc": 0.7}.items()
    ):
        make_run(folder, name, accuracy, seed=seed, dataset__digest=digits_digest)
    return folder


def put_map(output: Path) -> str:
    """Give the best run a map of the digits' own pixels."""
    from pipeline.data import datasets

    images = np.asarray(datasets.load_dataset("digits", Path(), download=False).splits["test"].images)[:ROWS]
    key = maps.keep(output, "k", FeatureRows([images.reshape(ROWS, -1).astype(np.float16)]), np.arange(ROWS))
    path = output / "digits-mlp-bbbbbbbb" / "metrics.json"
    path.write_bytes(to_json({**json.loads(path.read_bytes()), "map": key}))
    assert key is not None
    return key


# --- the leaderboard --------------------------------------------------------------------------


def test_the_leaderboard_lists_what_is_there(call: Run, output: Path) -> None:
    done = call("report", "--output-dir", output)
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 +digits-mlp-bbbbbbbb .* top ", done.stdout)
    rows = list(csv.DictReader((output / "leaderboard.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["digits-mlp-bbbbbbbb", "digits-logistic-aaaaaaaa", "digits-ridge-cccccccc"]
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    for column in (
        "classifier", "taps", "image_size", "columns", "validation_accuracy", "test_accuracy", "test_log_loss",
        "seconds", "created", "converged",
    ):  # fmt: skip
        assert all(row[column] for row in rows), column
    assert leaderboard.is_current(output)

    shutil.rmtree(output / "digits-mlp-bbbbbbbb")
    assert not leaderboard.is_current(output)
    (output / ".digits-knn-dddddddd.abc.tmp").mkdir()
    shutil.copy(output / "digits-ridge-cccccccc" / "metrics.json", output / ".digits-knn-dddddddd.abc.tmp")
    (output / "digits-knn-eeeeeeee").mkdir()
    done = call("report", "--output-dir", output)
    assert done.returncode == 0
    text = (output / "leaderboard.csv").read_text() + (output / "index.html").read_text()
    for gone in ("bbbbbbbb", "dddddddd", "eeeeeeee"):
        assert gone not in text


def test_a_data_set_filters_what_is_printed_and_nothing_else(call: Run, output: Path) -> None:
    make_run(output, "birds-logistic-ffffffff", 0.6, dataset__name="birds")
    done = call("report", "--output-dir", output, "--dataset", "birds")
    assert done.returncode == 0
    assert "ffffffff" in done.stdout
    assert "aaaaaaaa" not in done.stdout
    for name in ("leaderboard.csv", "index.html"):
        text = (output / name).read_text(encoding="utf-8")
        assert "ffffffff" in text, "runs on data that is not here are shown without images"
        assert "aaaaaaaa" in text
    assert_user_error(call("report", "--output-dir", output, "--dataset", "brids"), "brids", "birds, digits")


def test_a_model_with_two_names_is_one_row(output: Path) -> None:
    """As when a search finds what somebody has asked for by its value."""
    names = ["digits-svm-00000001", "digits-svm-00000002", "digits-svm-00000003"]
    for name, seed in zip(names, (5, 5, 6), strict=True):
        make_run(output, name, 0.95, seed=seed, log_loss__validation=0.1)
    runs = leaderboard.read(output)
    assert leaderboard.ranks(runs)[:3] == [1, 1, 2]
    assert names[1] not in leaderboard.to_text(runs)
    text = page.rebuild(output, output).page.read_text(encoding="utf-8")
    assert re.findall(r'<article id="run-(digits-svm-\d+)"', text) == [names[0], names[2]]
    assert f'<a href="{names[1]}/report.txt">' in text
    assert names[1] in (output / "leaderboard.csv").read_text()
    assert leaderboard.is_current(output)


def test_corrupt_runs_are_named_and_skipped_and_kept(call: Run, output: Path) -> None:
    contents = {}
    for number, content in enumerate([b"", b"{", b"[]", b'{"run": 3}', b"\xff\xfe", b'{"run": "another"}']):
        path = output / f"digits-knn-{number:08x}" / "metrics.json"
        path.parent.mkdir()
        path.write_bytes(content)
        contents[path] = content
    done = call("report", "--output-dir", output)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    for path, content in contents.items():
        assert str(path) in done.stderr
        assert path.read_bytes() == content
    assert "digits-knn" not in done.stdout
    assert "aaaaaaaa" in done.stdout


def test_runs_with_values_of_another_type_are_skipped(output: Path) -> None:
    wrong: list[tuple[str, object]] = [
        ("accuracy__test", float("nan")),
        ("accuracy__test", float("inf")),
        ("seconds", {"total": 1.0, "fit": "long"}),
        ("per_class", {"ant": {}}),
        ("interval", {"test": [0.5]}),
        ("calibration", 0.1),
        ("features__limit", "some"),
        ("features__taps", [3]),
    ]
    for number, (path, value) in enumerate(wrong):
        folder = make_run(output, f"digits-svm-fffffff{number}", 0.5, seed=number)
        metrics = json.loads((folder / "metrics.json").read_text())
        *parents, last = path.split("__")
        where = metrics
        for parent in parents:
            where = where[parent]
        where[last] = value
        (folder / "metrics.json").write_text(json.dumps(metrics))
    rebuilt = page.rebuild(output, output)
    assert len(rebuilt.runs) == 3
    assert "fffffff" not in rebuilt.page.read_text(encoding="utf-8")


def test_ranks_are_by_validation_within_a_data_set_whatever_test_says(output: Path) -> None:
    """Also of a run whose test split has no row left."""
    make_run(output, "d-logistic-0", 0.5, accuracy__test=None, log_loss__test=None, interval__test=None)
    lucky, chosen = "digits-svm-0", "digits-knn-0"
    make_run(output, lucky, 0.5, accuracy__test=0.99, log_loss__test=0.01, log_loss__validation=9.0)
    make_run(output, chosen, 0.5, accuracy__test=0.01, log_loss__test=9.0, log_loss__validation=0.0)
    for name in (lucky, chosen, *(f"digits-{rest}" for rest in ("logistic-aaaaaaaa",))):
        path = output / name / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["dataset"] = {"name": "twice", "digest": "d"}
        path.write_text(json.dumps(metrics))
    runs = leaderboard.read(output)
    of = [(run.metrics["dataset"]["name"], rank) for rank, run in zip(leaderboard.ranks(runs), runs, strict=True)]
    assert [rank for name, rank in of if name == "twice"] == [1, 2, 3]
    assert sorted(of) == of
    twice = [run.name for run in runs if run.metrics["dataset"]["name"] == "twice"]
    assert (twice[0], twice[-1]) == (chosen, lucky)
    assert leaderboard.to_text(runs).count("–") == 1
    assert b"d-logistic-0" in page.render(runs, output)[1]


def test_files_missing_or_broken_cost_only_their_part(output: Path) -> None:
    names = ("predictions.csv", "history.csv", "learning_curve.csv")
    folders = []
    for number, content in enumerate(
        ["", "index,label\n1", "iteration\n1", "rows\nx", "rows,train_accuracy\n", "nan\x00"]
    ):
        folders.append(make_run(output, f"digits-svm-fffffff{number}", 0.5, seed=number))
        for name in names:
            (folders[-1] / name).write_text(content, encoding="utf-8")
    text = page.rebuild(output, output).page.read_text(encoding="utf-8")
    assert all(folder.name in text for folder in folders)
    for folder in folders:
        for name in names:
            (folder / name).unlink()
    text = page.rebuild(output, output).page.read_text(encoding="utf-8")
    assert all(folder.name in text for folder in folders)


def test_images_of_a_folder_are_shown_and_replaced_when_they_are_gone(tmp_path: Path) -> None:
    from PIL import Image

    from pipeline.common.text import printable
    from pipeline.data import datasets

    pictures, output = tmp_path / "birds", tmp_path / "output"
    generator = np.random.default_rng(0)
    for label in CLASSES[2:]:
        for number in range(20):
            path = pictures / label / f"é {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (90, 40, 3), dtype=np.uint8)).save(path)
    dataset = datasets.load_dataset(str(pictures), tmp_path, download=False)
    assert dataset.members is not None
    names = dataset.members["test"].names
    folder = make_run(
        output, "birds-logistic-aaaaaaaa", 0.5, seed=1,
        dataset={"name": "birds", "digest": dataset.digest, "official": True, "folder": str(pictures)},
    )  # fmt: skip
    rows = ((row, "ant", "bee", 0.9 - row / 100, printable(name)) for row, name in enumerate(names))
    header = ("index", "label", "predicted", "confidence", "file")
    (folder / "predictions.csv").write_bytes(to_csv(header, rows))

    def images() -> list[str]:
        text = page.rebuild(output, output).page.read_text("utf-8")
        return re.findall(r'<image [^>]*href="(data:image/[a-z+]+);', text)

    assert len(names) == 8
    assert images() == ["data:image/webp"] * 8
    text = (output / "index.html").read_text("utf-8")
    assert text.count('<use href="#i') == 8 + 6, "each image is in the page once"
    links = [unquote(urlsplit(link).path) for link in re.findall(r'href="(file:[^"]+)"', text)]
    assert {Path(link) for link in links} == {(pictures / name).resolve() for name in names}
    assert all(f">{Path(name).name}</a>" in text for name in names)
    shown = run_images.PageImages(tmp_path)
    source = shown.of(leaderboard.read(output)[0])
    (pictures / names[0]).unlink()
    (pictures / names[1]).write_bytes(b"no image")
    found = [shown.id_of(source, row) for row in range(8)]
    assert found[0] == found[1] == shown.shown[thumbnails.PLACEHOLDER], "it is on the page once, too"
    assert sum(uri.startswith("data:image/webp") for uri in shown.shown) == 6
    assert images() == [], "another folder now, so none of its images is shown"
    shutil.rmtree(pictures)
    assert images() == []
    assert "No images are shown" in (output / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["index.html", "page.css"])
def test_a_missing_template_is_no_failed_write(
    monkeypatch: pytest.MonkeyPatch, output: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(templating.TEMPLATES, tmp_path / "templates")
    (tmp_path / "templates" / name).unlink()
    monkeypatch.setattr(templating, "TEMPLATES", tmp_path / "templates")
    templating._environment.cache_clear()
    with pytest.raises(UserError, match=f"The template {name} is missing .* not installed completely"):
        page.rebuild(output, output)
    monkeypatch.undo()
    templating._environment.cache_clear()


def test_no_runs_is_no_error(call: Run, tmp_path: Path) -> None:
    done = call("report", "--output-dir", tmp_path / "new")
    assert done.returncode == 0
    assert "There is no run yet" in done.stdout
    assert "There is no run yet" in (tmp_path / "new" / "index.html").read_text()


# --- the page ---------------------------------------------------------------------------------


def test_the_page_is_one_file_and_escapes_what_it_shows(output: Path) -> None:
    make_run(output, "digits-logistic-99999999", 0.5, converged=False, convergence="stopped at <max_iter>=3")
    text = page.rebuild(output, output).page.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "cat &lt;b&gt;" in text
    assert "stopped at &lt;max_iter&gt;=3" in text
    assert not re.search(r"(?:src|href)=\"(?!data:|#|[\w-]+/[\w.]+\")", text), "nothing is fetched"
    assert not re.search(r"url\(|@import|https?://", text.split("<body>")[0])


def column(driver: Any, index: int) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll('.leaderboard tbody tr')].filter(row => row.offsetParent)"
        f".map(row => row.cells[{index}].innerText.split('\\n')[0])"
    )


def test_rare_confusions_are_less_than_one_per_cent_and_never_zero(tmp_path: Path) -> None:
    run = make_run(tmp_path, "digits-logistic-aaaaaaaa", 0.8, seed=0)
    predicted = ["ant", *["bee"] * 2, *["cat <b>"] * 197]  # of 200: 0.5 % and 1 %
    lines = ((i, "cat <b>", label, "0.9") for i, label in enumerate(predicted))
    (run / "predictions.csv").write_bytes(to_csv(("index", "label", "predicted", "confidence"), lines))
    text = page.rebuild(tmp_path, tmp_path).page.read_text(encoding="utf-8")
    cells = re.findall(r'<td style="--s:\d+"[^>]*>([^<]*)</td>', text)
    assert sorted(filter(None, cells)) == ["&lt;1", "1", "98"]


@needs_browser
def test_the_page_in_a_browser(browser: Callable[..., Any], output: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    make_run(output, "birds-knn-ffffffff", 0.6, dataset__name="birds")
    rebuilt = page.rebuild(output, output)
    driver = browser()
    driver.get(rebuilt.page.as_uri())
    names = [run.name for run in rebuilt.runs if run.name.startswith("digits")]
    short = [name.removeprefix("digits-") for name in names]
    assert [title.text for title in driver.find_elements(By.CSS_SELECTOR, "h2")] == ["birds", "digits"]
    best = driver.find_elements(By.CSS_SELECTOR, ".best")[1].text
    for words in ("90.", "mlp-bbbbbbbb", "95 % interval", "commonest class: 25.00", "400 rows were tested"):
        assert words in best
    assert column(driver, 1) == ["knn-ffffffff", *short]
    assert column(driver, 0) == ["1", "1", "2", "3"], "ranks are within a data set"
    assert column(driver, 4)[1] == "C=0.009, seed\u00a00"
    driver.execute_script("document.querySelector('.dataset').remove()")

    # Sorting: by mouse, and by keyboard.
    headings = driver.find_elements(By.CSS_SELECTOR, ".leaderboard th button")
    by_name = {heading.text.split("\u202f")[0]: heading for heading in headings}
    by_name["run"].click()
    assert column(driver, 1) == sorted(short)
    assert driver.find_elements(By.CSS_SELECTOR, "th[aria-sort=ascending]")[0].text.startswith("run")
    by_name["seconds"].send_keys(Keys.ENTER)
    seconds = [float(text.replace(",", "")) for text in column(driver, 11)]
    assert seconds == sorted(seconds)
    by_name["seconds"].send_keys(Keys.SPACE)
    assert column(driver, 11) == [f"{value:.0f}" for value in sorted(seconds, reverse=True)]

    # Filtering.
    chooser = Select(driver.find_element(By.CSS_SELECTOR, ".filter select"))
    chooser.select_by_visible_text("ridge")
    assert column(driver, 1) == ["ridge-cccccccc"]
    chooser.select_by_visible_text("all")

    # The images are there.
    driver.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    drawn = driver.execute_script("return [...document.images].map(image => [image.naturalWidth, image.alt])")
    assert len(drawn) == 3 * 3
    assert all(width > 400 and text for width, text in drawn)
    shown = driver.execute_script(
        "return [...document.querySelectorAll('.gallery use')].map(use => document.querySelector(use.getAttribute('href')).getAttribute('href'))"
    )
    assert len(shown) > 3 * 20
    assert all(uri.startswith("data:image/webp") for uri in shown)
    assert len(set(shown)) == len(driver.find_elements(By.CSS_SELECTOR, ".images image")), "each once"
    marks = driver.find_elements(By.CSS_SELECTOR, ".cost a")
    assert {mark.get_attribute("href") or mark.get_attribute("xlink:href") for mark in marks} == {
        f"#run-{name}" for name in names
    }

    # Comparing: the same counts and the same p as in Python, for every pair.
    predictions = {name: load_run(name, output).predictions for name in names}
    right = {name: each["label"] == each["predicted"] for name, each in predictions.items()}
    first, second = map(Select, driver.find_elements(By.CSS_SELECTOR, ".compare select"))
    for one, two in ((0, 1), (1, 2), (2, 0)):
        first.select_by_value(str(one))
        assert [option.text[3:] for option in second.options] == [name for name in short if name != short[one]]
        second.select_by_value(str(two))
        verdict = driver.find_element(By.CSS_SELECTOR, ".compare [role=status]")
        a, b = right[names[one]], right[names[two]]
        counts = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
        assert (int(verdict.get_attribute("data-first")), int(verdict.get_attribute("data-second"))) == counts
        p = certainty.mcnemar(np.array([a, b]))[1][0, 1]
        assert float(verdict.get_attribute("data-p")) == pytest.approx(p, rel=1e-3)
        # Of three drawings: training and validation of each of the two.
        for place in ("first", "second"):
            lines = driver.find_elements(By.CSS_SELECTOR, f".compare .curves .{place}")
            assert len(lines) == 3 * 2
            assert all(line.is_displayed() for line in lines)
        assert (
            driver.execute_script(
                "return [...document.querySelectorAll('.compare [data-line]')].filter(g => getComputedStyle(g).display != 'none').length"
            )
            == 3 * 4
        )
        rows = driver.execute_script(
            "return [...document.querySelectorAll('.differences tr')].map(r => [...r.cells].map(c => c.textContent))"
        )
        told = {row[0]: row[1:] for row in rows}
        assert told["classifier"] == [name.split("-")[1] for name in (names[one], names[two])]
        assert told["accuracy test"][2].lstrip("+") == f"{100 * (b.mean() - a.mean()):.2f}".replace("-", "−")
        assert told["ant F1"][2] == "0.0"
    assert driver.get_log("browser") == [], "no console error"


@needs_browser
def test_only_runs_tested_on_the_same_rows_can_be_compared(browser: Callable[..., Any], output: Path) -> None:
    from selenium.webdriver.common.by import By

    path = output / "digits-mlp-bbbbbbbb" / "predictions.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    driver = browser()
    driver.get(page.rebuild(output, output).page.as_uri())
    chooser, _ = driver.find_elements(By.CSS_SELECTOR, ".compare select")
    assert sorted(chooser.text.split("\n")) == ["2. logistic-aaaaaaaa", "3. ridge-cccccccc"]


@needs_browser
def test_the_map_has_the_mistakes_of_every_run_on_the_same_rows(browser: Callable[..., Any], output: Path) -> None:
    from PIL import Image

    from pipeline.data import datasets

    images = datasets.load_dataset("digits", Path(), download=False).splits["test"].images
    put_map(output)
    names = ["digits-mlp-bbbbbbbb", "digits-logistic-aaaaaaaa", "digits-ridge-cccccccc"]
    path = output / names[2] / "predictions.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # other rows: none of its is ringed
    driver = browser()
    driver.get(page.rebuild(output, output).page.as_uri())
    rings: dict[str, dict[str, str]] = {}
    for rank, name in enumerate(names[:2], 1):
        with (output / name / "predictions.csv").open(encoding="utf-8", newline="") as stream:
            rings[f"mistakes of {rank}. {name.removeprefix('digits-')}"] = {
                f"row {row['index']}": f"{row['label']}, taken for {row['predicted']}"
                for row in csv.DictReader(stream)
                if row["label"] != row["predicted"]
            }
    operate_map(driver, rings)

    row = int(driver.execute_script("return document.querySelector('.map [role=status]').textContent").split()[1][:-1])
    left, top = driver.execute_script(
        "return document.querySelector('.tile').style.backgroundPosition.split(' ').map(x => -parseInt(x))"
    )
    (sheet,) = (output / maps.FOLDER).glob("*.webp")
    side = images[row].shape[0]
    left, top = (each + (thumbnails.TILE - side) // 2 for each in (left, top))
    shown = np.asarray(Image.open(sheet).crop((left, top, left + side, top + side)), float)
    errors = [np.abs(shown - image).mean() for image in images[:ROWS]]
    assert np.argmin(errors) == row, "the tile is the row's image"

    shutil.rmtree(output / maps.FOLDER)
    assert 'class="map"' not in page.rebuild(output, output).page.read_text(encoding="utf-8")


def test_a_map_is_computed_once_and_a_broken_one_costs_only_its_part(output: Path) -> None:
    key = put_map(output)
    path = output / maps.FOLDER / f"{key}.csv"
    found = maps.read(output, key)
    assert found is not None
    rows, places = found
    assert rows.tolist() == list(range(ROWS))
    assert (places.min(), places.max()) == (0, 1)
    before = path.stat().st_mtime_ns
    assert put_map(output) == key
    assert path.stat().st_mtime_ns == before
    content = path.read_bytes()
    path.unlink()
    put_map(output)
    assert path.read_bytes() == content, "the same again"
    assert maps.keep(output, "k", FeatureRows([np.eye(9, dtype=np.float16)]), np.arange(9)) is None
    for broken in (b"", b"index,x,y\n1", b"index,x,y\n1,a,b\n", b"\xff"):
        path.write_bytes(broken)
        assert maps.read(output, key) is None
    text = page.rebuild(output, output).page.read_text(encoding="utf-8")
    assert 'class="map"' not in text
    assert "digits-mlp-bbbbbbbb" in text


@needs_browser
def test_the_page_meets_wcag_as_far_as_axe_can_tell(browser: Callable[..., Any], output: Path, axe: str) -> None:
    """And nothing sticks out, and the best accuracy is in sight."""
    make_run(output, "birds-logistic-ffffffff", 0.6, dataset__name="birds", converged=False, convergence="stopped")
    put_map(output)
    driver, url = browser(), page.rebuild(output, output).page.as_uri()
    for width, dark in itertools.product((1280, 400), (False, True)):
        show_as(driver, width, dark)
        driver.get(url)
        bottom = "document.querySelector('.best .figure').getBoundingClientRect().bottom"
        assert driver.execute_script(f"return {bottom}") < 900
        cell = "document.querySelectorAll('.leaderboard')[1].rows[1].cells[3]"
        assert driver.execute_script(f"return {cell}.getBoundingClientRect().right") <= width
        driver.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width, "nothing sticks out"
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark
        assert driver.get_log("browser") == []
        assert violations(driver, axe) == []


@needs_browser
def test_a_hundred_classes(browser: Callable[..., Any], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    scores = {
        f"class {number}": {"precision": 0.9, "recall": 0.9, "f1": (number * 37 % 100) / 100, "support": 5}
        for number in range(100)
    }
    folder = make_run(tmp_path, "digits-logistic-aaaaaaaa", 0.8, per_class=scores)
    counts = np.eye(100, dtype=np.int64) * 5
    for suffix, content in figures.confusion_matrix(counts, list(scores), "digits").items():
        (folder / f"confusion_matrix{suffix}").write_bytes(content)
    driver = browser()
    driver.get(page.rebuild(tmp_path, tmp_path).page.as_uri())
    rows = driver.find_elements(By.CSS_SELECTOR, ".classes tbody tr")
    box = driver.find_element(By.CSS_SELECTOR, ".low").rect
    in_sight = [
        row.find_element(By.TAG_NAME, "th").text for row in rows if row.rect["y"] + 20 < box["y"] + box["height"]
    ]
    assert len(in_sight) >= 10
    assert in_sight[:10] == sorted(scores, key=lambda name: scores[name]["f1"])[:10]
    matrix = driver.find_element(By.CSS_SELECTOR, ".matrix img")
    assert matrix.rect["width"] == int(matrix.get_attribute("naturalWidth")) > 1400, "as large as its text needs"


@needs_browser
def test_without_javascript_all_but_sorting_maps_and_comparing_works(browser: Callable[..., Any], output: Path) -> None:
    from selenium.webdriver.common.by import By

    rebuilt = page.rebuild(output, output)
    driver = browser(script=False)
    name = rebuilt.runs[2].name
    driver.get(rebuilt.page.as_uri())
    assert not driver.find_element(By.CSS_SELECTOR, ".compare").is_displayed()
    assert not driver.find_elements(By.CSS_SELECTOR, ".sortable th button")
    assert not driver.find_element(By.CSS_SELECTOR, f"#run-{name} .scores").is_displayed()
    driver.find_element(By.LINK_TEXT, name.removeprefix("digits-")).click()
    assert driver.find_element(By.CSS_SELECTOR, f"#run-{name} .scores").is_displayed(), "a link opens what it leads to"
    assert driver.find_element(By.CSS_SELECTOR, f"#run-{name} .gallery svg").is_displayed()


@needs_browser
def test_fifty_runs_fit_and_open_at_once(browser: Callable[..., Any], tmp_path: Path, digits_digest: str) -> None:
    output = tmp_path / "output"
    for number in range(50):
        make_run(
            output, f"digits-logistic-{number:08x}", 0.6 + number / 150, seed=number, dataset__digest=digits_digest
        )
    rebuilt = page.rebuild(output, output)
    assert rebuilt.page.stat().st_size < 1_300_000
    driver = browser()
    driver.get(rebuilt.page.as_uri())
    assert len(column(driver, 1)) == 50
    assert driver.get_log("browser") == []
