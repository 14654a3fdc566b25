"""Presets: sets of choices under one name, so that nobody needs to know all the flags.

`docs/accuracy.md` has what their parts are worth. A flag that is given beside one wins.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pipeline.common.options import Options
from pipeline.features.options import FeatureOptions
from pipeline.models import classifiers
from pipeline.selection.options import TrainOptions

log = logging.getLogger("pipeline")

# Of each, values of `FeatureOptions` in place of their defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"image_size": (32,), "taps": "rich"},
    "default": {"taps": "rich"},
    "best": {"image_size": (32, 64), "views": "mirror", "taps": "rich"},
}
CLASSIFIER, FOR_FEW = "mlp", "logistic"  # of all; the latter where fewer than `FEW_ROWS` images are to be fitted on
CURVE_SEEDS = 1  # of all: the fits of three learning curves take longer than all else where columns are so many


def chosen(given: object) -> Mapping[str, Any]:
    """What the preset that the parsed flags name has of `FeatureOptions`; nothing where they name none.

    Raises UserError when there is none of that name.
    """
    return PRESETS.get(_given(FeatureOptions, "preset", given), {})


def for_features(given: object) -> Mapping[str, Any]:
    """The same, as defaults; what was given instead is said."""
    found = chosen(given)
    for item in FeatureOptions.declared():
        told = item.given(given)
        if item.name in found and told is not None and told != found[item.name]:
            log.info("%s as given, not the preset's %s", item.flag, item.show(found[item.name]))
    return found


def for_training(given: object) -> dict[str, Any]:
    """Defaults for `TrainOptions`, with all options of the classifier that were given."""
    told = {item.name: item.given(given) for item in classifiers.flags()}
    found: dict[str, Any] = {"options": {name: value for name, value in told.items() if value is not None}}
    preset = _given(FeatureOptions, "preset", given)
    if preset is None:
        return found
    mine = _given(TrainOptions, "classifier", given) is None and not found["options"]
    of_all = {"classifier": CLASSIFIER, "for_few": FOR_FEW if mine else None, "curve_seeds": CURVE_SEEDS}
    return {**found, "preset": preset, **of_all}


def _given(options: type[Options], name: str, given: object) -> Any:
    """The value of a setting by the parsed flags; None where it was not given."""
    (item,) = (item for item in options.declared() if item.name == name)
    value = item.given(given)
    return None if value is None else item.check(value)
