"""Labels from a table, and groups: who is in which class, and what no split may part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import Run, assert_user_error
from PIL import Image
from test_cli import DIGITS, places
from test_folders import extract, load, names, reasons

from pipeline.common.errors import UserError
from pipeline.features import store
from pipeline.selection import splits


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Twelve pictures in one folder and, beside it, a table of them."""
    (tmp_path / "scans").mkdir()
    for number in range(12):
        (tmp_path / "scans" / f"{number}.png").write_bytes(pictures.png(number))
    write(tmp_path, [f"{number}.png,{'oak' if number % 2 else 'elm'}" for number in range(12)])
    return tmp_path / "scans"


def write(folder: Path, lines: list[str], header: str = "file,label", **how: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([header, *lines]), **how)
    return path


def table_of(scans: Path, **options: str):  # type: ignore[no-untyped-def]
    return load(scans, labels=scans.parent / "table.csv", **options)


def test_the_table_says_what_class_each_file_is_of(scans: Path) -> None:
    dataset = table_of(scans)
    assert dataset.class_names == ("elm", "oak")
    assert dataset.rows == {"train": 10, "test": 2}
    for split in ("train", "test"):
        for name, label in zip(names(dataset, split), dataset.splits[split].labels, strict=True):
            assert label == int(Path(name).stem) % 2
    before = dataset.digest
    write(scans.parent, [f"{number}.png,{'oak' if number % 2 else 'elm'}" for number in reversed(range(12))])
    assert table_of(scans).digest == before, "the order of its lines says nothing"
    write(scans.parent, [f"{number}.png,{'oak' if number > 5 else 'elm'}" for number in range(12)])
    assert table_of(scans).digest != before
    write(scans.parent, [f"{n}.png,{n % 2},{'Test' if n < 4 else 'train'}" for n in range(12)], "file,label,split")
    assert table_of(scans).rows == {"train": 8, "test": 4}
    assert table_of(scans).class_names == ("0", "1"), "numbers are names, too"


def test_any_separator_quotes_a_bom_and_other_names_of_columns(scans: Path) -> None:
    want = table_of(scans).digest
    for separator in ",;\t|":
        lines = [separator.join([f'"{n}.png"', f" {'oak' if n % 2 else 'elm'} ", '"a, ""b"""']) for n in range(12)]
        header = separator.join(["image path", '"class of it"', "notes"])
        write(scans.parent, lines, header, encoding="utf-8-sig")
        assert table_of(scans, table_columns="file=image path,label=class of it").digest == want
        with pytest.raises(UserError, match=r"no column file and no column label. Its first line .*image path, class"):
            table_of(scans)


def test_rows_that_cannot_be_used_are_listed(scans: Path) -> None:
    (scans / "more").mkdir()
    (scans / "more" / "extra.png").write_bytes(pictures.png(90))
    (scans / "notes.txt").write_text("no image, and not of the table")
    lines = [f"{number}.png,{'oak' if number % 2 else 'elm'}" for number in range(8)]
    lines += [f"{scans / '8.png'},elm", "./9.png,oak", "10.png,", "11.png,oak", "11.png,oak"]
    lines += ["", "gone.png,oak", "../away.png,oak", "/etc/passwd,oak", ",elm"]
    write(scans.parent, lines)
    dataset = table_of(scans)
    assert sum(dataset.rows.values()) == 10, "an absolute path into the folder is one"
    assert reasons(dataset) == {
        "10.png": "an empty label, in line 12 of the table",
        "11.png": "more than once in the table, in lines 13, 14",
        "gone.png": "in the table, but not in the folder",
        "../away.png": "a path out of the folder, in line 17 of the table",
        "/etc/passwd": "a path out of the folder, in line 18 of the table",
        "table.csv": "no file is named, in line 19 of the table",
        "more/extra.png": "not in the table",
    }
    write(scans.parent, [f"{n}.png,{n % 2},{'val' if n == 3 else ('train', 'test')[n > 8]}" for n in range(12)],
          "file,label,split")  # fmt: skip
    assert reasons(table_of(scans))["3.png"] == "the split val is neither train nor test, in line 5 of the table"


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("file,label", ["0.png,oak,x"], r"must have 2 cells in each line. Line 2 has 3"),
        ("file,label", ['0.png,"oak'], "cannot be read as CSV: .* mark that is opened"),
        ("file,label,label", ["0.png,a,b"], "the column label twice"),
        ("fiel,label", ["0.png,a"], r"no column file. .* Did you mean fiel\?.*--table-columns file=path"),
        ("file,label,split", ["0.png,a,train", "1.png,b,train"], "no row whose split is test"),
        ("file,label", [f"{n}.png,oak" for n in range(12)], "images of one class, oak"),
        ("file,label", ["x.png,oak"], "no image that can be used. 13 files .*Name in the table"),
        ("", [], "has the columns none"),
    ],
)
def test_a_table_that_is_none_is_refused(scans: Path, header: str, lines: list[str], message: str) -> None:
    write(scans.parent, lines, header)
    with pytest.raises(UserError, match=message):
        table_of(scans)


