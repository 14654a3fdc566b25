"""A folder of images as a data set: who its rows are, what is left out and why, and what it costs when it grows."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path

import faults
import h5py
import numpy as np
import pictures
import pytest
from conftest import Run, assert_user_error
from PIL import Image
from test_cli import digests_taken, places
from test_store import reseal

from pipeline import cli
from pipeline.common.errors import UserError
from pipeline.data import datasets
from pipeline.data.dataset import Dataset, Skipped, Unusable
from pipeline.data.options import FolderOptions, ImageOptions
from pipeline.features import layout, store


def load(folder: Path, **options: bool) -> Dataset:
    return datasets.load_dataset(str(folder), Path("data"), download=False, how=FolderOptions(**options))


def names(dataset: Dataset, split: str) -> list[str]:
    assert dataset.members is not None
    return list(dataset.members[split].names)


def reasons(dataset: Dataset) -> dict[str, str]:
    return {item.file: item.reason for item in dataset.skipped}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures.fill(tmp_path / "insects", count=10)
    return tmp_path / "insects"


# --- what its rows are ------------------------------------------------------------------------


def test_rows_labels_and_names_belong_together(folder: Path) -> None:
    dataset = load(folder)
    assert dataset.name == "insects"
    assert dataset.class_names == ("ant", "bee")
    assert dataset.rows == {"train": 16, "test": 4}
    assert sorted(names(dataset, "train") + names(dataset, "test")) == sorted(
        f"{label}/{i:03d}.png" for label in ("ant", "bee") for i in range(10)
    )
    for split in ("train", "test"):
        images, labels = dataset.splits[split].images, dataset.splits[split].labels
        assert len(images) == len(labels) == len(names(dataset, split))
        for row, name in enumerate(names(dataset, split)):
            assert dataset.class_names[labels[row]] == name.split("/")[0]
            np.testing.assert_array_equal(images[row], np.asarray(Image.open(folder / name)))
    assert np.bincount(dataset.splits["test"].labels).tolist() == [2, 2], "stratified"
    assert set(dataset.splits["train"].labels[:2]) == {0, 1}, "the first rows are of every class"


def test_given_splits_are_kept(tmp_path: Path) -> None:
    pictures.fill(tmp_path / "x" / "train", count=4)
    pictures.fill(tmp_path / "x" / "test", count=2, seed=500)
    dataset = load(tmp_path / "x")
    assert dataset.rows == {"train": 8, "test": 4}
    assert all(name.startswith("test/") for name in names(dataset, "test"))
    assert dataset.class_names == ("ant", "bee")


def test_the_made_split_depends_on_the_images_alone(folder: Path) -> None:
    def test_images() -> set[bytes]:
        dataset = load(folder)
        return {digest.tobytes() for digest in dataset.members["test"].digests}  # type: ignore[index]

    before = test_images()
    for path in sorted((folder / "ant").iterdir()):
        path.rename(path.with_name(f"renamed {path.name}"))
    assert test_images() == before
    (folder / "bee" / "one more.png").write_bytes(pictures.png(77))
    assert len(before - test_images()) <= 1
    shutil.copy(folder / "bee" / "000.png", folder / "bee" / "copy.png")
    dataset = load(folder)
    (side,) = [split for split in ("train", "test") if "bee/000.png" in names(dataset, split)]
    assert "bee/copy.png" in names(dataset, side), "copies stay together"


def test_the_digest_covers_names_bytes_and_classes(folder: Path, tmp_path: Path) -> None:
    before = load(folder).digest
    shutil.copytree(folder, tmp_path / "elsewhere" / "insects")
    assert load(tmp_path / "elsewhere" / "insects").digest == before
    seen = {before}

    def changed() -> None:
        digest = load(folder).digest
        assert digest not in seen
        seen.add(digest)

    (folder / "ant" / "000.png").write_bytes(pictures.png(99))
    changed()
    (folder / "ant" / "000.png").rename(folder / "ant" / "zzz.png")
    changed()
    (folder / "ant" / "zzz.png").unlink()
    changed()
    (folder / "bee").rename(folder / "wasp")
    changed()
    (folder / "ant" / "notes.txt").write_text("left out, but listed")
    changed()
    (folder / "ant" / ".hidden").write_text("not looked at")
    (folder / "README.txt").write_text("not in a class")
    assert load(folder).digest in seen


def test_the_name_cannot_pass_for_a_known_data_set(tmp_path: Path) -> None:
    pictures.fill(tmp_path / "digits")
    assert load(tmp_path / "digits").name == "digits-folder"
    pictures.fill(tmp_path / "新 照片")
    assert load(tmp_path / "新 照片").name == "新-照片", "of a script without English letters it keeps its own"
    assert datasets.load_dataset("digits", tmp_path, download=False).rows["train"] == 1442


def test_many_classes_cost_no_more_than_few(tmp_path: Path) -> None:
    def seconds(classes: int, files: int) -> float:
        folder = tmp_path / f"{classes} classes"
        for label in range(classes):
            (folder / f"{label}").mkdir(parents=True)
            for number in range(files):
                (folder / f"{label}" / f"{number}.jpg").write_bytes(b"\xff\xd8\xff %d %d" % (label, number))
        began = time.process_time()
        load(folder)
        return time.process_time() - began

    assert seconds(3000, 3) < 3 * seconds(3, 3000)


# --- what is left out -------------------------------------------------------------------------


def test_what_can_be_told_without_decoding_is_listed(folder: Path) -> None:
    for name, (make, _) in pictures.FAULTS.items():
        (folder / "ant" / name).write_bytes(make(3))
    (folder / "stray.png").write_bytes(pictures.png(800))
    os.mkfifo(folder / "ant" / "pipe.png")
    (folder / "ant" / "nowhere.png").symlink_to("missing.png")
    found = reasons(load(folder))
    assert set(found) == {
        *(f"ant/{name}" for name in ("empty.jpg", "text.jpg", "notes.txt", "image.dat", "document.pdf")),
        "stray.png", "ant/pipe.png", "ant/nowhere.png",
    }  # fmt: skip
    assert found["stray.png"] == "not in a class folder"
    assert "leads nowhere" in found["ant/nowhere.png"]


def test_links_out_of_the_folder_are_followed_only_when_asked(folder: Path, tmp_path: Path) -> None:
    pictures.fill(tmp_path / "outside", ("more",), count=4, seed=300)
    (folder / "ant" / "link.png").symlink_to(tmp_path / "outside" / "more" / "000.png")
    (folder / "cat").symlink_to(tmp_path / "outside" / "more")
    (folder / "ant" / "loop").symlink_to(folder)
    (folder / "ant" / "again.png").symlink_to(folder / "ant" / "001.png")
    (folder / "ant" / "to").mkdir()
    (folder / "bee" / "fro").mkdir()
    (folder / "ant" / "to" / "fro").symlink_to("../../bee/fro")
    (folder / "bee" / "fro" / "to").symlink_to("../../ant/to")
    dataset = load(folder)
    assert dataset.class_names == ("ant", "bee")
    assert "not followed" in reasons(dataset)["ant/link.png"]
    assert "not followed" in reasons(dataset)["cat"]
    assert "lies in" in reasons(dataset)["ant/loop"]
    assert "lies in" in reasons(dataset)["ant/to/fro/to"], "links that lead to each other come to an end"
    everything = names(dataset, "train") + names(dataset, "test")
    assert "ant/again.png" in everything, "a link that stays inside is a file like any other"
    followed = load(folder, follow_links=True)
    # ant/link.png is the same image as one in cat, so it is under two classes
    assert followed.class_names == ("ant", "bee", "cat")
    assert "conflict" in reasons(followed)["ant/link.png"]


def test_a_leak_is_called_a_leak(tmp_path: Path) -> None:
    pictures.fill(tmp_path / "x" / "train", count=4)
    pictures.fill(tmp_path / "x" / "test", count=3, seed=500)
    shutil.copy(tmp_path / "x" / "train" / "ant" / "002.png", tmp_path / "x" / "test" / "ant" / "seen.png")
    dataset = load(tmp_path / "x")
    assert reasons(dataset) == {
        "test/ant/seen.png": "a leak between train and test: the same bytes as train/ant/002.png, left out of test"
    }
    assert dataset.rows == {"train": 8, "test": 6}
    assert dataset.skipped[0].is_leak
    assert Skipped.stored(*dataset.skipped[0][:2]) == dataset.skipped[0], "as a feature file keeps it"


def test_one_image_under_two_classes_is_a_conflict(folder: Path) -> None:
    shutil.copy(folder / "ant" / "002.png", folder / "bee" / "same.png")
    found = reasons(load(folder))
    assert set(found) == {"ant/002.png", "bee/same.png"}
    assert "as bee/same.png" in found["ant/002.png"]


def test_names_need_not_be_utf8(folder: Path) -> None:
    raw = os.fsencode(folder / "ant") + b"/caf\xe9 \xff.png"
    Path(os.fsdecode(raw)).write_bytes(pictures.png(700))
    everything = [name for split in ("train", "test") for name in names(load(folder), split)]
    assert os.fsdecode(b"ant/caf\xe9 \xff.png") in everything


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_listed(folder: Path) -> None:
    (folder / "ant" / "000.png").chmod(0)
    assert "Permission denied" in reasons(load(folder))["ant/000.png"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_files_without_permission_are_listed_for_who_is_not_root(folder: Path) -> None:
    (folder / "ant" / "000.png").chmod(0)
    (folder / "bee").chmod(0o700)
    shutil.copytree(folder / "ant", folder / "cat")

    def work() -> int:
        # The folders above are root's own: the data set is reached by a descriptor.
        os.chdir(folder)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for item in load(Path()).skipped:
            print(item.file, item.reason)
        return 0

    for path in (folder, *folder.glob("[ac]*")):
        path.chmod(0o755)
    (folder / "cat" / "000.png").chmod(0o644)
    for path in (folder / "cat").iterdir():
        path.write_bytes(pictures.png(int(path.stem) + 9000))
        path.chmod(0o644)
    outcome = faults.in_child(work)
    assert "ant/000.png unreadable: Permission denied" in outcome.said
    assert "bee unreadable: Permission denied" in outcome.said
    assert outcome.status == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, ["no class folders"]),
        (lambda folder: (folder / "ant").mkdir(), ["no class folders"]),
        (lambda folder: (folder / "a.png").write_bytes(pictures.png(1)), ["no image that can be used", "not in a class"]),
        (lambda folder: pictures.fill(folder, ("ant",)), ["images of one class, ant", "at least two"]),
        (lambda folder: (pictures.fill(folder), pictures.fill(folder, ("cat",), 1, 900)), ["at least 3", "cat (1)"]),
        (lambda folder: pictures.fill(folder, ("ant", "Ant")), ["ant", "Ant", "differ only in case"]),
        (lambda folder: pictures.fill(folder, ("e\u0301t\u00e9", "\u00e9te\u0301")), ["accents"]),
        (lambda folder: pictures.fill(folder / "train"), ["has train, but no test"]),
        (lambda folder: (pictures.fill(folder / "Train"), pictures.fill(folder / "TEST")), ["TEST and Train", "Rename"]),
        (lambda folder: pictures.fill(folder, ("train", "test")), ["test and train", "folder for each class"]),
        (lambda folder: pictures.fill(folder, (os.fsdecode(b"\xff"), "b")), ["not printable UTF-8"]),
        (
            lambda folder: (pictures.fill(folder / "train", count=1), pictures.fill(folder / "test", seed=500)),
            ["at least 2 different images in train", "ant (1 in train)"],
        ),
    ],
)  # fmt: skip
def test_folders_that_make_no_data_set(tmp_path: Path, make, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "mine"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)


def test_an_image_that_changes_meanwhile_ends_the_run(folder: Path) -> None:
    dataset = load(folder)
    images = dataset.splits["train"].images
    first = folder / names(dataset, "train")[0]
    first.write_bytes(pictures.png(4711))
    with pytest.raises(UserError, match="changed while it was being used"):
        images.decode(0, ImageOptions(image_size=32))  # type: ignore[union-attr]
    first.unlink()
    with pytest.raises(UserError, match="No such file"):
        images.decode(0, ImageOptions(image_size=32))  # type: ignore[union-attr]


def test_a_fault_found_by_decoding_is_that_rows_alone(folder: Path) -> None:
    (folder / "ant" / "000.png").write_bytes(pictures.FAULTS["truncated.png"][0](1))
    dataset = load(folder)
    split = "train" if "ant/000.png" in names(dataset, "train") else "test"
    row = names(dataset, split).index("ant/000.png")
    with pytest.raises(Unusable, match="damaged"):
        dataset.splits[split].images.decode(row, ImageOptions(image_size=32))  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"ant/000\.png"):
        dataset.splits[split].images[row]


# --- the cache --------------------------------------------------------------------------------

TAPS = ["--taps", "block1_conv1.avg,block2_conv1.avg"]


def arguments(folder: Path, features_dir: Path, *more: str) -> list[str]:
    own = ["--weights", "random", "--precision", "float32", "--image-size", "64"]
    return ["features", "--dataset", str(folder), *own, *TAPS, "--features-dir", str(features_dir), *more]


def extract(folder: Path, features_dir: Path, *more: str) -> faults.Outcome:
    """Stage one under a cheap network in a process of its own, which counts what goes through it."""
    faults.random_weights()

    def work() -> int:
        faults.install(lambda number: None)
        from pipeline.network import compile as stage

        make = stage.make_extractor

        def counting(*given: object, **others: object):  # type: ignore[no-untyped-def]
            network = make(*given, **others)  # type: ignore[arg-type]

            def forward(images):  # type: ignore[no-untyped-def]
                for image in images:
                    print("THROUGH", np.asarray(image).shape)
                shapes = {np.asarray(image).shape for image in images}
                if len(shapes) == 1:
                    return network(np.stack(list(images)))
                rows = [network(np.asarray(image)[None]) for image in images]
                return {tap: np.concatenate([row[tap] for row in rows]) for tap in rows[0]}

            return forward

        stage.make_extractor = counting
        return cli.main([*arguments(folder, features_dir, *more), "--batch-size", "6"])

    return faults.in_child(work)


def caches(folder: Path) -> list[store.Cache]:
    return [store.verify(path) for path in sorted(folder.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns)]


def test_rows_of_the_cache_are_named_and_faults_leave_no_gap(folder: Path, tmp_path: Path) -> None:
    for name, (make, _) in pictures.FAULTS.items():
        for label in ("ant", "bee"):
            (folder / label / name).write_bytes(make(30 if label == "ant" else 40))
    outcome = extract(folder, tmp_path / "f")
    assert outcome.status == 0, outcome.said
    (cache,) = caches(tmp_path / "f")
    assert {item.file for item in cache.skipped} == {f"{c}/{name}" for c in ("ant", "bee") for name in pictures.FAULTS}
    for item in cache.skipped:
        assert pictures.FAULTS[item.file.split("/")[1]][1] in item.reason
        assert f"  {item.file}: {item.reason}" in outcome.said, "the closing lines list it"
    network = faults.cheap_network(cache.spec.taps)
    assert sum(cache.rows.values()) == 20
    for split in layout.SPLITS:
        with store.open(cache.path) as file:
            members, labels = file.members(split), file.labels(split)
            features = file.features(split, cache.spec.taps)
        assert len(members.names) == len(labels) == len(features) == len(members.digests) == cache.rows[split]
        for name, label, row in zip(members.names, labels, features, strict=True):
            assert cache.class_names[label] == name.split("/")[0]
            expected = network(np.asarray(Image.open(folder / name))[None])
            np.testing.assert_array_equal(row, np.concatenate([expected[tap][0] for tap in cache.spec.taps]))

    strict = extract(folder, tmp_path / "f", "--strict")
    assert strict.is_user_error, strict.said
    fresh = extract(folder, tmp_path / "g", "--strict")
    assert fresh.is_user_error
    assert "THROUGH" not in fresh.said, "nothing is computed before it is refused"
    for outcome in (strict, fresh):
        assert "18 files" in outcome.said
        assert "--strict makes an error" in outcome.said
        assert all(f"{label}/{name} (" in outcome.said for label in ("ant", "bee") for name in pictures.FAULTS)


def test_without_one_usable_training_image_there_is_no_feature_file(tmp_path: Path) -> None:
    pictures.fill(tmp_path / "x" / "test", count=3, seed=500)
    for label in ("ant", "bee"):
        (tmp_path / "x" / "train" / label).mkdir(parents=True)
        for i in range(2):
            damaged = pictures.png(7 * i + len(label) + ord(label[0]))[:-400]
            (tmp_path / "x" / "train" / label / f"{i}.png").write_bytes(damaged)
    for _ in range(2):
        outcome = extract(tmp_path / "x", tmp_path / "f")
        assert outcome.is_user_error, outcome.said
        assert "None of the 4 training images" in outcome.said
        assert all(f"train/{label}/{i}.png (damaged" in outcome.said for label in ("ant", "bee") for i in range(2))
        assert list((tmp_path / "f").iterdir()) == []


def test_strict_finds_what_only_decoding_tells_before_computing(folder: Path, tmp_path: Path) -> None:
    (folder / "ant" / "000.png").write_bytes(pictures.FAULTS["truncated.png"][0](1))
    outcome = extract(folder, tmp_path / "f", "--strict")
    assert outcome.is_user_error
    assert "ant/000.png (damaged" in outcome.said
    assert "THROUGH" not in outcome.said


def test_a_folder_that_grew_has_only_its_new_images_computed(folder: Path, tmp_path: Path) -> None:
    assert extract(folder, tmp_path / "f").said.count("THROUGH") == 20
    again = extract(folder, tmp_path / "f")
    assert "is valid" in again.said
    assert again.said.count("THROUGH") == 0
    for i in range(3):
        (folder / "ant" / f"new{i}.png").write_bytes(pictures.png(2000 + i))
    (folder / "bee" / "001.png").unlink()
    (folder / "bee" / "002.png").rename(folder / "bee" / "another name.png")
    grown = extract(folder, tmp_path / "f")
    assert grown.status == 0, grown.said
    assert grown.said.count("THROUGH") == 3
    assert "19 taken over from other caches" in grown.said
    _, cache = caches(tmp_path / "f")
    fresh = extract(folder, tmp_path / "g")
    assert fresh.said.count("THROUGH") == 22
    (other,) = caches(tmp_path / "g")
    assert other.path.name == cache.path.name
    assert faults.same(faults.arrays_in(cache.path), faults.arrays_in(other.path)), (
        "rows that were taken over are the rows that would have been computed"
    )
    assert cache.provenance["rows_computed"] == 3


def test_rows_are_not_taken_over_from_other_settings_or_damaged_caches(folder: Path, tmp_path: Path) -> None:
    assert extract(folder, tmp_path / "f").said.count("THROUGH") == 20
    other = extract(folder, tmp_path / "f", "--fit", "pad")
    assert other.said.count("THROUGH") == 20, "another fit is another key"
    (folder / "ant" / "new.png").write_bytes(pictures.png(2000))
    for path in (tmp_path / "f").glob("*.h5"):
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
    grown = extract(folder, tmp_path / "f")
    assert grown.said.count("THROUGH") == 21
    assert "no rows are taken over from" in grown.said


def test_no_row_comes_from_a_cache_whose_digests_are_in_doubt(folder: Path, tmp_path: Path) -> None:
    """Its train rows are proven, its test rows are not: then none is used, nor looked for in another cache instead."""
    assert extract(folder, tmp_path / "f").status == 0
    (folder / "ant" / "new.png").write_bytes(pictures.png(2000))
    assert extract(folder, tmp_path / "f").status == 0
    older, newer = sorted((tmp_path / "f").glob("*.h5"), key=lambda path: path.stat().st_mtime_ns)
    with h5py.File(newer, "r+") as file:
        file["test/digests"][0] ^= 1
    reseal(newer)
    (folder / "ant" / "newer.png").write_bytes(pictures.png(2001))
    grown = extract(folder, tmp_path / "f")
    assert f"no rows are taken over from {newer}" in grown.said
    assert f"rows from {older.name}" in grown.said
    assert grown.said.count("THROUGH") == 2
    fresh = extract(folder, tmp_path / "g")
    assert fresh.status == 0
    (one,) = (tmp_path / "g").glob("*.h5")
    assert faults.same(faults.arrays_in(one), faults.arrays_in(tmp_path / "f" / one.name))


def test_the_same_picture_in_another_file_is_a_leak_too(tmp_path: Path) -> None:
    pictures.fill(tmp_path / "x" / "train", count=4)
    pictures.fill(tmp_path / "x" / "test", count=3, seed=500)
    Image.open(tmp_path / "x" / "train" / "ant" / "002.png").save(tmp_path / "x" / "test" / "bee" / "saved anew.bmp")
    outcome = extract(tmp_path / "x", tmp_path / "f")
    assert outcome.status == 0, outcome.said
    (cache,) = caches(tmp_path / "f")
    (leak,) = cache.skipped
    assert leak.file == "test/bee/saved anew.bmp"
    assert leak.is_leak
    assert "train/ant/002.png" in leak.reason
    assert cache.rows == {"train": 8, "test": 6}
    assert "1 file was not used, 1 of them a leak between train and test" in outcome.said
    assert cache.provenance["rows_taken_over"] == 0, "it was computed, as the others were"
    assert "taken over" not in outcome.said


def test_killed_on_the_way_a_folder_goes_on(folder: Path, tmp_path: Path) -> None:
    (folder / "ant" / "bad.png").write_bytes(pictures.FAULTS["truncated.png"][0](1))
    faults.random_weights()
    reference = extract(folder, tmp_path / "reference")
    expected = faults.arrays(tmp_path / "reference")
    for number in (40, 75, 110):
        target = tmp_path / str(number)

        def work(number: int = number, target: Path = target) -> int:
            faults.install(faults.kill_at(number))
            return cli.main([*arguments(folder, target), "--batch-size", "6"])

        assert faults.in_child(work).status == -9
        outcome = extract(folder, target)
        assert outcome.status == 0, outcome.said
        assert faults.same(faults.arrays(target), expected)
        assert faults.leftovers(target) == []
    assert reference.status == 0


def test_memory_does_not_grow_with_the_folder(folder: Path) -> None:
    """Images are decoded a few batches ahead, never all."""
    from pipeline.data import loader
    from pipeline.data.dataset import Split

    asked: list[int] = []

    class Counting:
        def __len__(self) -> int:
            return 1000

        def decode(self, row: int, how: ImageOptions) -> np.ndarray:
            asked.append(row)
            return np.full((2, 2, 3), row % 256, np.uint8)

    rows = [("train", row) for row in range(1000)]
    with loader.batches(
        {"train": Split(Counting(), np.zeros(1000))},
        rows,
        ImageOptions(image_size=32),
        batch_size=50,  # type: ignore[arg-type]
    ) as source:
        seen = []
        for batch in source:
            seen += [row for (_, row), image in batch if image[0, 0, 0] == row % 256]
            assert len(asked) <= len(seen) + 100
    assert seen == list(range(1000)), "in order, whichever thread was faster"


# --- both stages ------------------------------------------------------------------------------


def test_train_lists_what_was_left_out_and_names_every_row(folder: Path, tmp_path: Path, call: Run) -> None:
    (folder / "ant" / "text.jpg").write_text("no image")
    raw = os.fsencode(folder / "bee") + b"/\xff.png"
    Path(os.fsdecode(raw)).write_bytes(pictures.png(700))
    assert extract(folder, tmp_path / "f").status == 0
    where = ["--features-dir", tmp_path / "f", "--models-dir", tmp_path / "m", "--output-dir", tmp_path / "o"]
    flags = [*arguments(folder, tmp_path / "f")[1:-2], *where, "--C", "0.1"]
    done = call("train", *flags)
    assert done.returncode == 0, done.stderr
    output = next((tmp_path / "o").glob("*/metrics.json")).parent
    assert "1 file, and why" in done.stdout
    assert str(output / "skipped.csv") in done.stdout
    skipped = list(csv.DictReader((output / "skipped.csv").open()))
    assert [row["file"] for row in skipped] == ["ant/text.jpg"]
    predictions = list(csv.DictReader((output / "predictions.csv").open()))
    (cache,) = caches(tmp_path / "f")
    assert [row["label"] for row in predictions] == [row["file"].split("/")[0] for row in predictions]
    assert len(predictions) == cache.rows["test"]
    assert (tmp_path / "o" / "index.html").read_text().count('href="data:image/webp') > 0 or all(
        row["label"] == row["predicted"] for row in predictions
    ), "mistakes are shown with their images"
    (card,) = (tmp_path / "m").glob("*.md")
    for text in ("insects", "untrained", "1 file was not used", "runs code when it is loaded", "| ant |"):
        assert text in card.read_text()
    assert_user_error(call("train", *flags, "--strict"), "--strict makes an error", "ant/text.jpg")
    again = call("train", *flags)
    assert again.stdout == done.stdout

    shutil.rmtree(folder)
    alone = call("train", *flags, "--force")
    assert alone.returncode == 0, alone.stderr
    assert "using the features that are there" in alone.stderr
    assert_user_error(call("features", *flags[:-8]), "folder of images", "there is no folder")


def test_without_test_rows_all_but_test_scores_is_there(tmp_path: Path, call: Run) -> None:
    for number, split in enumerate(("train", "test")):
        pictures.fill(tmp_path / "insects" / split, count=8 - 4 * number)  # test: copies of some of train
    assert extract(tmp_path / "insects", tmp_path / "f").status == 0
    where = ["--features-dir", tmp_path / "f", "--models-dir", tmp_path / "m", "--output-dir", tmp_path / "o"]
    flags = ["--dataset", tmp_path / "insects", "--weights", "random", "--precision", "float32", *TAPS, *where]
    said = "no test scores: every image of the test split was left out"
    done = call("train", *flags, "--C", "0.1")
    assert done.returncode == 0, done.stderr
    assert f"warning: {said}" in done.stderr
    assert said in done.stdout
    (path,) = (tmp_path / "o").glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["accuracy"]["test"] is metrics["log_loss"]["test"] is metrics["calibration"] is None
    assert metrics["accuracy"]["validation"] is not None
    assert set(metrics["per_class"]) == {"ant", "bee"}
    for file in (*(tmp_path / "m").glob("*.md"), tmp_path / "o" / "index.html"):
        assert said.removeprefix("no ") in file.read_text(), file
    (row,) = csv.DictReader((tmp_path / "o" / "leaderboard.csv").open())
    assert row["test_accuracy"] == row["test_low"] == row["test_log_loss"] == row["calibration_error"] == ""
    assert "is there already" in call("train", *flags, "--C", "0.1").stderr


def test_inspect_lists_what_was_left_out(folder: Path, tmp_path: Path, call: Run) -> None:
    (folder / "ant" / "text.jpg").write_text("no image")
    assert extract(folder, tmp_path / "f").status == 0
    (path,) = (tmp_path / "f").glob("*.h5")
    done = call("inspect", path, *arguments(folder, tmp_path / "f")[1:])
    assert done.returncode == 0, done.stderr
    assert "yes, all 14 digests" in done.stdout
    assert "ant/text.jpg: no image" in done.stdout
    assert "this file serves it" in done.stdout


def test_a_run_on_a_folder_takes_the_digest_of_its_cache_once(folder: Path, tmp_path: Path) -> None:
    assert extract(folder, tmp_path / "f").status == 0
    asked = arguments(folder, tmp_path / "f")[1:]
    assert digests_taken("features", *asked) == 1
    assert digests_taken("train", *asked, *places(tmp_path), "--strict", "--C", "0.1") == 1
