"""Never lost: kills, full disks and broken disks at every file operation, and then the same arrays."""

from __future__ import annotations

import ast
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import faults
import numpy as np
import pictures
import pytest
from conftest import ROOT

from pipeline import cli
from pipeline.features import store


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory, where there is such a place: an fsync takes a disk longer than all else here."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("reference")
    outcome = faults.run(folder)
    assert outcome.status == 0, outcome.said
    return faults.arrays(folder)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    return faults.trace(tmp_path_factory.mktemp("trace") / "features")


def _new(parent: Path) -> Path:
    """A features folder that is not there yet, in a folder that is: as where the operations were counted."""
    parent.mkdir()
    return parent / "features"


def _batches(points: list[int]) -> list[list[int]]:
    """Points four at a time, which run side by side: mostly they wait for the disk."""
    return [points[start : start + 4] for start in range(0, len(points), 4)]


def _goes_on(folders: list[Path], reference: dict[str, np.ndarray]) -> None:
    """After whatever happened nothing is half there, and the same run again gives the same arrays and nothing else."""
    for folder in folders:
        if folder.exists():
            faults.never_half(folder)
    outcomes = faults.in_children([faults.work_of(folder) for folder in folders])
    for folder, outcome in zip(folders, outcomes, strict=True):
        assert outcome.status == 0, (folder, outcome.said)
        assert faults.same(faults.arrays(folder), reference), folder
        assert faults.leftovers(folder) == [], folder


def test_write_then_fsync_then_rename_then_directory(operations: list[tuple[str, str]]) -> None:
    """The order that makes a file durable, for every file that gets a name."""
    renames = [index for index, (name, _) in enumerate(operations) if name == "rename"]
    assert len(renames) == 5, "four parts and the final file"
    for index in renames:
        start = max(i for i in range(index) if operations[i][0] == "open_new")
        names = [name for name, _ in operations[start + 1 : index]]
        assert names[0] == "reserve"
        assert names[-1] == "fsync", "fsync comes last before the rename"
        assert set(names[1:-1]) == {"write", "truncate"}
        assert operations[index + 1][0] == "sync_directory"
    assert operations[-1] == ("unlink", operations[-1][1])
    assert operations[-1][1].endswith(".lock")
    removals = [index for index, (name, _) in enumerate(operations) if name == "unlink"]
    assert min(removals) > renames[-1] + 1, "parts go after the final file is durable"