def test_what_is_asked_of_no_folder_and_other_slips(scans: Path, call: Run) -> None:
    (scans.parent / "table.csv").write_bytes("file,label\n0.png,Ahorn-Bäume\n".encode("latin-1"))
    flags = ["train", "--dataset", scans, "--labels", scans.parent / "table.csv"]
    assert_user_error(call(*flags), "table.csv is not UTF-8 text")
    assert_user_error(call(*flags[:-1], scans.parent / "tabel.csv"), "Could not read the table", "Check the path")
    assert_user_error(call("train", "--dataset", "digits", *flags[3:]), "for a folder of images", "'digits'")
    assert_user_error(call(*flags, "--table-columns", "lable=x"), "Got 'lable=x'", "Did you mean label?")
    assert_user_error(call(*flags[:3], "--table-columns", "label=x"), "needs --labels")
    assert_user_error(call(*flags, "--group-by", "("), "must be a regular expression")


# --- groups -----------------------------------------------------------------------------------

COLOURS = ["--taps", "block1_conv1.avg"]


def groups(dataset, split: str) -> list[str]:  # type: ignore[no-untyped-def]
    return list(dataset.members[split].groups)


def test_a_made_split_parts_no_group(tmp_path: Path) -> None:
    pictures.fill(tmp_path / "x", count=40)
    plain = load(tmp_path / "x")
    assert not plain.members["train"].groups  # type: ignore[index]
    ten = load(tmp_path / "x", group_by=r"(\w+/\d\d)\d")  # ant/00 to ant/03, each of ten
    assert plain.digest != ten.digest
    assert not set(groups(ten, "train")) & set(groups(ten, "test"))
    assert sorted(set(groups(ten, "train") + groups(ten, "test"))) == [
        f"{c}/0{i}" for c in ("ant", "bee") for i in range(4)
    ]
    assert ten.rows == {"train": 60, "test": 20}
    every = load(tmp_path / "x", group_by=".*")
    assert [names(every, split) for split in ("train", "test")] == [names(plain, split) for split in ("train", "test")]
    mixed = load(tmp_path / "x", group_by=r"/(\d\d)")
    assert set(groups(mixed, "train")) | set(groups(mixed, "test")) == {"00", "01", "02", "03"}
    assert mixed.rows == {"train": 60, "test": 20}, "each group is of both classes"
    with pytest.raises(UserError, match=r"at least 3 images of different groups: .*ant \(1\), bee \(1\)"):
        load(tmp_path / "x", group_by=r"^\w")
    with pytest.raises(UserError, match="matches none of 80"):
        load(tmp_path / "x", group_by="cat")


def test_a_group_on_both_sides_of_a_given_split_is_a_leak(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("test", 100)):
        pictures.fill(tmp_path / "x" / split, count=6, seed=seed)
    lines = [
        f"{split}/{c}/00{i}.png,{c},{split},{c if i == 0 else ''}"
        for split in ("train", "test") for c in ("ant", "bee") for i in range(6)
    ]  # fmt: skip
    path = write(tmp_path, lines, "file,label,split,group")
    dataset = load(tmp_path / "x", labels=path)
    assert reasons(dataset) == {
        f"test/{c}/000.png": f"a leak between train and test: of the group {c}, as train/{c}/000.png of train, left "
        "out of test"
        for c in ("ant", "bee")
    }
    assert all(item.is_leak for item in dataset.skipped)
    assert dataset.rows == {"train": 12, "test": 10}
    assert groups(dataset, "train").count("") == 10


