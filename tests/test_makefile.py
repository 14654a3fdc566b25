"""The Makefile: variables arrive unchanged, nothing precious is removed, mistakes are explained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from pipeline import cli

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


# A Python that shows what the real command line understands, in place of doing it.
SHOW = f"""#!{sys.executable}
import dataclasses, json, sys
sys.path.insert(0, {str(ROOT)!r})
from pipeline import cli

def shown(name, command):
    items = [item for group in command.groups().values() for item in group]
    def run(given):
        values = {{item.name: item.given(given) for item in items}}
        print(json.dumps([name, {{key: value for key, value in values.items() if value is not None}}], default=str))
        sys.exit()
    return dataclasses.replace(command, run=run)

if sys.argv[1:3] == ["-m", "pipeline"]:
    cli.COMMANDS = {{name: shown(name, command) for name, command in cli.COMMANDS.items()}}
    sys.exit(cli.main(sys.argv[3:]))
print(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile in a folder of its own, with a .venv whose Python is that of `SHOW`."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(SHOW, encoding="utf-8")
    python.chmod(0o755)
    for extra in ("", "-audit", "-cluster"):
        shutil.copy(ROOT / f"requirements{extra}.txt", tmp_path)
        os.utime(tmp_path / f"requirements{extra}.txt", (0, 0))
        (tmp_path / ".venv" / f".installed{extra}").touch()
    return tmp_path


def calls(done: subprocess.CompletedProcess[str]) -> list[list[Any]]:
    """The commands that were run, each with the settings that it was given."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_is_the_default_and_lists_every_target() -> None:
    done = make(ROOT)
    assert done.returncode == 0
    phony = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\n.PHONY: ")[2].partition("\n\n")[0]
    for target in phony.replace("\\", "").split():
        assert f"\n  {target} " in done.stdout
    assert make(ROOT, "help").stdout == done.stdout


def test_without_variables_the_defaults_are_the_command_lines(project: Path) -> None:
    assert calls(make(project, "features")) == [["features", {}]]
    assert calls(make(project, "train")) == [["features", {}], ["train", {}]]
    assert calls(make(project, "demo")) == [["demo", {}]]


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "with  two spaces ",  # make itself takes those at the front away
        "quote ' and \" both",
        "dollar $HOME $$ $(shell false) ${x",
        "#hash;semi|pipe&",
        "ü*?[a]",
        "-- not text: \udcff",
    ],
)
def test_values_arrive_unchanged(project: Path, value: str) -> None:
    done = make(project, "features", f"DATA_DIR={value}", "IMAGE_SIZE=32")
    assert calls(done) == [["features", {"image_size": [32], "data_dir": value}]]


def test_the_environment_gives_no_flag(project: Path) -> None:
    env = {"SEED": "5", "C": "3", "PIPELINE_SEED": "7"}
    assert calls(make(project, "train", env=env)) == [["features", {}], ["train", {}]]
    assert calls(make(project, "-e", "features", "LIMIT=", env=env)) == [["features", {}]], "an empty one is not given"


def test_every_flag_has_its_variable(project: Path) -> None:
    for name, command in cli.COMMANDS.items():
        items = [item for group in command.groups().values() for item in group]
        (*_, (called, given)) = calls(make(project, name, *(f"{item.name.upper()}=1" for item in items)))
        assert called == name
        assert set(given) == {item.name for item in items}


def test_a_step_takes_the_variables_that_are_its_own(project: Path) -> None:
    done = make(project, "train", "BATCH_SIZE=64", "SEED=1", "STRICT=1", "HIDDEN_LAYER_SIZES=8,4")
    features, train = calls(done)
    assert features == ["features", {"strict": True, "batch_size": 64}]
    assert train == ["train", {"strict": True, "seed": 1, "hidden_layer_sizes": [8, 4]}]
    features, sweep = calls(make(project, "sweep", "TAPS=top  block1_conv1.avg,top", "GRID=C=1e-4..1,log,9 tol=1,2"))
    assert features == ["features", {"taps": "top  block1_conv1.avg,top"}]
    assert sweep == ["sweep", {"taps": ["top", "block1_conv1.avg,top"], "grid": ["C=1e-4..1,log,9", "tol=1,2"]}]


@pytest.mark.parametrize("target", ["features", "train", "predict", "test"])
def test_a_variable_that_no_flag_has_is_an_error(project: Path, target: str) -> None:
    (project / ".venv" / ".installed-dev").touch()
    os.utime(project / ".venv" / ".installed-dev", (2**32, 2**32))
    shutil.copy(ROOT / "requirements-dev.txt", project)
    done = make(project, target, "IMAGE_SZIE=32")
    assert done.returncode == 2
    assert done.stdout == "", "nothing was run"
    assert "There is no variable IMAGE_SZIE" in done.stderr
    assert "Did you mean IMAGE_SIZE?" in done.stderr


def test_files_and_models_are_variables_too(project: Path) -> None:
    assert calls(make(project, "inspect", "FILE=a b.h5", "VERIFY=1")) == [
        ["inspect", {"file": "a b.h5", "verify": True}]
    ]
    (called,) = calls(make(project, "predict", "MODEL=a b.joblib", "IMAGES=-my scans", "TOP_K=3"))
    assert called == ["predict", {"model": "a b.joblib", "images": ["-my scans"], "top_k": 3}]
    assert calls(make(project, "export", "MODEL=a b.joblib")) == [["export", {"model": "a b.joblib"}]]


def test_the_benchmarks_have_requirements_of_their_own(project: Path) -> None:
    """Nothing that is only there to be compared with enters the product's .venv."""
    shutil.copytree(ROOT / "benchmarks", project / "benchmarks", ignore=shutil.ignore_patterns(".venv"))
    done = make(project, "--dry-run", "bench", "DATA_DIR=x", "QUICK=1")
    assert done.returncode == 0, done.stderr
    assert "-m venv benchmarks/.venv" in done.stdout
    assert "benchmarks/.venv/bin/python -m pip install --disable-pip-version-check -r benchmarks/requirements.txt" in (
        done.stdout
    )
    assert done.stdout.rstrip().endswith('benchmarks/bench.py --data-dir "$PIPELINE_DATA_DIR" --quick')
    assert "torch" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_the_documentation_has_requirements_of_its_own_and_no_warning(project: Path) -> None:
    for name in ("dev", "docs"):
        shutil.copy(ROOT / f"requirements-{name}.txt", project)
    done = make(project, "--dry-run", "docs", "DATA_DIR=x")
    assert done.returncode == 0, done.stderr
    assert "-r requirements-docs.txt" in done.stdout
    assert 'DATA_DIR="$PIPELINE_DATA_DIR" .venv/bin/python -m sphinx -W ' in done.stdout
    assert "requirements-docs.txt" not in make(project, "--dry-run", "test").stdout


def test_folders_named_like_targets_do_not_hide_them(project: Path) -> None:
    for folder in ("features", "data", "models", "output"):
        (project / folder).mkdir()
    assert calls(make(project, "features")) == [["features", {}]]


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


def test_a_cluster_alone_needs_what_it_takes(project: Path) -> None:
    (project / ".venv" / ".installed-cluster").unlink()
    assert "cluster" not in make(project, "--dry-run", "train", "TAPS=top").stdout
    said = make(project, "--dry-run", "train", "CLUSTER=local:2").stdout
    assert said.index("-r requirements-cluster.txt") < said.index("-m pipeline")


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