def test_killed_at_every_point(
    operations: list[tuple[str, str]], reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Before every operation, which is after the one before it, and after the last."""
    for numbers in _batches([*range(1, 2 * len(operations), 2), 2 * len(operations)]):
        folders = [_new(tmp_path / str(number)) for number in numbers]
        works = [faults.work_of(folder, faults.kill_at(n)) for folder, n in zip(folders, numbers, strict=True)]
        assert {outcome.status for outcome in faults.in_children(works)} == {-signal.SIGKILL}
        _goes_on(folders, reference)


def test_an_error_at_every_point(
    operations: list[tuple[str, str]], reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """A full disk before every operation, and a broken one after it."""
    last, kinds = 2 * len(operations), list(faults.ERRORS.values())
    for numbers in _batches([*range(1, last + 1)]):
        folders = [_new(tmp_path / str(number)) for number in numbers]
        acts = [faults.raise_at(number, kinds[number % 2 - 1]) for number in numbers]
        works = [faults.work_of(folder, act) for folder, act in zip(folders, acts, strict=True)]
        for number, folder, outcome in zip(numbers, folders, faults.in_children(works), strict=True):
            if number < last - 1:
                assert outcome.is_user_error, (number, outcome)
            else:  # the lock's own removal, when everything is done: one left behind locks nothing
                assert outcome.status == 0
                assert faults.same(faults.arrays(folder), reference)
        _goes_on(folders, reference)


def test_killed_again_and_again(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Every run gets only a little further than the one before."""
    for number in range(30, 150, 10):
        outcome = faults.run(tmp_path, faults.kill_at(number))
        faults.never_half(tmp_path)
        if outcome.status == 0:
            break
    assert faults.run(tmp_path).status == 0
    assert faults.same(faults.arrays(tmp_path), reference)


def test_damaged_parts_are_computed_again_and_said(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    faults.run(tmp_path / "killed", faults.kill_at(70))
    for trial in range(12):
        folder = Path(shutil.copytree(tmp_path / "killed", tmp_path / str(trial)))
        (parts_folder,) = folder.glob("*.parts")
        parts = sorted(parts_folder.glob("t*.h5"))
        assert len(parts) >= 2
        victim = parts[int(generator.integers(len(parts)))]
        content = bytearray(victim.read_bytes())
        position = int(generator.integers(len(content)))
        if trial % 4 == 0:
            del content[position:]
        else:
            content[position] ^= 1 << int(generator.integers(8))
        victim.write_bytes(content)
        outcome = faults.run(folder)
        assert outcome.status == 0
        assert "a part of an earlier run is computed again" in outcome.said
        assert "Delete it" not in outcome.said, "there is nothing for anyone to do"
        assert victim.name in outcome.said
        assert faults.same(faults.arrays(folder), reference), trial


def test_a_file_size_limit_is_a_clear_error_and_the_run_goes_on(
    reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    def limited() -> int:
        faults.install(lambda number: None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        return cli.main(faults.arguments(tmp_path))

    outcome = faults.in_child(limited)
    assert outcome.is_user_error, outcome
    assert "File too large" in outcome.said
    assert "are kept in" in outcome.said
    faults.never_half(tmp_path)
    assert list(tmp_path.glob("*.parts/t*.h5")), "the parts fitted, the final file did not"
    outcome = faults.run(tmp_path)
    assert outcome.status == 0
    assert "going on where" in outcome.said or "joining" in outcome.said
    assert faults.same(faults.arrays(tmp_path), reference)


def test_a_full_file_system_is_a_clear_error_and_the_run_goes_on(
    reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with faults.small_file_system(tmp_path) as disk:
        if disk is None:
            pytest.skip("mounting a small file system needs root and a container that allows it")
        folder = tmp_path / "features"
        kept: list[int] = []
        for room in range(4_000, 200_000, 4_000):
            disk.leave(room)
            outcome = faults.run_unchecked(folder)
            if outcome.status == 0:
                break
            assert outcome.is_user_error, outcome
            assert "No space left on device" in outcome.said
            faults.never_half(folder)
            kept.append(len(list(folder.glob("*.parts/t*.h5"))))
            if kept[-1] == 4:
                break
        assert kept == sorted(kept), "what is there stays"
        assert (kept[0], kept[-1]) == (0, 4), "first nothing finds room, in the end only the final file does not"
        disk.leave_all()
        outcome = faults.run(folder)
        assert outcome.status == 0
        assert "a part of an earlier run is computed again" not in outcome.said
        assert faults.same(faults.arrays(folder), reference)
        assert faults.leftovers(folder) == []


def test_too_little_room_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    def work() -> int:
        import shutil
        from collections import namedtuple

        faults.install(lambda number: None)
        usage = namedtuple("usage", "total used free")
        shutil.disk_usage = lambda path: usage(100, 99, 1)  # type: ignore[assignment,return-value]
        return cli.main(faults.arguments(tmp_path))

    outcome = faults.in_child(work)
    assert outcome.is_user_error
    assert "has 1 bytes free" in outcome.said
    assert not list(tmp_path.glob("*.parts/*"))


# --- two at once ------------------------------------------------------------------------------


def test_two_started_together(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    for trial in range(5):
        folder = tmp_path / str(trial)
        one, two = faults.together(folder)
        assert [one.status, two.status] == [0, 0], one.said + two.said
        said = one.said + two.said
        # A slow disk adds a line of progress, so it is the line at its beginning that counts.
        assert len(re.findall(r"joining \d+ parts?", said)) == 1, f"one computed, the other found it:\n{said}"
        assert said.count("is valid") == 1
        assert faults.same(faults.arrays(folder), reference)
        assert faults.leftovers(folder) == []


def test_one_killed_while_it_holds_the_lock(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    holder, waiter = faults.holder_killed(tmp_path)
    assert waiter.status == 0
    assert re.search(rf"waiting for process {holder} on \S+, which is computing", waiter.said)
    assert faults.same(faults.arrays(tmp_path), reference)
    assert faults.leftovers(tmp_path) == []


def test_a_lock_left_by_a_dead_process_locks_nothing(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    assert faults.run(tmp_path, faults.kill_at(20)).status == -signal.SIGKILL
    (lock,) = tmp_path.glob("*.lock")
    assert lock.read_text().startswith("process ")
    outcome = faults.run(tmp_path)
    assert outcome.status == 0
    assert "waiting" not in outcome.said
    assert faults.same(faults.arrays(tmp_path), reference)


def test_a_reader_during_a_write_sees_nothing_or_everything(tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as output:
        child = faults.start_child(faults.work_of(tmp_path), output.fileno())
        ended, status = 0, 0
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            for path in tmp_path.glob("*.h5"):
                store.verify(path)
    assert status == 0
    assert len(list(tmp_path.glob("*.h5"))) == 1, "and at its end everything is there"


# --- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on(
    signal_number: signal.Signals, reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    outcome = faults.run(tmp_path, faults.kill_at(45, signal_number))
    assert outcome.status == 130, outcome.said
    assert re.search(r"Interrupted\. \d+ of 20 rows are kept in .*\.parts\. Run the same command again", outcome.said)
    assert "Traceback" not in outcome.said
    assert not list(tmp_path.glob("*.parts/.*.tmp")), "the part begun is abandoned cleanly"
    outcome = faults.run(tmp_path)
    assert outcome.status == 0
    assert faults.same(faults.arrays(tmp_path), reference)


def test_a_run_may_be_stopped_at_any_point(
    operations: list[tuple[str, str]], reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    said = []
    for number in range(1, 2 * len(operations) + 1, 9):
        folder = _new(tmp_path / str(number))
        outcome = faults.run(folder, faults.kill_at(number, signal.SIGTERM))
        assert outcome.status == 130, (number, outcome)
        assert "Traceback" not in outcome.said
        said.append(outcome.said.splitlines()[-1])
        _goes_on([folder], reference)
    assert any("20 of 20 rows are kept" in line for line in said)
    assert "is complete: nothing is left to compute" in said[-2]


def test_what_an_earlier_run_left_counts_as_kept(tmp_path: Path) -> None:
    """Also when the rerun is stopped before it came to use it."""
    faults.run(tmp_path, faults.kill_at(82))
    first, *others = sorted(tmp_path.glob("*.parts/tr*.h5")) + sorted(tmp_path.glob("*.parts/te*.h5"))
    assert len(others) == 2
    first.unlink()
    outcome = faults.run(tmp_path, delay=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert outcome.status == 130
    assert "Interrupted. 10 of 20 rows are kept in" in outcome.said


# --- folders of images ------------------------------------------------------------------------


def test_a_folder_that_grew_survives_kills_stops_and_errors(tmp_path: Path) -> None:
    """Rows, names, digests and the list of what was not used; some rows are taken over from an older cache."""
    images, before = faults.grown_folder(tmp_path)
    faults.run(tmp_path / "reference", images=images)
    reference = faults.arrays(tmp_path / "reference")
    assert [line.split(b":")[0] for line in reference["skipped"]] == [b"ant/bad.png", b"bee/notes.txt"]

    def new(name: str) -> Path:
        (tmp_path / name).mkdir()
        return Path(shutil.copy2(before, tmp_path / name)).parent

    points = 2 * len(faults.trace(new("trace"), images))
    for number in range(5, points, 23):
        for act in (faults.kill_at(number), faults.kill_at(number, signal.SIGTERM), faults.raise_at(number, 28)):
            folder = new(f"{number} {id(act)}")
            outcome = faults.run(folder, act, images=images)
            assert outcome.status in (-signal.SIGKILL, 130, 2), outcome
            assert "Traceback" not in outcome.said
            again = faults.run(folder, images=images)
            assert again.status == 0, again.said
            assert faults.same(faults.arrays(folder, before), reference), number
            assert faults.leftovers(folder) == []


def test_two_specs_at_once_do_not_disturb_each_other(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    images = tmp_path / "insects"
    pictures.fill(images, count=6)
    alone, folder = tmp_path / "alone", tmp_path / "features"
    assert faults.run(alone, images=images).status == 0
    for outcome in faults.in_children([faults.work_of(folder), faults.work_of(folder, images=images)]):
        assert outcome.status == 0, outcome.said
        assert "waiting" not in outcome.said
    (other,) = alone.glob("*.h5")
    (own,) = (path for path in folder.glob("*.h5") if path.name != other.name)
    assert faults.same(faults.arrays(folder, other), reference)
    assert faults.same(faults.arrays(folder, own), faults.arrays(alone))


def test_every_operation_has_its_points() -> None:
    """Whatever changes a file is among the operations that are numbered; no module of stage one goes round them."""
    changing = {"pwrite", "write", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "ftruncate", "remove"}
    for module in (ROOT / "pipeline" / "features").glob("*.py"):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_os(node.value)}
        assert not used & changing, module
    tree = ast.parse((ROOT / "pipeline" / "common" / "atomic.py").read_text(encoding="utf-8"))
    found = {
        function.name
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in changing and (_is_os(node.value) or node.attr[-2:] == "ir")
    }
    # A lock names its holder as a courtesy, which may fail unnoticed; new_folder is stage two's.
    assert found - {"lock", "new_folder"} <= set(faults.PRIMITIVES)


def _is_os(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "os"


def test_the_benchmark_of_durability_turns_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import durability

    def work() -> int:
        os.fsync = lambda descriptor: os._exit(77)
        with durability.unsafe():
            return faults.work_of(tmp_path)()

    assert faults.run(tmp_path / "other").status == 0
    outcome = faults.in_child(work)
    assert outcome.status == 0, outcome.said


# --- the real network -------------------------------------------------------------------------


@pytest.mark.tensorflow
def test_random_kills_of_real_extraction(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tests" / "torture.py", "--only", "kills", "--kills", "1", "--folder", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1 +kills at random times.* 0 lost rows, 0 wrong rows, 0 tracebacks", done.stdout)
