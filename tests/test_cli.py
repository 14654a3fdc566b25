"""The command line as a user meets it: real processes, exit codes, one paragraph for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import faults
import h5py
import numpy as np
import pytest
from conftest import ROOT, Run, assert_user_error

from pipeline import cli
from pipeline.features import checksum, extract, parts, store
from pipeline.features.options import ComputeOptions
from pipeline.network import device
from pipeline.output import run_folder

DIGITS = ["--dataset", "digits", "--weights", "random", "--precision", "float32", "--image-size", "32"]
FEW = [*DIGITS, "--limit", "300"]
TAPS = ["--taps", "block1_conv1.avg,block5_pool.avg"]
QUICK = ["--no-learning-curve"]


def make_cache(folder: Path, *flags: str) -> Path:
    """A real cache of the digits under cheap features that depend on the pixels."""
    rows = parts.PART_ROWS
    faults.random_weights()

    def work() -> int:
        faults.install(lambda number: None)
        parts.PART_ROWS = rows
        return cli.main(["features", *DIGITS, *flags, "--features-dir", str(folder)])

    outcome = faults.in_child(work)
    assert outcome.status == 0, outcome.said
    (path,) = folder.glob("*.h5")
    return path


@pytest.fixture(scope="module")
def features_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features with spaces")
    make_cache(folder, *TAPS)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 300 rows of each split."""
    return make_cache(tmp_path_factory.mktemp("few features"), *TAPS, "--limit", "300").parent


@pytest.fixture
def copied(features_dir: Path, tmp_path: Path) -> Path:
    (path,) = features_dir.glob("*.h5")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    return copy


def places(folder: Path) -> list[str]:
    return ["--models-dir", str(folder / "models"), "--output-dir", str(folder / "output")]


def digests_taken(*arguments: str) -> int:
    """How often a command, in a process of its own, takes the sha256 of a whole feature file."""

    def work() -> int:
        take = checksum.file_digest

        def counting(descriptor: int) -> str:
            print("DIGEST")
            return take(descriptor)

        checksum.file_digest = counting
        return cli.main(list(arguments))

    outcome = faults.in_child(work)
    assert outcome.status == 0, outcome.said
    return outcome.said.count("DIGEST")


