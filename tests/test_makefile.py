"""The Makefile: variables arrive unchanged, nothing precious is removed, mistakes are explained."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CLEAN = {
    name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DATA_DIR")
}


def make(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**CLEAN, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile in a folder of its own, with a .venv whose Python prints what it is called with."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport sys, json\nprint(json.dumps(sys.argv[1:]))\n", encoding="utf-8")
    python.chmod(0o755)
    stamp = tmp_path / ".venv" / ".installed"
    stamp.touch()
    os.utime(tmp_path / "requirements.txt", (0, 0))
    return tmp_path


def calls(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    import json

    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_is_the_default_and_lists_every_target() -> None:
    done = make(ROOT)
    assert done.returncode == 0
    targets = [
        "lock",
        "install",
        "demo",
        "features",
        "train",
        "sweep",
        "report",
        "predict",
        "export",
        "inspect",
        "test",
        "torture",
        "bench",
        "check",
        "format",
        "clean",
    ]
    for target in [*targets, "clean-features"]:
        assert f"\n  {target} " in done.stdout
    assert make(ROOT, "help").stdout == done.stdout


def test_without_variables_the_defaults_are_the_command_lines(project: Path) -> None:
    assert calls(make(project, "features")) == [["-m", "pipeline", "features"]]
    assert calls(make(project, "train")) == [["-m", "pipeline", "features"], ["-m", "pipeline", "train"]]
    assert calls(make(project, "demo")) == [["-m", "pipeline", "demo"]]


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "with  two spaces",
        "quote ' and \" both",
        "dollar $HOME $$ $(shell false)",
        "#hash;semi|pipe&",
        "ü*?[a]",
    ],
)
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_values_arrive_unchanged(project: Path, value: str, how: str) -> None:
    if how == "argument":
        done = make(project, "features", f"DATA_DIR={value}", "IMAGE_SIZE=32")
    else:
        done = make(project, "features", "IMAGE_SIZE=32", env={"DATA_DIR": value})
    assert calls(done) == [["-m", "pipeline", "features", "--data-dir", value, "--image-size", "32"]]


def test_every_flag_has_its_variable(project: Path) -> None:
    """Variables of the command line's own flags, so that none is forgotten here."""
    from pipeline.cli import _build_parser

    parser = _build_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    assert commands is not None
    for command in ("features", "train", "sweep", "report", "demo"):
        flags = [action.option_strings[0] for action in commands[command]._actions if action.option_strings[0] != "-h"]
        variables = [f"{flag[2:].replace('-', '_').upper()}=1" for flag in flags]
        (*_, called) = calls(make(project, command, *variables))
        assert {word for word in called if word.startswith("--")} == set(flags)


def test_inspect_needs_a_file(project: Path) -> None:
    done = make(project, "inspect")
    assert done.returncode == 2
    assert "name a feature file" in done.stderr
    assert calls(make(project, "inspect", "FILE=a b.h5")) == [["-m", "pipeline", "inspect", "a b.h5"]]


def test_the_benchmarks_have_requirements_of_their_own(project: Path) -> None:
    """Nothing that is only there to be compared with enters the product's .venv."""
    shutil.copytree(ROOT / "benchmarks", project / "benchmarks", ignore=shutil.ignore_patterns(".venv"))
    done = make(project, "--dry-run", "bench", "DATA_DIR=x", "QUICK=1")
    assert done.returncode == 0, done.stderr
    assert "-m venv benchmarks/.venv" in done.stdout
    assert "benchmarks/.venv/bin/python -m pip install --disable-pip-version-check -r benchmarks/requirements.txt" in (
        done.stdout
    )
    assert done.stdout.rstrip().endswith('benchmarks/bench.py --data-dir "$MAKE_DATA_DIR" --quick')
    assert "torch" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_predict_needs_a_model_and_images(project: Path) -> None:
    for given in ([], ["MODEL=m.joblib"], ["IMAGES=x"]):
        done = make(project, "predict", *given)
        assert done.returncode == 2
        assert "name a model and images" in done.stderr
    called = ["-m", "pipeline", "predict", "--model", "a b.joblib", "--top-k", "3", "--", "-my scans"]
    assert calls(make(project, "predict", "MODEL=a b.joblib", "IMAGES=-my scans", "TOP_K=3")) == [called]
    flags = ["TOP_K", "FORMAT", "OUTPUT", "SHEET", "DATA_DIR", "WEIGHTS", "BATCH_SIZE", "FOLLOW_LINKS"]
    (called,) = calls(make(project, "predict", "MODEL=m", "IMAGES=x", *(f"{flag}=1" for flag in flags)))
    named = {
        word.removeprefix("--").replace("-", "_").upper() for word in called if word.startswith("--") and word != "--"
    }
    assert named == {*flags, "MODEL"}


