"""The cache file: what is written is what is read, and what was changed is refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.commands import inspect
from pipeline.common.errors import UserError
from pipeline.data.dataset import Dataset, Split
from pipeline.features import checksum, layout, parts, reuse, store
from pipeline.features.find import find_specs
from pipeline.features.options import FeatureOptions
from pipeline.features.spec import FeatureSpec
from pipeline.network.taps import ALL_TAPS, TAP_COLUMNS, order_taps

ATTRIBUTES = {
    "created": "2026-01-01T00:00:00+00:00",
    "images_per_second": 10.0,
    "versions": {"numpy": "2"},
    "provenance": {"dataset_source": "here", "official": True, "weights": "random", "weights_source": "there"},
}
CLASSES = ("cat", "dog")


def make_spec(taps: tuple[str, ...] = ("block1_conv1.avg", "block5_pool.avg"), **change: Any) -> FeatureSpec:
    fields: dict[str, Any] = {
        "dataset": "cifar10",
        "dataset_digest": "a" * 64,
        "weights_digest": "b" * 64,
        "image_size": 32,
        "interpolation": "bicubic",
        "fit": "squash",
        "taps": taps,
        "precision": "float32",
        "limit": None,
    }
    return FeatureSpec(**{**fields, **change})


def random_features(spec: FeatureSpec, rows: dict[str, int], seed: int = 0) -> dict[tuple[str, str], np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        (split, tap): generator.standard_normal((count, TAP_COLUMNS[tap])).astype(np.float16)
        for split, count in rows.items()
        for tap in spec.taps
    }


def dataset(labels: dict[str, np.ndarray], classes: tuple[str, ...] = CLASSES) -> Dataset:
    """A data set whose images nobody looks at."""
    splits = {split: Split(np.zeros((len(values), 1, 1, 3), np.uint8), values) for split, values in labels.items()}
    rows = {split: len(values) for split, values in labels.items()}
    return Dataset("cifar10", rows, classes, "a" * 64, official=True, source="here", read=lambda: splits)


def build(
    folder: Path,
    spec: FeatureSpec,
    rows: dict[str, int],
    *,
    classes: tuple[str, ...] = CLASSES,
    dtype: Any = np.uint8,
    finish: bool = True,
) -> tuple[parts.Build, dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    features = random_features(spec, rows)
    labels = {split: (np.arange(count) % len(classes)).astype(dtype) for split, count in rows.items()}
    making = parts.Build(folder, spec, rows)
    with making.hold():
        making.prepare()
        for part in making.parts:
            if making.has(part):
                making.load(part)
            else:
                piece = {tap: features[part.split, tap][part.start : part.stop] for tap in spec.taps}
                making.add(part, parts.PartContent(piece, seconds=1.0, computed=part.stop - part.start))
        if finish:
            joined: list[int] = []
            making.finish(dataset(labels, classes), ATTRIBUTES, joined.append)
            assert sum(joined) == sum(rows.values()), "progress ends at the end"
    return making, features, labels


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return build(tmp_path, make_spec(), {"train": 1030, "test": 7})[0].target


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    taps=st.sets(st.sampled_from(ALL_TAPS), min_size=1, max_size=4),
    train=st.integers(0, 40),
    test=st.integers(0, 40),
    part=st.integers(1, 17),
    classes=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
        min_size=1,
        max_size=5,
    ),
    dtype=st.sampled_from([np.uint8, np.int64]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    taps: set[str],
    train: int,
    test: int,
    part: int,
    classes: list[str],
    dtype: Any,
) -> None:
    folder = tmp_path_factory.mktemp("store")
    spec = make_spec(order_taps(taps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_ROWS", part)
        making, features, labels = build(
            folder, spec, {"train": train, "test": test}, classes=tuple(classes), dtype=dtype
        )
    with store.open(making.target) as found:
        assert found.spec == spec
        assert found.class_names == tuple(classes)
        assert found.rows == {"train": train, "test": test}
        assert found.size == making.target.stat().st_size
        for split in layout.SPLITS:
            read = found.labels(split)
            assert read.dtype == dtype
            np.testing.assert_array_equal(read, labels[split])
            values = found.features(split, spec.taps)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, np.hstack([features[split, tap] for tap in spec.taps]))
    store.verify(making.target)
    assert sorted(path.name for path in folder.iterdir()) == [making.target.name]


def test_any_hdf5_tool_reads_it(cache: Path) -> None:
    """The layout that is promised, read without any of our code."""
    with h5py.File(cache) as file:
        assert set(file.attrs) >= {"spec", "key", "format_version", "created", "images_per_second", "versions"}
        assert cache.name == f"cifar10-vgg16-32px-{file.attrs['key'][:12]}.h5"
        assert list(file["class_names"].asstr()) == ["cat", "dog"]
        assert file["train/labels"].shape == (1030,)
        assert file["test/block5_pool.avg"].shape == (7, 512)
        assert file["test/block5_pool.avg"].dtype == np.float16
        assert len(file["test/block5_pool.avg"].attrs["sha256"]) == 64


def test_reading_joins_taps_in_the_order_asked(cache: Path) -> None:
    with store.open(cache) as found:
        one = found.features("test", ["block5_pool.avg"])
        both = found.features("test", ["block5_pool.avg", "block1_conv1.avg"])
        assert both.shape == (7, 576)
        np.testing.assert_array_equal(both[:, :512], one)
        with pytest.raises(store.CacheError, match=r"has no tap block2_conv1\.avg"):
            found.features("test", ["block2_conv1.avg"])


def test_a_cache_with_more_taps_serves(cache: Path) -> None:
    asked = make_spec(("block5_pool.avg",))
    assert find_specs(cache.parent, [asked]) == [(cache, asked)]
    with store.open(cache, asked) as found:
        assert found.spec == make_spec()
    assert find_specs(cache.parent, [make_spec(precision="bfloat16")]) == []


def test_another_spec_is_refused_and_named(cache: Path) -> None:
    with pytest.raises(store.CacheError, match="precision: 'bfloat16' here, 'float32' there"):
        store.open(cache, make_spec(precision="bfloat16"))


@pytest.mark.parametrize("which", ["final", "part"])
def test_truncated_or_flipped_anywhere_is_refused(tmp_path: Path, which: str) -> None:
    """Each of 200 random bits, and a cut at several places, in a final file and in a part."""
    spec, rows = make_spec(("block1_conv1.avg",)), {"train": 12, "test": 3}
    making, _, _ = build(tmp_path, spec, rows, finish=which == "final")
    part = making.parts[0]
    path = making.target if which == "final" else making.parts_folder / part.file_name
    good = path.read_bytes()

    def refused() -> None:
        with pytest.raises(store.CacheError):
            if which == "final":
                store.open(path)
            else:
                parts.Build(tmp_path, spec, rows).load(part)

    for length in (0, 1, 511, 512, 600, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        refused()
    path.write_bytes(good + b"\0")
    refused()
    generator = np.random.default_rng(1)
    for position in generator.integers(0, 8 * len(good), 200):
        flipped = bytearray(good)
        flipped[position // 8] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        refused()
    path.write_bytes(good)
    if which == "final":
        store.verify(path)
    else:
        assert parts.Build(tmp_path, spec, rows).load(part)


def reseal(path: Path) -> None:
    """Give a doctored file a header that fits it: what follows must then refuse it on its own."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.pwrite(descriptor, checksum.header(checksum.file_digest(descriptor)), 0)
    finally:
        os.close(descriptor)