def test_groups_of_several_classes_are_split_as_they_can_be() -> None:
    labels = np.array([0, 1] * 20 + [2, 0, 2])
    numbers = np.repeat(np.arange(20), 2)
    numbers = splits.join_groups(np.r_[numbers, 20, 20, 21])
    names = ("a", "b", "c")
    for seed in range(20):
        parts = splits.split(labels, numbers, seed, names)
        assert not set(numbers[parts.fit]) & set(numbers[parts.held_out])
        assert set(labels[parts.fit]) == {0, 1, 2}
    assert splits.fewest(labels, numbers) == 2
    with pytest.raises(
        UserError, match=r"at least 3 distinct images, .*images of one group and copies of an image count once.*c \(2\)"
    ):
        splits.folds(labels, numbers, 3, 0, names)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 objects of 10 photographs each; what class an object is of does not show."""
    folder = tmp_path_factory.mktemp("objects")
    generator = np.random.default_rng(0)
    for number in range(40):
        (folder / "photos" / "AB"[number % 2]).mkdir(parents=True, exist_ok=True)
        thing = generator.integers(40, 200, 3)
        for photo in range(10):
            picture = np.clip(thing + generator.integers(-6, 7, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / "photos" / "AB"[number % 2] / f"{number:02d}-{photo}.png")
    return folder


@pytest.mark.tensorflow
@pytest.mark.parametrize("cv", [(), ("--cv", "4", "--n-neighbors", "1", "--no-learning-curve")])
def test_40_objects_of_10_photographs_are_recognised_unless_they_are_groups(
    call: Run, objects: Path, tmp_path: Path, cv: tuple[str, ...]
) -> None:
    accuracies = {}
    for name, more in (("alone", []), ("grouped", ["--group-by", r"/(\d\d)-"])):
        asked = ["--dataset", objects / "photos", *DIGITS[2:], *COLOURS, *more, "--features-dir", objects / "features"]
        made = call("features", *asked)
        assert made.returncode == 0, made.stderr
        flags = [*asked, *places(tmp_path / name), "--classifier", "knn", *cv]
        done = call("train", *flags)
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / name / "output").glob("*/metrics.json")
        metrics = json.loads(path.read_bytes())
        accuracies[name] = metrics["accuracy"]["test"]
        report = (path.parent / "report.txt").read_text()
    assert accuracies["alone"] > 0.9, "another photograph of the object was learnt"
    assert accuracies["grouped"] < 0.75, "of objects never seen, it is a guess"
    if cv:
        assert "none of 40 groups is in two folds" in report
    else:
        assert metrics["images"]["groups"] == {"train": 32, "test": 8}
        assert "of 29 groups to fit on, 3 to validate on and 8 to test on, no group on two sides" in report
        assert "290 distinct images to fit on, 30 to validate on, 80 to test on" in report
        curve = (path.parent / "learning_curve.csv").read_text().splitlines()
        assert curve[-1].startswith("290,")
        assert "is there already" in call("train", *flags).stderr


def test_groups_are_in_the_file_and_earlier_files_stay_valid(objects: Path) -> None:
    assert extract(objects / "photos", objects / "features", "--group-by", r"/(\d\d)-").status == 0
    held = [path for path in (objects / "features").glob("*.h5") if store.verify(path).has_groups]
    with store.open(held[-1]) as cache:
        who = cache.members("train")
        assert all(name[2:4] == group for name, group in zip(who.names, who.groups, strict=True))
        assert cache.provenance["reading"] == {"group_by": r"/(\d\d)-"}
    with store.open(next((Path(__file__).parent / "earlier" / "features").glob("posters*.h5"))) as cache:
        assert not cache.has_groups
        assert cache.members("train").groups == ()
