"""What the product promises, on real data, through the commands a person types."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
from conftest import DATA_DIR, ROOT, Run

from pipeline.features import store

pytestmark = pytest.mark.tensorflow


def metrics_in(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(path.read_text()) for path in folder.glob("*/metrics.json")]


def places(folder: Path) -> list[str]:
    return [
        "--features-dir", str(folder / "features"), "--models-dir", str(folder / "models"),
        "--output-dir", str(folder / "output"),
    ]  # fmt: skip


@pytest.mark.weights
def test_demo(run: Run, tmp_path: Path) -> None:
    done = run("demo", "--data-dir", DATA_DIR, "--curve-seeds", "1", *places(tmp_path))
    assert done.returncode == 0, done.stderr
    (metrics,) = metrics_in(tmp_path / "output")
    assert metrics["accuracy"]["test"] >= 0.98
    assert metrics["features"]["columns"] == 6016
    assert metrics["features"]["weights"] == "imagenet"


@pytest.mark.weights
@pytest.mark.data
def test_cifar10_interrupted_resumed_and_trained(run: Run, call: Run, tmp_path: Path) -> None:
    """The first 1,250 rows of each split at 32 px, stopped once on the way."""
    flags = ["--data-dir", str(DATA_DIR), "--image-size", "32", "--limit", "1250"]
    command = [sys.executable, "-m", "pipeline", "features", *flags, "--features-dir", str(tmp_path / "features")]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not list(tmp_path.glob("features/*.parts/train-*.h5")):
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    said = child.communicate()[1]
    assert child.returncode == 130, said
    assert "rows are kept in" in said

    done = run("features", *flags, "--features-dir", tmp_path / "features")
    assert done.returncode == 0, done.stderr
    assert "going on where an earlier run stopped" in done.stderr
    assert "images/s" in done.stdout
    (path,) = (tmp_path / "features").iterdir()
    resumed = store.verify(path)
    assert resumed.rows == {"train": 1250, "test": 1250}

    whole = call("features", *flags, "--features-dir", tmp_path / "undisturbed")
    assert whole.returncode == 0, whole.stderr
    other = store.verify(tmp_path / "undisturbed" / path.name)
    assert faults.same(*(faults.arrays_in(cache.path) for cache in (resumed, other))), "bit for bit"

    where = [*places(tmp_path), "--curve-seeds", "1"]
    done = run("train", *flags, "--C", "0.003", *where)
    assert done.returncode == 0, done.stderr
    (metrics,) = metrics_in(tmp_path / "output")
    assert metrics["features"]["columns"] == 6016
    assert metrics["accuracy"]["test"] > 0.65
    assert "official" in metrics["dataset"]