def _external_link(file: h5py.File) -> None:
    del file["test/block5_pool.avg"]
    file["test/block5_pool.avg"] = h5py.ExternalLink("/etc/hostname", "/x")


def _soft_link_loop(file: h5py.File) -> None:
    del file["test/block5_pool.avg"]
    file["test/block5_pool.avg"] = h5py.SoftLink("/test/block5_pool.avg")


def _virtual(file: h5py.File) -> None:
    del file["test/block5_pool.avg"]
    layout = h5py.VirtualLayout((7, 512), np.float16)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (7, 512))
    file.create_virtual_dataset("test/block5_pool.avg", layout).attrs["sha256"] = "0" * 64


def _external_storage(file: h5py.File) -> None:
    del file["test/block5_pool.avg"]
    file.create_dataset("test/block5_pool.avg", (7, 512), np.float16, external=[("/etc/passwd", 0, 7 * 1024)]).attrs[
        "sha256"
    ] = "0" * 64


def _huge_shape(file: h5py.File) -> None:
    del file["test/labels"]
    file.create_dataset("test/labels", (1 << 50,), np.uint8, chunks=(1 << 20,)).attrs["sha256"] = "0" * 64


def _huge_contiguous(file: h5py.File) -> None:
    del file["test/labels"]
    file.create_dataset("test/labels", (1 << 40,), np.uint8).attrs["sha256"] = "0" * 64


