"""The key covers every input, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.common.options import Option, option
from pipeline.features import find
from pipeline.features.options import FeatureOptions
from pipeline.features.spec import FeatureSpec
from pipeline.models import classifiers
from pipeline.network.taps import ALL_TAPS, TAP_COLUMNS, columns_of, parse_taps
from pipeline.selection.trials import RunSpec

SPEC = FeatureSpec(
    dataset="cifar10",
    dataset_digest="a" * 64,
    weights_digest="b" * 64,
    image_size=64,
    interpolation="bicubic",
    fit="squash",
    taps=ALL_TAPS,
    precision="float32",
    limit=None,
)
OTHER: dict[str, Any] = {
    "dataset": "digits",
    "dataset_digest": "c" * 64,
    "weights_digest": "d" * 64,
    "image_size": 65,
    "interpolation": "nearest",
    "taps": ("block5_pool.avg",),
    "limit": 100,
    "more_sizes": (96,),
    "format_version": 3,
}


@pytest.mark.parametrize("item", FeatureSpec.declared(), ids=lambda item: item.name)
def test_every_field_changes_the_key(item: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Option, "_allows", lambda *_: True)  # there is one interpolation
    value = OTHER.get(item.name, item.choices[-1] if item.choices else not item.default)
    other = dataclasses.replace(SPEC, **{item.name: value})
    assert other.key() != SPEC.key()
    (difference,) = SPEC.differences(other)
    assert difference.startswith(f"{item.name}: ")


def test_run_options_are_not_in_the_key() -> None:
    fields = {field.name for field in dataclasses.fields(FeatureSpec)}
    assert not fields & {"batch_size", "threads", "data_dir", "features_dir"}
    assert {field.name for field in dataclasses.fields(FeatureOptions)} - fields == {
        "data_dir",
        "features_dir",
        "weights",
        "strict",
        *("follow_links", "labels", "table_columns", "group_by"),  # these change the data set, which has a digest
        "preset",
        "views",
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data_dir", Path("x")),
        ("features_dir", Path("x")),
        ("strict", True),
        ("follow_links", True),
        ("weights", "x.h5"),
    ],
)
def test_a_run_option_leaves_the_key(option: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weights, their digest is in the key, wherever they came from."""
    monkeypatch.setattr(find, "weights_digest", lambda choice, data_dir: "b" * 64)

    def keys(options: FeatureOptions) -> list[str]:
        return [spec.key() for spec in find.candidate_specs(options)]

    plain = FeatureOptions()
    assert keys(dataclasses.replace(plain, **{option: value})) == keys(plain)
    assert keys(dataclasses.replace(plain, image_size=65)) != keys(plain)


def test_key_is_stable() -> None:
    """Another key for the same spec would orphan every cache there is."""
    assert SPEC.key() == "b49dfea27eedf4792256106a755673ee2084ecadb45a41e18f00cb8bca8f5b35"
    assert json.loads(json.dumps(SPEC.to_dict())) == SPEC.to_dict()
    assert FeatureSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


def test_a_setting_that_is_added_leaves_the_keys_that_are_there() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(FeatureSpec):
        view: str = option("plain", "what of an image is seen", choices=("plain", "corners"), late=True)

    before = Later.from_dict(SPEC.to_dict())
    assert before.key() == SPEC.key()
    other = dataclasses.replace(before, view="corners")
    assert other.key() != SPEC.key()
    assert Later.from_dict(json.loads(json.dumps(other.to_dict()))) == other


@given(st.lists(st.sampled_from(ALL_TAPS), min_size=1))
def test_taps_are_a_set(names: list[str]) -> None:
    taps = parse_taps(",".join(names))
    assert set(taps) == set(names)
    assert taps == parse_taps(",".join(reversed(names)))
    assert columns_of(taps) == sum(TAP_COLUMNS[tap] for tap in set(names))


def test_tap_words() -> None:
    assert parse_taps("all") == ALL_TAPS
    assert parse_taps("top") == ("block5_pool.avg",)
    assert columns_of(ALL_TAPS) == 6016
    for wrong in ("", ",", "block6_conv1.avg", "top,all"):
        with pytest.raises(UserError, match="taps"):
            parse_taps(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 16}, "between 32 and"),
        ({"image_size": 0}, "between 32 and"),
        ({"precision": "float64"}, "precision"),
        ({"limit": 0}, "limit"),
        ({"taps": ()}, "taps"),
        ({"taps": ("block5_pool.avg", "block1_conv1.avg")}, "network order"),
    ],
)
def test_invalid_specs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SPEC, **change)


@pytest.mark.parametrize("field", list(SPEC.to_dict()))
def test_a_damaged_spec_is_refused(field: str) -> None:
    fields = SPEC.to_dict()
    with pytest.raises(UserError, match=field):
        FeatureSpec.from_dict({name: value for name, value in fields.items() if name != field})
    with pytest.raises(UserError, match=f"The {field.replace('_', ' ')} parameter"):
        FeatureSpec.from_dict({**fields, field: 1.5})
    with pytest.raises(UserError, match="extra"):
        FeatureSpec.from_dict({**fields, "extra": 1})


def test_more_taps_serve_fewer() -> None:
    top = dataclasses.replace(SPEC, taps=("block5_pool.avg",))
    assert SPEC.covers(top)
    assert not top.covers(SPEC)
    assert not dataclasses.replace(SPEC, image_size=32).covers(top)


def test_run_key_covers_every_input() -> None:
    run = RunSpec("f", "digits", "logistic", classifiers.resolve("logistic", {}), 0, 1)
    names = {
        run.name,
        dataclasses.replace(run, features="g").name,
        dataclasses.replace(run, dataset="cifar10").name,
        dataclasses.replace(run, classifier="mlp").name,
        dataclasses.replace(run, options=classifiers.resolve("logistic", {"C": 1.0})).name,
        dataclasses.replace(run, seed=1).name,
        dataclasses.replace(run, protocol=2).name,
    }
    assert len(names) == 7
    assert dataclasses.replace(run, options=classifiers.resolve("logistic", {"max_iter": 1000})).name == run.name


def test_classifier_options_are_checked() -> None:
    for classifier, given_options, message in [
        ("forest", {}, "one of logistic, mlp, svm, ridge, kernel, knn"),
        ("logistic", {"alpha": 1.0}, "--alpha option is not one of the classifier logistic"),
        ("logistic", {"C": 0.0}, "--C option must be"),
        ("logistic", {"C": float("nan")}, "--C option must be"),
        ("logistic", {"C": "0.1"}, "--C option must be a number"),
        ("logistic", {"C": [0.1, 1.0]}, "--C option must be a number"),
        ("logistic", {"max_iter": 2.5}, "--max-iter option must be a whole number"),
        ("logistic", {"max_iter": True}, "--max-iter option must be a whole number"),
        ("mlp", {"hidden_layer_sizes": (8, 0)}, "--hidden-layer-sizes option must be"),
    ]:
        with pytest.raises(UserError, match=message):
            classifiers.resolve(classifier, given_options)
