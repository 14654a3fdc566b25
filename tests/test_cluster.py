"""Stage one on real Dask processes: the same arrays, whoever dies, hangs, lies or vanishes.

VGG16 itself runs where its arrays are the point; elsewhere the cheap function of `faults` stands in for it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faults
import numpy as np
import pictures
import pytest
from conftest import ROOT, Run, assert_user_error

distributed = pytest.importorskip("distributed")

import clusters
from clusters import Cluster, kept, until

from pipeline.common import cluster as clustering
from pipeline.common import cluster_options, cluster_reach
from pipeline.common.errors import UserError
from pipeline.data.image_files import ImageFiles
from pipeline.features import extract, on_workers, parts, store
from pipeline.features.options import ComputeOptions
from pipeline.network import weights

PART_ROWS = 32
WANTED = {"weights": "random", "precision": "float32", "image_size": (32,), "taps": "block1_conv1.avg,block3_pool.max",
          "batch_size": 32, "threads": 1}  # fmt: skip
FLAGS = [
    "--weights", "random", "--precision", "float32", "--image-size", "32", "--taps", str(WANTED["taps"]),
    "--batch-size", "32", "--threads", "1", "--dataset", "digits",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with clusters.started(tmp_path_factory.mktemp("cluster")) as there:
        yield there


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", PART_ROWS)
    monkeypatch.setattr(weights, "random_weights", faults.random_weights)


def compute(folder: Path, where: str | None, dataset: str = "digits", **more: object) -> Path:
    """Stage one in this process, which loads no TensorFlow."""
    options = ComputeOptions(dataset=dataset, features_dir=folder, cluster=where, **{**WANTED, **more})
    return extract.extract(options).path


def start(folder: Path, *more: str, real: bool = False) -> subprocess.Popen[str]:
    """Stage one as a process of its own, with the same small parts."""
    code = "import signal, sys, faults; from pipeline import cli; from pipeline.features import parts; "
    code += "" if real else "faults.install(lambda number: None); "
    code += f"parts.PART_ROWS = {PART_ROWS}; "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); "  # also where the tests run in the background
    code += "sys.exit(cli.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "features", *FLAGS, "--features-dir", str(folder), *more], cwd=ROOT,
        env={**os.environ, **clusters.CHEAP}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(folder: Path, *more: str, real: bool = False) -> str:
    """Run that process to its end; gives what it says."""
    run = start(folder, *more, real=real)
    said = run.communicate()[1]
    assert run.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Of one machine."""
    folder = tmp_path_factory.mktemp("reference")
    finish(folder)
    return faults.arrays(folder)