def _wrong_dtype(file: h5py.File) -> None:
    del file["test/block5_pool.avg"]
    file["test/block5_pool.avg"] = np.zeros((7, 512), np.float32)
    file["test/block5_pool.avg"].attrs["sha256"] = "0" * 64


def _object_dtype(file: h5py.File) -> None:
    del file["class_names"]
    file["class_names"] = ["cat", "dog"]
    file["class_names"].attrs["sha256"] = "0" * 64


def _wrong_shape(file: h5py.File) -> None:
    del file["test/block5_pool.avg"]
    file["test/block5_pool.avg"] = np.zeros((7, 511), np.float16)
    file["test/block5_pool.avg"].attrs["sha256"] = "0" * 64


def _unexpected(file: h5py.File) -> None:
    file["train/extra"] = 1


def _missing_digest(file: h5py.File) -> None:
    del file["test/block5_pool.avg"].attrs["sha256"]


def _missing_spec(file: h5py.File) -> None:
    del file.attrs["spec"]


def _other_key(file: h5py.File) -> None:
    file.attrs["key"] = "0" * 64


def _future_format(file: h5py.File) -> None:
    file.attrs["format_version"] = 3


def _group_for_array(file: h5py.File) -> None:
    del file["test/labels"]
    file.create_group("test/labels")


def _array_for_group(file: h5py.File) -> None:
    del file["test"]
    file["test"] = 1


def _no_space(file: h5py.File) -> None:
    del file["test/labels"]
    file["test/labels"] = h5py.Empty("u1")
    file["test/labels"].attrs["sha256"] = "0" * 64


def _provenance_list(file: h5py.File) -> None:
    file.attrs["provenance"] = "[]"


def _provenance_short(file: h5py.File) -> None:
    file.attrs["provenance"] = '{"official": true}'