def test_export_needs_a_model(project: Path) -> None:
    assert make(project, "export").returncode == 2
    assert calls(make(project, "export", "MODEL=a b.joblib")) == [["-m", "pipeline", "export", "--model", "a b.joblib"]]


def test_folders_named_like_targets_do_not_hide_them(project: Path) -> None:
    for folder in ("features", "data", "models", "output"):
        (project / folder).mkdir()
    assert calls(make(project, "features")) == [["-m", "pipeline", "features"]]


def test_clean_never_touches_caches_or_data(project: Path) -> None:
    kept = [
        project / folder / name for folder in ("data", "features", "models", "output") for name in ("x.h5", ".gitkeep")
    ]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (project / "pipeline" / "__pycache__").mkdir(parents=True)
    assert make(project, "clean").returncode == 0
    assert all(path.exists() for path in kept)
    assert not (project / ".venv").exists()
    assert not (project / "pipeline" / "__pycache__").exists()


def test_clean_features_removes_only_caches(project: Path) -> None:
    folder = project / "features"
    parts = folder / "digits-vgg16-64px-0123456789ab.parts"
    parts.mkdir(parents=True)
    for name in ("digits-vgg16-64px-0123456789ab.h5", "mine.h5", ".gitkeep"):
        (folder / name).touch()
    assert make(project, "clean-features").returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == [".gitkeep", "mine.h5"]


def test_requirements_that_changed_are_installed_anew(project: Path) -> None:
    (project / "requirements.txt").touch()
    os.utime(project / ".venv" / ".installed", (1, 1))
    done = make(project, "--dry-run", "features")
    assert "-m venv" in done.stdout


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_an_environment_that_make_did_not_make_is_left_as_it_is(project: Path, kind: str) -> None:
    """Somebody's packages are in it: neither an install nor a clean may empty it."""
    venv = project / ".venv"
    (venv / ".installed").unlink()
    if kind == "link":
        venv.rename(project / "elsewhere")
        (project / "elsewhere" / ".made-by-make").touch()  # made here or not: another project may use what is behind
        venv.symlink_to("elsewhere")
    done = make(project, "features")
    assert done.returncode == 2
    (paragraph,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for word in (".venv is a link, or", "Rename or remove it", "-m pip install -r requirements.txt"):
        assert word in paragraph
    done = make(project, "clean")
    assert done.returncode == 0
    assert "not made by make" in done.stderr
    assert (venv / "bin" / "python").exists()


def test_an_interrupted_install_is_made_anew(project: Path) -> None:
    shutil.rmtree(project / ".venv")
    (project / ".venv").mkdir()  # stopped before anything was in it
    python = project / "python"  # makes an environment whose pip fails until the file "network" is there
    python.write_text(
        "#!/bin/sh\n"
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/left-over"; exit; fi\n'
        '[ "$2" != pip ] || [ -e network ]\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    assert make(project, "install", f"PYTHON={python}").returncode == 2
    assert not (project / ".venv" / ".installed").exists()
    (project / ".venv" / "half").touch()
    (project / "network").touch()
    done = make(project, "install", f"PYTHON={python}")
    assert done.returncode == 0, done.stderr
    assert (project / ".venv" / ".installed").exists()
    assert not (project / ".venv" / "half").exists(), "it begins anew, not on top of what is half there"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (None, "there is no"),
        ('case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac', "is Python 3.9.2, but 3.11"),
        ('case "$2" in *version_info*) exit 0;; *) exit 1;; esac', "has no venv module"),
    ],
)
def test_an_unfit_python_is_explained(project: Path, body: str | None, word: str) -> None:
    shutil.rmtree(project / ".venv")
    python = project / "some python"
    if body is not None:
        python.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        python.chmod(0o755)
    done = make(project, "features", f"PYTHON={python}")
    assert done.returncode == 2
    assert word in done.stderr
    assert not (project / ".venv").exists()