def meanwhile(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# --- the same arrays --------------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_arrays_of_one_machine(
    tmp_path: Path, call: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """VGG16's own, bit for bit, with the threads that each worker has."""
    rows = 140
    finish(tmp_path / "alone", "--limit", str(rows), real=True)
    expected = faults.arrays(tmp_path / "alone")

    def joined() -> int:
        return len(set(re.findall(r"the worker (tcp://127.0.0.1:\d+) joins: .+, 1 thread\b", caplog.text)))

    def compute_and_compare() -> Path:
        folder = tmp_path / f"{time.monotonic_ns()}"
        path = compute(folder, str(own.file), limit=rows)
        assert faults.same(faults.arrays(folder), expected)
        assert faults.leftovers(folder) == []
        return path

    (tmp_path / "cluster").mkdir()
    with clusters.started(tmp_path / "cluster") as own:
        own.have(2, real=True)
        while joined() < 2:  # each comes when it has loaded TensorFlow
            compute_and_compare()
            time.sleep(1)
        for workers in (2, 1):
            path = compute_and_compare()
            assert len(own.workers) == workers
            own.stop(own.workers[0])
    assert f"cluster {own.file}: dashboard http://127.0.0.1:" in caplog.text
    with store.open(path) as made:
        assert len(made.computed_on) == 2 * -(-rows // PART_ROWS)
        assert all(re.fullmatch(r".+: .+, 1 thread", text) for text in made.computed_on)
    shown = call("inspect", path)
    assert shown.returncode == 0
    assert re.search(r"^parts +.+, 1 thread \(10\)$", shown.stdout, re.MULTILINE)


def test_killed_workers_cost_nothing_but_time(
    cluster: Cluster, reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    cluster.have(2)
    killed = 0
    for attempt in range(20):
        ended, folder = threading.Event(), tmp_path / str(attempt)
        with ThreadPoolExecutor(1) as aside:
            kills = aside.submit(cluster.kill_at_random, 5 - killed, ended, folder)
            compute(folder, cluster.address)
            ended.set()
        killed += kills.result()
        assert faults.same(faults.arrays(folder), reference)
        if killed == 5:
            return
    raise AssertionError(f"only {killed} kills")


def test_all_workers_killed_and_others_join_later(
    cluster: Cluster, reference: dict[str, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def kill() -> None:
        until(lambda: kept(tmp_path) >= 3)
        cluster.stop(*cluster.workers)
        until(lambda: "waiting for workers" in caplog.text)
        cluster.have(2)

    cluster.have(1)
    thread = meanwhile(kill)
    compute(tmp_path, cluster.address)
    thread.join()
    assert faults.same(faults.arrays(tmp_path), reference)
    assert f"'python -m dask worker {cluster.address} --memory-limit 0'" in caplog.text


def test_the_work_of_a_worker_that_hangs_goes_to_another(
    cluster: Cluster, reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    cluster.have(2)

    def stop() -> None:
        until(lambda: kept(tmp_path) >= 3)
        hanging.append(cluster.pids()[0])
        os.kill(hanging[0], signal.SIGSTOP)

    hanging: list[int] = []
    thread = meanwhile(stop)
    began = time.monotonic()
    compute(tmp_path, cluster.address)
    thread.join()
    assert time.monotonic() - began < 90
    assert faults.same(faults.arrays(tmp_path), reference)


# --- who may join -----------------------------------------------------------------------------------


def test_who_cannot_be_trusted_is_refused_and_named(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By one honest worker among them all is done, which begins when the others are refused and is sent all again."""
    images, other, absent = (tmp_path / name for name in ("insects", "other", "absent"))
    for folder, seed in ((images, 0), (other, 1000)):
        pictures.fill(folder, count=80, seed=seed)
        (folder / "ant" / "bad.png").write_bytes(pictures.FAULTS["truncated.png"][0](1))
    cluster.stop(*cluster.workers)
    cluster.start_worker(f"gate={tmp_path / 'gate'}")
    liars = ("version", "bit", "weights", f"images={other}", f"images={absent}")
    for fault in liars:
        cluster.start_worker(fault)
    with distributed.Client(cluster.address) as client:  # if a liar came first, there would be nobody else
        client.wait_for_workers(len(cluster.workers))

    def open_gate() -> None:
        until(lambda: caplog.text.count("is refused, and others do its work") == len(liars))
        (tmp_path / "gate").touch()

    thread = meanwhile(open_gate)
    compute(tmp_path / "features", cluster.address, dataset=str(images))
    thread.join()
    cluster.stop(*cluster.workers)
    for why in (
        r"vgg16-features is 0\.1\.0 there and \d\S+ here",
        r"its result is not what it computed: what was sent with the sha256 \S+ arrived with ",
        r"its weights have the digest [0-9a-f]{12}…; expected [0-9a-f]{12}…",
        r"The image \S+ changed while.*its sha256 was \S+… and is ",
        rf"Could not read the image: {absent}/\S+: No such file",
    ):
        assert re.search(rf"the worker tcp://127.0.0.1:\d+ is refused, and others do its work: .*{why}", caplog.text)
    assert len(re.findall(r"the worker tcp://\S+ joins", caplog.text)) >= 5, "the one that forgot, again"
    finish(tmp_path / "alone", "--dataset", str(images))
    assert faults.same(faults.arrays(tmp_path / "features"), faults.arrays(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("fault", "precision", "why"),
    [("version", "float32", r"0\.1\.0 there"), ("precision", "bfloat16", "no bfloat16 instructions")],
)
def test_where_nobody_can_do_the_work_that_is_an_error(
    fault: str, precision: str, why: str, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.stop(*cluster.workers)
    cluster.start_worker(fault)
    with pytest.raises(UserError, match=rf"No worker of the cluster \S+ can do the work\. tcp://\S+: .*{why}"):
        compute(tmp_path / "features", cluster.address, precision=precision)
    cluster.stop(*cluster.workers)


def test_a_worker_may_have_its_folder_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker" / "photos").mkdir(parents=True)
    (tmp_path / "worker" / "photos" / "a.png").write_bytes(b"a")
    images = ImageFiles.identified([tmp_path / "worker" / "photos" / "a.png"])
    sent = images.moved(lambda path: tmp_path / "photos" / path.name)
    monkeypatch.setenv(on_workers.DATA_DIR, str(tmp_path / "worker"))
    assert on_workers._here(sent, tmp_path / "photos")._paths == images._paths
    (tmp_path / "photos").mkdir()
    assert on_workers._here(sent, tmp_path / "photos")._paths == sent._paths, "the same path comes first"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
def test_certificates_of_dasks_configuration_are_used(
    run: Run, reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    own, features = tmp_path / "cert.pem", tmp_path / "features"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=cluster"]
    subprocess.run([*make, "-out", own.name, "-keyout", own.name], cwd=tmp_path, check=True, capture_output=True)

    def with_certificate(path: Path) -> dict[str, str]:
        return {
            f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(path) for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")
        }

    (tmp_path / "cluster").mkdir()
    with clusters.started(tmp_path / "cluster", own) as there:
        assert there.address.startswith("tls://")
        there.start_worker()
        arguments = ["features", *FLAGS, "--features-dir", features, "--cluster", there.address]
        assert_user_error(run(*arguments), "DASK_DISTRIBUTED__COMM__TLS__CA_FILE", "has no ca-file or no client.cert")
        absent = run(*arguments, env=with_certificate(tmp_path / "absent.pem"))
        assert_user_error(absent, str(tmp_path / "absent.pem"), "No such file")
        done = run(*arguments, env=with_certificate(own))
    assert done.returncode == 0, done.stderr
    assert "the worker tls://127.0.0.1:" in done.stderr
    assert faults.same(faults.arrays(features), reference)


# --- what becomes of a run --------------------------------------------------------------------------


def test_a_scheduler_that_vanishes_is_a_clear_error_and_one_machine_goes_on(
    reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "cluster").mkdir()
    features = tmp_path / "features"
    with clusters.started(tmp_path / "cluster") as own:
        own.start_worker()

        def kill() -> None:
            until(lambda: kept(features) >= 3)
            own.stop(own.scheduler)

        thread = meanwhile(kill)
        with pytest.raises(UserError, match=r"The Dask scheduler at \S+ does not answer any more .*is kept"):
            compute(features, own.address)
        thread.join()
    there = kept(features)
    assert there >= 3
    assert "going on where an earlier run stopped" in finish(features)
    assert faults.same(faults.arrays(features), reference)


def test_a_scheduler_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "SILENCE", 3.0)
    (tmp_path / "cluster").mkdir()
    with clusters.started(tmp_path / "cluster") as own:

        def stop() -> None:
            until(lambda: list((tmp_path / "features").glob("*.parts")))
            time.sleep(1)
            os.kill(own.scheduler.pid, signal.SIGSTOP)

        thread = meanwhile(stop)
        with pytest.raises(UserError, match=r"The Dask scheduler at \S+ does not answer any more \(TimeoutError\)"):
            compute(tmp_path / "features", own.address)
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_coordinator_leaves_its_parts_and_the_rerun_goes_on(
    cluster: Cluster, reference: dict[str, np.ndarray], number: signal.Signals, tmp_path: Path
) -> None:
    cluster.have(1)
    run = start(tmp_path, "--cluster", cluster.address)
    until(lambda: kept(tmp_path) >= 3)
    run.send_signal(number)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == (-number if number == signal.SIGKILL else 130), said
    there = kept(tmp_path)
    if number != signal.SIGKILL:
        rows = re.search(r"Interrupted\. ([\d,]+) of 1,797 rows are kept in", said)
        assert rows, said
        assert int(rows[1].replace(",", "")) > 2 * PART_ROWS
        assert "Traceback" not in said, said
    compute(tmp_path, cluster.address)
    assert there < 50, "it was stopped on the way"
    assert faults.same(faults.arrays(tmp_path), reference)


def test_processes_of_this_machine_end_with_the_run(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Interrupted as a terminal does, which tells the whole group; and killed, after which nobody tells them."""
    import psutil

    for number in (signal.SIGINT, signal.SIGKILL):
        folder = tmp_path / number.name
        run = start(folder, "--cluster", "local:2")
        until(lambda there=folder: kept(there) >= 3)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 2
        os.killpg(run.pid, number) if number == signal.SIGINT else run.kill()
        said = run.communicate(timeout=60)[1]
        assert run.returncode == (130 if number == signal.SIGINT else -number), said
        assert "Traceback" not in said
        until(lambda gone=children: not any(child.is_running() and child.status() != "zombie" for child in gone), 30)
    assert "going on where an earlier run stopped" in finish(folder, "--cluster", "local:2")
    assert faults.same(faults.arrays(folder), reference)


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("local:0", ["local:N", "'local:0'", "between 1 and 9999"]),
        ("local:abc", ["local:N", "'local:abc'"]),
        ("tcp://nowhere", ["tcp://HOST:8786", "'tcp://nowhere'", "no address with a port"]),
        ("absent.json", ["'absent.json'", "No such file", "--scheduler-file absent.json"]),
    ],
)
def test_a_cluster_that_cannot_be_is_said_at_once(call: Run, where: str, words: list[str]) -> None:
    assert_user_error(call("features", "--dataset", "digits", "--cluster", where), *words)


def test_a_scheduler_file_must_be_one(tmp_path: Path) -> None:
    for content in (b"not JSON", b"{}", b"[1]"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UserError, match="must be JSON with an address"):
            ComputeOptions(cluster=str(tmp_path / "file"))


def test_no_scheduler_at_the_address(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_reach, "CONNECT", 1.0)
    done = call("features", *FLAGS, "--features-dir", tmp_path, "--cluster", "tcp://127.0.0.1:9")
    assert_user_error(done, "No Dask scheduler answered at tcp://127.0.0.1:9", "dask scheduler")


def test_without_dask_the_flag_says_how_to_install_it(run: Run, tmp_path: Path) -> None:
    code = "import sys; sys.modules['distributed'] = None; from pipeline import cli; sys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "features", "--cluster", "local:2"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert_user_error(done, "needs Dask, which is not installed", cluster_options.INSTALL)


def test_dask_is_loaded_for_a_cluster_alone(tmp_path: Path) -> None:
    code = "import sys, faults; from pathlib import Path; outcome = faults.work_of(Path(sys.argv[1]))(); "
    code += "print({'dask', 'distributed'} & set(sys.modules)); sys.exit(outcome)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env={**os.environ, **clusters.PATH}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_each_process_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(cluster_reach, "GPUS", tmp_path / "gpus")
    assert cluster_reach._pinned(0) == {}
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert [cluster_reach._pinned(number)["CUDA_VISIBLE_DEVICES"] for number in range(3)] == ["0", "1", "0"]


def test_the_transformer_computes_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    from pipeline import VGG16Features

    cluster.have(1)
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), np.uint8)
    settings = {"taps": "block1_conv1.avg", "image_size": 32, "weights": "random", "precision": "float32"}
    features = VGG16Features(**settings, cluster=cluster.address, features_dir=tmp_path / "a").fit_transform(images)
    assert features.shape == (40, 64)
    shutil.rmtree(tmp_path / "a")
