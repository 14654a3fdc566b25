"""The model card: what a person must know before using a fitted model, in Markdown, beside it.

After Mitchell et al., Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.features.store import Cache
from pipeline.models import classifiers
from pipeline.output import report, templating


def render(metrics: Mapping[str, Any], description: Mapping[str, Any], cache: Cache) -> str:
    """Write the card of a run, from its ``metrics.json``, what goes beside the model, and the features it saw."""
    params = classifiers.describe(metrics["classifier"]["params"])
    images = report.images_text(metrics["images"])
    known = {
        "m": metrics,
        "spec": description["spec"],
        "params": params,
        "images": images,
        "warnings": report.warnings(metrics),
        "cache": cache,
    }
    return templating.render("model_card.md", **known)
