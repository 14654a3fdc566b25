"""Presets: sets of choices under one name, so that nobody needs to know all the flags.

`docs/accuracy.md` has what their parts are worth. A flag that is given beside one wins.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.features.options import FeatureOptions
from pipeline.models import classifiers
from pipeline.selection.options import TrainOptions

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Preset:
    """Values of settings, by their names, in place of their defaults."""

    name: str | None = None
    features: Mapping[str, Any] = field(default_factory=dict)  # of `FeatureOptions`
    classifier: str = "logistic"
    for_few: str | None = None  # takes its place where fewer than `FEW_ROWS` images are to be fitted on

    @classmethod
    def of(cls, given: object) -> Preset:
        """The preset that the parsed flags name; one without choices where they name none.

        Raises UserError when there is none of that name.
        """
        (item,) = (item for item in FeatureOptions.declared() if item.name == "preset")
        name = item.check(item.given(given))
        return cls() if name is None else PRESETS[name]

    def for_features(self, given: object) -> dict[str, Any]:
        """Defaults for `FeatureOptions`; what was given instead is said."""
        for item in FeatureOptions.declared():
            told = item.given(given)
            if item.name in self.features and told is not None and told != self.features[item.name]:
                log.info("%s as given, not the preset's %s", item.flag, item.show(self.features[item.name]))
        return dict(self.features)

    def for_training(self, given: object) -> dict[str, Any]:
        """Defaults for `TrainOptions`, with all options of the classifier that were given."""
        (item,) = (item for item in TrainOptions.declared() if item.name == "classifier")
        told = {item.name: item.given(given) for item in classifiers.flags()}
        options = {name: value for name, value in told.items() if value is not None}
        mine = item.given(given) is None and not options
        return {
            "preset": self.name,
            "classifier": item.given(given) or self.classifier,
            "for_few": self.for_few if mine else None,
            "options": options,
        }


PRESETS = {
    "fast": Preset("fast", {"image_size": (32,), "taps": "rich"}, "mlp", "logistic"),
    "default": Preset("default", {"taps": "rich"}, "mlp", "logistic"),
    "best": Preset("best", {"image_size": (32, 64), "views": "mirror", "taps": "rich"}, "mlp", "logistic"),
}