# --- help and mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["features", "--image-size", "16"], ["image size", "between 32 and", "Got 16"]),
        (["features", "--image-size", "abc"], ["image size", "whole number", "'abc'"]),
        (["features", "--dataset", "mnist"], ["dataset parameter", "cifar10, digits", "'mnist'"]),
        (["features", "--dataset", "digits", "--taps", "fc1"], ["taps", "'fc1'", "block1_conv1.avg"]),
        (["features", "--dataset", "digits", "--precision", "half"], ["precision", "'half'"]),
        (["features", "--dataset", "digits", "--batch-size", "0"], ["batch size", "Got 0"]),
        (["features", "--dataset", "digits", "--batch-size", "99999"], ["batch size", "1 and 1024", "Got 99999"]),
        (["features", "--dataset", "digits", "--threads", "0"], ["threads parameter", "between 1 and", "Got 0"]),
        (["features", "--dataset", "digits", "--threads", "99999"], ["threads parameter", "1 and 1024", "Got 99999"]),
        (["features", "--dataset", "digits", "--limit", "0"], ["limit", "Got 0"]),
        (["features", "--dataset", "digits", "--limit", "2000"], ["limit", "1,442 rows to train", "Got 2,000"]),
        (
            ["features", "--dataset", "digits", "--limit", "9", "--weights", "random"],
            ["limit", "as many rows as classes"],
        ),
        (["features", "--dataset", "digits", "--weights", "/no/such.h5"], ["weights", "existing file", "/no/such.h5"]),
        (
            ["features", "--dataset", "digits", "--data-dir", "x", "--frobnicate"],
            ["no flag --frobnicate", "features --help"],
        ),
        (["features", "--dataset", "cifar10", "--data-dir", "/dev/null"], ["/dev/null", "is a file"]),
        (["train", "--dataset", "digits", "--classifier", "forest"], ["classifier", "logistic, mlp", "'forest'"]),
        (["train", "--dataset", "digits", "--C", "0"], ["--C option", "Got 0"]),
        (["train", "--dataset", "digits", "--alpha", "1"], ["--alpha", "logistic"]),
        (["train", "--dataset", "digits", "--seed", "-1"], ["seed", "Got -1"]),
        (["train", "--classifier", "mlp", "--hidden-layer-sizes", "a,b"], ["--hidden-layer-sizes", "'a,b'"]),
        (["train", "--batch-size", "4"], ["no flag --batch-size"]),
        (["sweep", "--threads", "4"], ["no flag --threads"]),
        (["inspect", "x.h5", "--threads", "4"], ["no flag --threads"]),
        (["train", "--image-sise=64"], ["no flag --image-sise.", "Did you mean --image-size?"]),
        (["train", "digits"], ["digits is for", "Flags begin with --"]),
        (["features", "--taps", "block5_pol.avg"], ["'block5_pol.avg'", "Did you mean block5_pool.avg?"]),
        (["features", "--taps", "tpo"], ["'tpo'", "Did you mean top?"]),
        (["train", "--dataset", "cifar"], ["'cifar'", "Did you mean cifar10?"]),
        (["features", "--dataset", "digits", "--weights", "imagnet"], ["'imagnet'", "Did you mean imagenet?"]),
        (["train", "--C"], ["--C: expected one argument", "'python -m pipeline train --help'"]),
        (["train", "--classifier", "logistc"], ["'logistc'", "Did you mean logistic?"]),
        (["inspect"], ["file parameter must be given", "FILE=FILE.h5"]),
        (["inspect", "/no/such.h5"], ["no feature file", "/no/such.h5"]),
        (["inspect", "/dev"], ["is a folder"]),
        (["--quiet"], ["ame a command"]),
        (["predikt"], ["no command predikt.", "Did you mean predict?"]),
    ],
)
def test_mistakes_get_one_paragraph(call: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    where = (
        [] if not arguments or arguments[0] not in ("features", "train") else ["--features-dir", str(tmp_path / "f")]
    )
    assert_user_error(call(*arguments, *where), *words)
    assert not list(tmp_path.rglob("*.h5"))


def test_a_batch_beyond_the_limit_of_ulimit_is_explained(tmp_path: Path) -> None:
    """TensorFlow would crash."""
    command = f"ulimit -v 4000000; exec {sys.executable} -m pipeline features"
    flags = [*DIGITS, "--image-size", "128", "--batch-size", "512", "--features-dir", str(tmp_path / "f")]
    done = subprocess.run(
        ["bash", "-c", f'{command} "$@"', "bash", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert_user_error(done, "batch size parameter", "512 images at 128 px", "Choose --batch-size")


def test_threads_beyond_the_cores_are_warned_of(
    copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "cores", lambda: 2)
    asked = {"dataset": "digits", "weights": "random", "precision": "float32", "image_size": 32, "taps": TAPS[1]}
    with caplog.at_level("WARNING", logger="pipeline"):
        extract.extract(ComputeOptions(**asked, features_dir=copied.parent, threads=2))  # type: ignore[arg-type]
        assert "threads" not in caplog.text
        extract.extract(ComputeOptions(**asked, features_dir=copied.parent, threads=3))  # type: ignore[arg-type]
    assert "3 threads on 2 cores" in caplog.text


@pytest.mark.parametrize("flag", ["--features-dir", "--models-dir", "--output-dir"])
def test_unwritable_folders(call: Run, copied: Path, tmp_path: Path, flag: str) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    blocked = str(tmp_path / "file" / "folder")
    if flag == "--features-dir":
        done = call("features", *DIGITS, *TAPS, flag, blocked)
    else:
        done = call(
            "train", *DIGITS, *TAPS, "--C", "0.1", "--features-dir", copied.parent, *places(tmp_path), flag, blocked
        )
    assert_user_error(done, blocked.rpartition("/")[0], "choose another folder")


def test_a_faulty_data_set_is_named(call: Run, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(bytes(100))
    assert_user_error(call("features", "--data-dir", tmp_path), "incomplete", "data_batch_2.bin", "test_batch.bin")


def test_train_without_a_cache_says_which_command_makes_it(call: Run, tmp_path: Path) -> None:
    done = call("train", *DIGITS, "--features-dir", tmp_path / "my features")
    assert_user_error(
        done, "There is no feature cache", "'python -m pipeline features --image-size 32 --dataset digits",
        f"--features-dir '{tmp_path}/my features' --weights random --precision float32'",
    )  # fmt: skip


def test_taps_that_are_not_in_the_cache(call: Run, features_dir: Path) -> None:
    done = call("train", *DIGITS, "--taps", "block2_conv1.avg", "--features-dir", features_dir)
    assert_user_error(done, "no feature cache", "block2_conv1.avg")


# --- caches that were changed -----------------------------------------------------------------


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def edited(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["train/labels"][0] = 9 - file["train/labels"][0]


def renamed_over(path: Path) -> None:
    """A valid cache of another spec under this one's name."""
    other = make_cache(path.parent / "other", *TAPS, "--limit", "100")
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("change", "word"), [(truncated, "truncated"), (edited, "edited"), (renamed_over, "limit: None here, 100 there")]
)
@pytest.mark.parametrize("command", ["features", "train"])
def test_a_changed_cache_is_refused_and_kept(
    call: Run, copied: Path, tmp_path: Path, change, word: str, command: str
) -> None:  # type: ignore[no-untyped-def]
    change(copied)
    before = copied.read_bytes()
    done = call(
        command, *DIGITS, *TAPS, "--features-dir", copied.parent, *(places(tmp_path) if command == "train" else [])
    )
    assert_user_error(done, str(copied), word, "Delete it")
    assert copied.read_bytes() == before
    assert not list((tmp_path).rglob("metrics.json"))


def test_inspect(call: Run, copied: Path) -> None:
    done = call("inspect", copied, *DIGITS, *TAPS, "--verify")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 24, "one screen"
    for text in (
        "yes, all",
        "random: untrained",
        "1,442 train, 355 test",
        "block5_pool.avg (512)",
        "image size 32, fit squash",
        "serves it",
    ):
        assert text in done.stdout
    differing = call("inspect", copied, *DIGITS, "--image-size", "64", "--limit", "50")
    assert "image_size: 64 here, 32 there" in differing.stdout
    assert "limit: 50 here, None there" in differing.stdout

    edited(copied)
    shown = call("inspect", copied, *DIGITS, *TAPS)
    assert shown.returncode == 0
    assert "verifies   NO" in shown.stdout
    assert_user_error(call("inspect", copied, *DIGITS, *TAPS, "--verify"), "edited or damaged")


def test_a_closed_pipe_is_no_error(copied: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "inspect", str(copied), *DIGITS],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == b""
    assert child.wait() == 141


# --- both stages without TensorFlow -----------------------------------------------------------


def run_and_list_modules(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from pipeline.cli import main; status = main(sys.argv[1:]);"
        "print('LOADED', *({'tensorflow', 'keras', 'sklearn'} & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_hit_needs_no_tensorflow(copied: Path) -> None:
    before = copied.stat().st_mtime_ns
    done = run_and_list_modules("features", *DIGITS, *TAPS, "--features-dir", str(copied.parent))
    assert done.returncode == 0
    assert "is valid" in done.stdout
    assert "untrained" in done.stderr
    assert done.stderr.splitlines()[-1] == "LOADED"
    assert copied.stat().st_mtime_ns == before
    fewer = run_and_list_modules(
        "features", *DIGITS, "--precision", "auto", "--taps", "top", "--features-dir", str(copied.parent)
    )
    assert fewer.returncode == 0
    assert "is valid" in fewer.stdout, "a cache with more taps, of either precision, serves"


@pytest.mark.parametrize("classifier", ["logistic", "mlp", "ridge"])  # one of each way of learning
def test_train(few: Path, tmp_path: Path, classifier: str, call: Run) -> None:
    own = {"mlp": ["--max-epochs", "6", "--hidden-layer-sizes", "16"]}.get(classifier, [])
    flags = ["train", *FEW, *TAPS, "--classifier", classifier, *own, "--features-dir", str(few)]
    flags += places(tmp_path)
    done = call(*flags)
    assert done.returncode == 0, done.stderr
    assert "weighted avg" in done.stdout
    assert "untrained" in done.stdout, "every output says so"

    (folder,) = (path.parent for path in (tmp_path / "output").glob("*/metrics.json"))
    assert folder.name.startswith(f"digits-{classifier}-")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        (*run_folder.RUN_FILES, *run_folder.DRAWINGS, run_folder.PROBABILITIES)
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) >= {
        "run", "created", "dataset", "features", "classifier", "seed", "accuracy", "log_loss", "per_class", "seconds",
        "versions", "interval", "calibration", "converged", "convergence",
    }  # fmt: skip
    low, high = metrics["interval"]["test"]
    assert low < metrics["accuracy"]["test"] < high
    assert 0 <= metrics["calibration"]["ece"] < 0.5
    assert set(metrics["seconds"]) == {"load", "search", "fit", "evaluate", "total"}
    assert metrics["features"]["columns"] == 576
    assert metrics["features"]["weights"] == "random"
    assert metrics["dataset"]["official"] is True
    assert sum(item["support"] for item in metrics["per_class"].values()) == 300

    lines = (folder / "predictions.csv").read_text().splitlines()
    assert lines[0] == "index,label,predicted,confidence"
    assert len(lines) == 301
    right = np.mean([row.split(",")[1] == row.split(",")[2] for row in lines[1:]])
    assert right == pytest.approx(metrics["accuracy"]["test"])
    assert "untrained weights" in (folder / "report.txt").read_text()

    (model,) = (tmp_path / "models").glob("*.joblib")
    description = json.loads(model.with_suffix(".json").read_text())
    assert description["classes"] == [str(digit) for digit in range(10)]
    assert description["weights"] == "random"

    import joblib

    (path,) = few.glob("*.h5")
    with store.open(path) as cache:
        test = cache.features("test", metrics["features"]["taps"])
    guesses = joblib.load(model).predict(test)
    assert [str(guess) for guess in guesses] == [row.split(",")[2] for row in lines[1:]]

    again = run_and_list_modules(*flags)
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert again.stderr.splitlines()[-1] == "LOADED", "found without loading scikit-learn"
    if classifier == "ridge":
        forced = run_and_list_modules(*flags, "--force")
        assert forced.returncode == 0
        assert forced.stderr.splitlines()[-1] == "LOADED sklearn"
        printed = call(*flags, "--figures", "pdf")
        assert printed.returncode == 0, printed.stderr
        assert all((folder / name).read_bytes().startswith(b"%PDF") for name in run_folder.PRINTS)
        assert "nothing to compute" in call(*flags, "--figures", "pdf").stderr
        before = (folder / "metrics.json").read_bytes()
        assert call(*flags, "--alpha", "2", *QUICK).returncode == 0
        assert len(list((tmp_path / "output").glob("*/metrics.json"))) == 2, "another option is another run"
        assert (folder / "metrics.json").read_bytes() == before


def test_train_works_where_only_the_features_are(few: Path, tmp_path: Path) -> None:
    """A cache copied to a machine without the data set: made here by hiding the digits from the loader."""
    code = (
        "import sys; from pipeline import cli; from pipeline.data import datasets\n"
        "def load(*arguments, **options): raise datasets.NotFoundHere('not here')\n"
        "datasets.load_dataset = load\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    flags = ["train", *FEW, *TAPS, *QUICK, "--C", "0.1", "--features-dir", str(few), *places(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "using the features that are there" in done.stderr


def test_an_interrupted_train_leaves_nothing(features_dir: Path, tmp_path: Path) -> None:
    import signal

    command = [sys.executable, "-m", "pipeline", "train", *DIGITS, *TAPS, "--features-dir", str(features_dir)]
    child = subprocess.Popen(
        [*command, *places(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("logistic on"):
            child.send_signal(signal.SIGTERM)
            break
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 130
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_run_takes_the_digest_of_its_cache_once(few: Path, tmp_path: Path) -> None:
    """However often it reads from it: one descriptor stays open."""
    asked = [*FEW, *TAPS, "--features-dir", str(few)]
    assert digests_taken("features", *asked) == 1
    both = make_cache(tmp_path / "both", *FEW[-2:], "--taps", "block5_pool.avg").parent  # beside one with more taps
    for path in few.glob("*.h5"):
        (both / path.name).write_bytes(path.read_bytes())
    for taps in ("block5_pool.avg", "block1_conv1.avg"):
        assert digests_taken("features", *FEW, "--taps", taps, "--features-dir", str(both)) == 1
    train = ["train", *asked, *places(tmp_path), *QUICK, "--classifier", "ridge", "--alpha", "1"]
    assert digests_taken(*train) == 1
    assert digests_taken(*train) == 0, "a run that is there has no use for it"
    sweep = ["sweep", *FEW, *QUICK, "--taps", "block5_pool.avg", "--features-dir", str(few), *places(tmp_path)]
    assert digests_taken(*sweep, "--classifier", "ridge", "--grid", "alpha=1,10") == 1