@pytest.mark.parametrize(
    ("doctor", "message"),
    [
        (_no_space, "HDF5 cannot read it"),
        (_provenance_list, "'provenance' is no JSON object with dataset_source"),
        (_provenance_short, "'provenance' is no JSON object with dataset_source"),
        (_external_link, "ExternalLink, which is never followed"),
        (_soft_link_loop, "SoftLink, which is never followed"),
        (_virtual, "not stored in one piece"),
        (_external_storage, "not stored in one piece"),
        (_huge_shape, "not stored in one piece"),
        (_huge_contiguous, "declares more than the file holds"),
        (_wrong_dtype, "has the type float32; expected float16"),
        (_object_dtype, "has the type object"),
        (_wrong_shape, "has the shape"),
        (_unexpected, "unexpected members: extra"),
        (_missing_digest, "'sha256' of /test/block5_pool.avg is missing"),
        (_missing_spec, "'spec' of / is missing"),
        (_other_key, "key is not the key of its spec"),
        (_future_format, "format_version is"),
        (_group_for_array, "is a group, not an array"),
        (_array_for_group, "is an array, not a group"),
    ],
)
def test_doctored_files_are_refused(cache: Path, doctor: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(cache, "r+") as file:
        doctor(file)
    with pytest.raises(store.CacheError, match="edited"):
        store.open(cache)
    reseal(cache)
    with pytest.raises(store.CacheError, match=message):
        store.open(cache)


def test_hdf5_never_sees_a_byte_that_was_not_verified(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to choose a file: one flipped bit in HDF5's heap, where the attributes are, can make it read for ever."""
    good = cache.read_bytes()
    monkeypatch.setattr(store.h5py, "File", lambda *given, **named: pytest.fail("HDF5 was asked"))
    generator = np.random.default_rng(3)
    for number, position in enumerate(generator.integers(8 * 512, 8 * 6000, 100)):
        damaged = bytearray(good)
        damaged[position // 8] ^= 1 << (position % 8)
        cache.write_bytes(damaged)
        assert find_specs(cache.parent, [make_spec(precision="bfloat16")]) == []
        with reuse.known_rows(cache.parent, make_spec(limit=5), np.zeros((1, 32), np.uint8)) as known:
            assert not len(known)
        with pytest.raises(store.CacheError):
            store.verify(cache)
        if number % 25:
            continue  # the rest takes its time
        try:
            shown, _ = inspect.inspect(cache, FeatureOptions(dataset="digits", weights="random"), must_verify=False)
        except store.CacheError as error:
            assert "damaged" in str(error)  # so much that nothing can be said of it
        else:
            assert "verifies   NO" in shown


def test_what_takes_the_name_of_an_open_file_does_not_matter(cache: Path, tmp_path: Path) -> None:
    expected = faults.arrays_in(cache)
    with store.open(cache) as found:
        other = build(tmp_path / "other", make_spec(limit=5), {"train": 5, "test": 5})[0].target
        other.replace(cache)
        for split in layout.SPLITS:
            assert found.labels(split).tobytes() == expected[f"{split}/labels"].tobytes()
            for tap in found.spec.taps:
                assert found.features(split, [tap]).tobytes() == expected[f"{split}/{tap}"].tobytes()


def test_a_data_set_that_lost_its_digest_does_not_verify(cache: Path) -> None:
    with h5py.File(cache, "r+") as file:
        file["test/block5_pool.avg"][3, 3] += 1
    reseal(cache)
    with pytest.raises(store.CacheError, match="does not have the sha256"):
        store.verify(cache)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    making = parts.Build(tmp_path, make_spec(), {"train": 1, "test": 1})
    features = random_features(make_spec(), {"train": 1, "test": 1})
    with making.hold():
        making.prepare()
        for part in making.parts:
            making.add(part, parts.PartContent({tap: features[part.split, tap] for tap in making.spec.taps}))
        labels = {"train": np.array([7], np.uint8), "test": np.array([0], np.uint8)}
        making.finish(dataset(labels), ATTRIBUTES)
    with pytest.raises(store.CacheError, match="a label of train is outside 0 to 1"):
        store.verify(making.target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no feature file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "not one that this program wrote"),
        (b"GIF89a" + bytes(600), "it is no feature file"),
        (checksum.header("0" * 64).replace(b"format 2", b"format 1"), "format_version is 1; this program reads 2"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with pytest.raises(store.CacheError, match=message):
        store.open(path)


def test_absent_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(store.CacheError, match="There is no feature file"):
        store.open(tmp_path / "none.h5")
    with pytest.raises(store.CacheError, match="is a folder"):
        store.open(tmp_path)


def test_a_part_of_another_run_is_refused(tmp_path: Path) -> None:
    rows = {"train": 5, "test": 2}
    mine, _, _ = build(tmp_path, make_spec(), rows, finish=False)
    other, _, _ = build(tmp_path, make_spec(precision="bfloat16"), rows, finish=False)
    name = mine.parts[0].file_name
    (mine.parts_folder / name).write_bytes((other.parts_folder / name).read_bytes())
    fresh = parts.Build(tmp_path, make_spec(), rows)
    with pytest.raises(store.CacheError, match="another run's"):
        fresh.load(fresh.parts[0])


def test_building_leaves_other_specs_alone(tmp_path: Path) -> None:
    rows = {"train": 5, "test": 2}
    unfinished, _, _ = build(tmp_path, make_spec(limit=9), rows, finish=False)
    before = sorted(path.name for path in unfinished.parts_folder.iterdir())
    build(tmp_path, make_spec(), rows)
    assert sorted(path.name for path in unfinished.parts_folder.iterdir()) == before


def test_class_names_with_nul_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"U\+0000"):
        build(tmp_path, make_spec(), {"train": 1, "test": 1}, classes=("a\0b",))


def test_parts_do_not_depend_on_anything_but_the_rows() -> None:
    rows = {"train": 2500, "test": 100}
    fixed = parts.Build(Path("x"), make_spec(), rows).parts
    assert [(part.split, part.start, part.stop) for part in fixed] == [
        ("train", 0, 1024),
        ("train", 1024, 2048),
        ("train", 2048, 2500),
        ("test", 0, 100),
    ]
    assert parts.Build(Path("y"), dataclasses.replace(make_spec(), image_size=64), rows).parts == fixed
