"""What a person sees on a terminal of 80 columns: no line wraps, bars are bars, and each thing is said once."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import faults
import pictures
import pytest
from conftest import ROOT, Run
from PIL import Image

from pipeline import cli
from pipeline.common import bar
from pipeline.common.text import aligned, percent, shorten, text_table, wrap
from pipeline.features import parts

COLUMNS = 80
LONG = "a class of a name that is far too long for any table, and goes on"
FLAGS = ["--weights", "random", "--precision", "float32", "--image-size", "32", "--taps", "block3_pool.max"]


def record(folder: Path, *arguments: str, **env: str) -> str:
    """All that a command writes to a terminal, escape sequences included; a cheap function stands in for VGG16."""
    rows = parts.PART_ROWS
    faults.random_weights()

    def work() -> int:
        os.chdir(folder)
        os.environ.update(env)
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
        faults.install(lambda number: None)
        parts.PART_ROWS = rows
        return cli.main(list(arguments))

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    child = faults.start_child(work, slave)
    os.close(slave)
    said = bytearray()
    try:
        while block := os.read(master, 65536):
            said += block
    except OSError:  # the other end was closed
        pass
    os.close(master)
    assert os.waitpid(child, 0)[1] == 0, said.decode()
    return said.decode()


def lines(said: str) -> list[str]:
    """What stood on a line at any time."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", said))]


def assert_fits(said: str) -> None:
    wide = [line for line in lines(said) if len(line) > COLUMNS]
    assert not wide, "\n".join(wide)


def test_demo_without_any_weights_goes_on_untrained(tmp_path: Path) -> None:
    """No network, no registry: the last resort, said everywhere; and no line is wider than the terminal."""
    nowhere = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/none",
        "KERAS_HOME": "/none",
        "https_proxy": "http://127.0.0.1:9",
    }
    flags = ["--image-size", "32", "--taps", "block3_conv3.avg", "--limit", "300", "--curve-seeds", "1"]
    said = record(tmp_path, "demo", *flags, **nowhere)
    assert_fits(said)
    bars = [line for line in lines(said) if re.search(r"\d+%\|", line)]
    assert bars
    assert all(len(re.search(r"\|(.*?)\|", line)[1]) >= 10 for line in bars if "0/" not in line), bars  # type: ignore[index]
    assert "could not be had. Tried:" in " ".join(said.split())
    assert "untrained" in said
    (metrics,) = tmp_path.glob("output/*/metrics.json")
    assert json.loads(metrics.read_bytes())["features"]["weights"] == "random"
    shown = [line.strip() for line in lines(said) if line.strip().endswith(".png")]
    assert shown
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in shown)


def test_no_line_of_a_folder_with_long_names_is_wider(tmp_path: Path) -> None:
    for label, level in ((f"{LONG} 1", 40), (f"{LONG} 2", 200)):
        (tmp_path / "tones" / label).mkdir(parents=True)
        for i in range(12):
            image = (pictures.pixels(i, 40, 50 + i) // 8 + level).astype("uint8")
            Image.fromarray(image).save(tmp_path / "tones" / label / f"a file of a name as long as it gets {i:02d}.png")
    (tmp_path / "tones" / f"{LONG} 1" / "text.png").write_text("no image")
    asked = ["--dataset", "tones", *FLAGS]
    listed = record(tmp_path, "features", *asked)
    assert_fits(listed)
    trained = record(tmp_path, "train", *asked)
    assert_fits(trained)
    assert (listed + trained).count("text.png") == 1, "what was not used is listed once"
    assert_fits(record(tmp_path, "sweep", *asked[:-2], "--taps", "block3_pool.max", "--grid", "C=0.01,0.1"))
    assert_fits(record(tmp_path, "report"))
    # The command that train ends with is the one that predicts.
    (command,) = re.findall(r"python -m pipeline (predict .*) IMAGES", trained.replace("\\\r\n", " "))
    said = record(tmp_path, *command.split(), "tones", "--top-k", "2")
    assert_fits(said)
    assert shorten(f"{LONG} 1", 24) in said, "the middle of a long name is left out"


def test_words_fit_where_they_are_put(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    assert shorten("short", 24) == "short"
    assert shorten("x" * 100, 24) == "x" * 12 + "…" + "x" * 11
    assert len(shorten("漢字" * 20, 24)) <= 13, "wide characters take two columns"
    assert wrap("label       " + "word " * 30, 40).splitlines()[1].startswith(" " * 12 + "word")
    assert wrap("a/very/long/path/" * 10, 40) == "a/very/long/path/" * 10, "paths stay whole"
    assert wrap("a  b\n\nc\n", 40) == "a  b\n\nc\n"
    table = text_table(["rank", "run", "none"], [["1", "y" * 100, ""], ["10", "z", ""]]).splitlines()
    assert [len(line) for line in table[1:2]] == [80]
    assert "none" not in table[0], "an empty column is left out"
    assert table[2] == "  10  z"
    assert aligned([["a", "b"], ["ccc"]]) == "a    b\nccc\n"
    assert (percent(0.85041), percent(None), percent(1, 0)) == ("85.04 %", "–", "100 %")


def test_a_bar_keeps_ten_columns_and_its_words_are_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar.log, "level", 0)
    shown = bar.Bar("fit 10 values of an option", 100, "steps", done=50, scale=False)
    shown.dynamic_ncols, shown.ncols, shown.bar_format = None, 80, None
    shown.note("C=0.0026, iteration 120, validation accuracy 34.12 %, best so far 33.00 %")
    text = str(shown)
    assert len(text) <= 80
    assert len(text.split("|")[1]) >= 10
    shown.close()


# --- what every command has -------------------------------------------------------------------


def test_bare_it_shows_help_and_each_help_has_an_example(run: Run, call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, asked = run(), call("--help")
    assert bare.returncode == asked.returncode == 0
    assert bare.stdout == asked.stdout
    assert call("--version").stdout.startswith("vgg16-features ")
    monkeypatch.setenv("COLUMNS", "80")
    for name in cli.COMMANDS:
        assert name in bare.stdout
        text = call(name, "--help").stdout
        assert f"example: python -m pipeline {name}" in " ".join(text.split())
        assert "None" not in text
        assert "--quiet" in text
        assert max(map(len, text.splitlines())) <= 80
    assert "squash|crop|pad" in call("train", "--help").stdout


def test_json_is_all_that_is_printed(call: Run, tmp_path: Path) -> None:
    done = call("--json", "report", "--output-dir", tmp_path)
    assert json.loads(done.stdout) == {
        "page": f"{tmp_path}/index.html", "leaderboard": f"{tmp_path}/leaderboard.csv", "runs": []
    }  # fmt: skip


def test_quiet_says_nothing_of_the_work_and_verbose_says_when(call: Run, tmp_path: Path) -> None:
    missing = ["inspect", str(tmp_path / "x.h5")]
    assert "Traceback" not in call(*missing, "--quiet").stderr
    told = call(*missing, "--verbose").stderr
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d.*error: There is no feature file", told)
    assert "Traceback" in told


def test_the_shell_completes_commands_flags_and_choices(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")

    def completed(line: str) -> set[str]:
        env = {
            **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_TYPE": "9",
            "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found"),
        }  # fmt: skip
        subprocess.run([sys.executable, "-m", "pipeline"], cwd=ROOT, env=env, check=False)
        return {word.strip() for word in (tmp_path / "found").read_text().splitlines()}

    assert {"train", "predict"} <= completed("vgg16-features ")
    assert completed("vgg16-features train --image-s") == {"--image-size"}
    assert completed("vgg16-features train --classifier r") == {"ridge"}
