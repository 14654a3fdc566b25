"""Stage two on real Dask processes: the same table and the same run, also after a kill, and with no file there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Run, assert_user_error, command

pytest.importorskip("distributed")

import clusters
from clusters import Cluster, until

pytestmark = pytest.mark.tensorflow

TAPS = "block1_conv1.avg,block2_conv1.avg"
FEATURES = ["--dataset", "digits", "--weights", "random", "--precision", "float32", "--image-size", "32"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # what each of the workers has


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    command("features", *FEATURES, "--taps", TAPS, "--features-dir", folder)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with clusters.started(tmp_path_factory.mktemp("cluster")) as there:
        yield there


def where(folder: Path, features: Path) -> list[str]:
    return ["--features-dir", str(features), "--output-dir", str(folder / "output"), "--models-dir",
            str(folder / "models")]  # fmt: skip


SWEEP = ["sweep", *FEATURES, "--taps", TAPS, "--taps", "block2_conv1.avg", "--grid", "C=1e-4..1,log,9",
         "--no-halving", "--no-learning-curve"]  # fmt: skip


def table(folder: Path) -> str:
    (path,) = folder.glob("output/sweeps/*.csv")
    return path.read_text(encoding="utf-8")


def test_a_sweep_that_was_killed_and_run_again_ends_with_the_table_of_one_machine(
    run: Run, cluster: Cluster, features: Path, tmp_path: Path
) -> None:
    alone, there = tmp_path / "alone", tmp_path / "there"
    done = run(*SWEEP, *where(alone, features), env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    cluster.have(2)
    killed = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *SWEEP, *where(there, features), "--cluster", cluster.address],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        stderr=subprocess.DEVNULL,
    )
    until(lambda: list(there.glob("output/candidates/*.json")))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    recorded = len(list(there.glob("output/candidates/*.json")))
    again = run(*SWEEP, *where(there, features), "--cluster", cluster.address, env=ONE_THREAD)
    assert again.returncode == 0, again.stderr
    if recorded < 18:
        assert re.search(r"going on: \d+ of 18 candidates are recorded already", again.stderr)
        assert len(re.findall(r"the worker tcp://\S+ joins: .*, 1 thread", again.stderr)) >= 1
    assert table(there) == table(alone)


def test_a_run_has_the_learning_curve_of_one_machine_also_where_features_must_be_sent(
    run: Run, cluster: Cluster, features: Path, tmp_path: Path
) -> None:
    train = ["train", *FEATURES, "--taps", TAPS, "--C", "0.01"]
    curves = []
    cluster.stop(*cluster.workers)
    cluster.start_worker("no features")
    for name, more in (("alone", []), ("there", ["--cluster", str(cluster.file)])):
        done = run(*train, *where(tmp_path / name, features), *more, env=ONE_THREAD)
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / name).glob("output/*/learning_curve.csv")
        curves.append([line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]])
    cluster.stop(*cluster.workers)
    assert re.search(r"sending the worker tcp://\S+ what it lacks: There is no feature file", done.stderr)
    assert len(curves[0]) == len(curves[1])
    for one, other in zip(*curves, strict=True):
        assert one[:2] == other[:2]
        # Seeds are fitted side by side here and one by one there, which changes the last bits of where a fit ends.
        assert list(map(float, one[2:])) == pytest.approx(list(map(float, other[2:])), abs=0.02)


def test_parameters_that_overflow_are_the_users_mistake_and_no_workers(
    call: Run, cluster: Cluster, features: Path, tmp_path: Path
) -> None:
    sweep = ["sweep", *FEATURES, "--classifier", "mlp", "--grid", "learning_rate_init=1e30", "--taps", TAPS]
    cluster.have(1)
    done = call(*sweep, *where(tmp_path, features), "--cluster", cluster.address)
    alone = call(*sweep, *where(tmp_path, features))
    assert done.returncode == alone.returncode
    if alone.returncode:
        assert_user_error(done, "its numbers overflow")
    assert "is refused" not in done.stderr


def test_the_demo_runs_on_processes_of_this_machine(run: Run, tmp_path: Path) -> None:
    done = run(
        "demo", "--weights", "random", "--image-size", "32", "--taps", TAPS, "--limit", "300", "--C", "0.01", "--curve-seeds", "2",
        *where(tmp_path, tmp_path / "features"), "--cluster", "local:2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cluster local:2: dashboard http://127.0.0.1:") == 2
    assert "test" in done.stdout
