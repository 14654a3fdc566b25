"""README and documentation are true: every command, target, flag, file and picture that they name exists."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pictures
import pytest
from conftest import DATA_DIR, ROOT, Run

from pipeline import cli
from pipeline.cli import COMMANDS, build_parser
from pipeline.common.options import Options
from pipeline.data import datasets
from pipeline.features import extract
from pipeline.features.options import ComputeOptions
from pipeline.models import classifiers
from pipeline.network.taps import ALL_TAPS
from pipeline.selection.options import TrainOptions

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FLAGS = [item for command in COMMANDS.values() for group in command.groups().values() for item in group]
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))


def _code() -> list[str]:
    """Every line of a code block and every code span."""
    blocks = re.findall(r"^```[^`\n]*\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL))
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()] + spans


def _blocks(language: str, word: str) -> str:
    """The one code block of a language that holds a word."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return str(block)


def test_the_readme_is_short_and_begins_with_what_to_do() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    screen = "\n".join(lines[:40])
    assert "make train DATASET=" in screen
    assert "make predict MODEL=" in screen


@pytest.mark.tensorflow
@pytest.mark.weights
@pytest.mark.parametrize(
    ("folder", "new", "labels"),
    [("photos", "new-photos", ("cat", "dog")), ("posters", "new-scans", ("affiche", "broadside", "placard"))],
)
def test_the_examples_of_own_images_run(
    tmp_path: Path, folder: str, new: str, labels: tuple[str, ...], call: Run
) -> None:
    """Own folder, cache, model, predictions: the lines of README and documentation as they stand there."""
    pictures.fill(tmp_path / folder, labels, count=12)
    pictures.fill(tmp_path, (new,), count=3, seed=90)
    (tmp_path / "data").symlink_to(DATA_DIR)
    said, name = "", "RUN"
    for line in _blocks("sh", f"features --dataset {folder} ").splitlines():
        program, *command = shlex.split(line.split("  #")[0].replace("RUN", name))
        if program == "ls":
            continue
        assert command[:2] == ["-m", "pipeline"]
        done = call(*command[2:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said += done.stdout
        name = next((path.stem for path in tmp_path.glob("models/*.joblib")), name)
    assert set(labels) <= set(said.split()), "train's report has the classes"
    assert f"{new}{os.sep}" in said
    assert (tmp_path / "models" / f"{name}.md").exists()
    sheet = tmp_path / "sheet.png"
    assert sheet.exists() == (folder == "posters")
    assert not sheet.exists() or sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.tensorflow
@pytest.mark.weights
def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(DATA_DIR)
    digits = datasets.load_dataset("digits", tmp_path, download=False).splits["train"]
    made = extract.extract(ComputeOptions(dataset="digits", image_size=32, taps="top", limit=300))
    exec(_blocks("python", "load_features"), {"cache": made.path})
    assert capsys.readouterr().out.splitlines()[-1].startswith("(300, 512) ")
    assert (
        cli.main(
            ["train", "--dataset", "digits", "--image-size", "32", "--taps", "top", "--limit", "300", "--C", "0.1"]
        )
        == 0
    )
    (run,) = (path.parent.name for path in tmp_path.glob("output/*/metrics.json"))
    names = {"run": run, "images": list(digits.images[:3])}
    exec(_blocks("python", "HistoryDisplay"), names)
    exec(_blocks("python", "load_model"), names)
    assert capsys.readouterr().out.splitlines()[-1].startswith("['0' '1' '2'] [0.")
    exec(_blocks("python", "kneighbors"), {"cache": made.path, "images": digits.images})
    assert capsys.readouterr().out.startswith("['train:0' ")
    exec(_blocks("python", "GridSearchCV"), {"images": digits.images[:60], "labels": digits.labels[:60]})
    assert "clf__C" in capsys.readouterr().out
    exec(_blocks("python", "cross_val_score"), {})  # the README's, as it stands
    assert min(map(float, re.findall(r"0\.\d+", capsys.readouterr().out))) > 0.8


def test_targets_exist() -> None:
    named = [match for code in _code() for match in re.findall(r"(?:^|&& )make ([a-z-]+)", code)]
    assert {"demo", "features", "train", "test", "check", "inspect", "torture"} <= set(named)
    assert set(named) <= TARGETS
    for target in TARGETS:
        assert f"make {target}" in TEXT, f"{target} is not documented"


def test_make_variables_exist() -> None:
    known = {item.name.upper() for item in FLAGS} | {"BEFORE", "PYTHON", "QUICK", "VARIABLE"}
    for code in _code():
        if code.startswith("make "):
            assert set(re.findall(r"(?<![=\w])([A-Z][A-Z_]*)=", code)) <= known, code


def test_command_lines_parse() -> None:
    parser = build_parser()
    lines = [code for code in _code() if code.startswith("python -m pipeline ")]
    assert lines
    for line in lines:
        arguments = shlex.split(line)[3:]
        if "--help" not in arguments and "COMMAND" not in arguments:
            parser.parse_args(arguments)


def test_every_flag_is_documented_and_every_documented_flag_exists() -> None:
    flags = {item.flag for item in FLAGS if not item.positional}
    named = {flag for code in _code() for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", code)}
    assert flags - named == set(), "not documented"
    of_dask = {"--host", "--memory-limit", "--nthreads", "--no-dashboard", "--protocol"}
    of_dask |= {"--tls-ca-file", "--tls-cert", "--tls-key"}
    assert named - flags - of_dask - {"--kills", "--help"} == set(), "documented, but no flag"


@pytest.mark.parametrize(("title", "options"), [("Stage one", ComputeOptions), ("Stage two", TrainOptions)])
def test_the_tables_of_flags_have_the_declared_defaults(title: str, options: type[Options]) -> None:
    section = TEXT.partition(f"## {title}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (`--[^|]*) \|([^|]*)\|", section, re.MULTILINE)
    told = {flag: default for flags, defaults in rows for flag, default in zip(
        re.findall(r"--[\w-]+", flags), re.findall(r"`([^`]+)`", defaults) or [None], strict=True)}  # fmt: skip
    assert told == {
        item.flag: None if item.default is None or item.default is False else item.show(item.default)
        for item in options.declared()
    }


def test_the_table_of_classifiers_has_the_declared_options() -> None:
    section = TEXT.partition("## Stage two\n")[2].partition("\n#")[0]
    for name, classifier in classifiers.REGISTRY.items():
        cells = "".join(re.findall(rf"^\| `{name}` \|[^|]*\|([^|]*)\|", section, re.MULTILINE))
        told = dict(re.findall(r"`(--[\w-]+)` ([^,|]+)", cells.strip()))
        own = {item.flag: item for item in classifier.options}
        open_to = {"chosen": None, "by the columns": ()}
        assert {
            flag: open_to[text] if text in open_to else own[flag].check(own[flag].read(text))
            for flag, text in told.items()
        } == {flag: item.default for flag, item in own.items()}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_links_lead_somewhere(path: str) -> None:
    assert any((document.parent / path).exists() for document in DOCUMENTS)


def test_modules_and_taps_exist() -> None:
    for file in re.findall(r"`((?:pipeline/)?[\w/]+\.py)`", TEXT):
        assert any((ROOT / room / file).exists() for room in ("", "pipeline", "tests", "benchmarks")), file
    for tap in re.findall(r"`(block\d_\w+\.(?:avg|max))`", TEXT):
        assert tap in ALL_TAPS


def test_tests_named_in_the_table_exist() -> None:
    table = "\n".join(
        (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("reliability", "experiments")
    )
    defined = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    }
    named = set(re.findall(r"`(test_\w+)`", table)) - {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert named
    assert named <= defined
