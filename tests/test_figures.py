"""Figures and contact sheets: what they show, in whatever script, and the numbers that they are drawn from."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from pipeline.models.history import History, Step
from pipeline.output import contact_sheet, figures, metrics


def test_calibration_compares_confidence_and_accuracy() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.3, 1, 20_000)
    honest = metrics.calibration(confidences, generator.random(20_000) < confidences)
    assert honest["ece"] < 0.015
    boastful = metrics.calibration(confidences, generator.random(20_000) < confidences - 0.2)
    assert boastful["ece"] == pytest.approx(0.2, abs=0.015)
    assert sum(honest["counts"]) == 20_000
    assert set(honest["counts"]) <= {1333, 1334}, "bins of equal mass"
    assert all(
        low < share < high for low, share, high in zip(honest["low"], honest["accuracy"], honest["high"], strict=True)
    )
    assert min(metrics.calibration(confidences[:70], confidences[:70] > 0.5)["counts"]) >= 20
    assert metrics.calibration(np.ones(100), np.ones(100, bool))["counts"] == [100], "equal confidences are in one"
    assert metrics.calibration(confidences[:0], confidences[:0] > 1)["counts"] == []
    assert metrics.calibration(np.array([1.0, 0.0]), np.array([True, False]))["ece"] == 0
    # Two rows at 0.9, one of them right, are one bin that is 0.4 off.
    assert metrics.calibration(np.array([0.9, 0.9]), np.array([True, False]))["ece"] == pytest.approx(0.4)


# --- pictures ---------------------------------------------------------------------------------


def are_pictures(files: dict[str, bytes]) -> bool:
    ElementTree.fromstring(files[".svg"].decode())
    return files[".png"].startswith(b"\x89PNG") and len(files[".png"]) > 5000


@pytest.mark.parametrize("count", [1, 2, 40, 400])
def test_history_pictures(count: int) -> None:
    steps = [Step(step, *[1 / step] * 4) for step in range(1, count + 1)]
    assert are_pictures(figures.history(History("epoch", steps, max(1, count // 2)), "title", 10))


def test_calibration_pictures() -> None:
    bins = metrics.calibration(np.linspace(0.2, 1, 50), np.arange(50) % 3 > 0)
    assert are_pictures(figures.calibration(bins, "title"))


def test_classes_that_are_confused_come_together() -> None:
    group = np.random.default_rng(0).permutation(np.arange(40) // 4)
    counts = np.eye(40, dtype=np.int64) * 50 + (group[:, None] == group) * 3
    order = group[metrics.similar_order(counts)]
    assert np.count_nonzero(np.diff(order)) == 9, "each group in one piece"
    assert sorted(metrics.similar_order(np.zeros((30, 30), np.int64))) == list(range(30))


@pytest.mark.parametrize("seconds", [[92.0, 97.0], [3.0, 3.0], [0.0, 500.0]])
def test_ticks_are_round_numbers_for_two_runs_too(seconds: list[float]) -> None:
    drawing = figures.inline(figures.cost, "cost", ["logistic", "ridge"], seconds, [0.8512, 0.842], ["#a", "#b"])
    ticks = re.findall(r">([\d,.]+)( %)?</text>", drawing)
    for unit in ("", " %"):
        numbers = [float(text.replace(",", "")) for text, sign in ticks if sign == unit]
        assert len(numbers) >= 2
        assert all(len(f"{number:g}".replace(".", "").strip("0")) <= 3 for number in numbers)
    assert 'xlink:href="#a"' in drawing


@pytest.mark.parametrize("classes", [2, 10, 60])
def test_confusion_pictures(classes: int) -> None:
    names = [f"class with a rather long name {index}" for index in range(classes)]
    assert are_pictures(figures.confusion_matrix(np.eye(classes, dtype=np.int64) * 7, names, "title"))


def test_names_of_classes_are_no_formulas_and_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = figures.confusion_matrix(
            np.eye(2, dtype=np.int64), ["$\\nothing$ _^", 'id="a" style="b" \U00012000'], "$a$ of $b"
        )
    assert are_pictures(picture)
    assert "$\\nothing$ _^" in picture[".svg"].decode()
    assert "no font on this machine has the characters \U00012000" in caplog.text or not caplog.text


def test_a_font_that_is_put_in_place_is_used_at_once(tmp_path: Path) -> None:
    """By figures and contact sheets, whatever matplotlib's own list of fonts says."""
    code = (
        "import sys, numpy as np; from pipeline.output import contact_sheet, figures\n"
        "name = 'sign \\U00012000'\n"
        "pdf = figures.confusion_matrix(np.eye(2, dtype=int), [name, 'b'], 'title', formats=['.pdf'])['.pdf']\n"
        "sheet = contact_sheet.draw([contact_sheet.Cell(np.zeros((9, 9, 3), np.uint8), 'a.png', name, 0.5)], 't', 'n')\n"
        "print(b'Wedges' in pdf, hash(sheet))"
    )

    def draw() -> tuple[str, list[str]]:
        env = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=ROOT)
        return done.stderr, done.stdout.split()

    told, (found, before) = draw()
    if not told:
        pytest.skip("a font of this machine has cuneiform signs")
    assert told.count("no font on this machine has the characters \U00012000") == 1
    assert found == "False"
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "sign"])
    builder.setupCharacterMap({0x12000: "sign"})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0)), pen.lineTo((900, 0)), pen.lineTo((900, 700)), pen.closePath()
    builder.setupGlyf({".notdef": pen.glyph(), "sign": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "sign": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Wedges", "styleName": "Regular", "psName": "Wedges-Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    builder.setupPost()
    (tmp_path / "fonts").mkdir()
    builder.save(tmp_path / "fonts" / "wedges.ttf")
    told, (found, after) = draw()
    assert (told, found) == ("", "True")
    assert after != before


def test_a_contact_sheet_is_by_class_the_least_certain_first() -> None:
    colours = {"a": 40, "b": 80, "c": 120, "d": 200}
    told = {
        "a": ("x/1.png", "dog", 0.5),
        "b": ("y/1.png", "cat", 0.9),
        "c": ("z/2.png", "cat", 0.4),
        "d": ("3.png", "elk", 1),
    }
    cells = [contact_sheet.Cell(np.full((8, 8, 3), colours[key], np.uint8), *rest) for key, rest in told.items()]
    with Image.open(io.BytesIO(contact_sheet.draw(cells, "title", "note"))) as sheet:
        step, top, left = contact_sheet.THUMBNAIL + 16, 24 + 56 + 80, 24 + 80
        row = [sheet.getpixel((left + step * column, top)) for column in range(3)]
    assert row == [(colours[key],) * 3 for key in "cba"]
    assert contact_sheet._captions([cell.path for cell in cells]) == ["x/1.png", "y/1.png", "2.png", "3.png"]


def test_learning_curve_pictures() -> None:
    scores = np.array([[0.5], [0.6]])
    assert are_pictures(figures.learning_curve([10, 20], scores, scores, "title"))
    assert are_pictures(figures.learning_curve([10, 20], scores.repeat(3, axis=1), scores.repeat(3, axis=1), "title"))
