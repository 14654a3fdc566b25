"""The model card: what a person must know before using a fitted model, in Markdown, beside it.

After Mitchell et al., Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.features.store import Cache
from pipeline.models import classifiers
from pipeline.output import templating


def render(metrics: Mapping[str, Any], description: Mapping[str, Any], cache: Cache) -> str:
    """Write the card of a run, from its ``metrics.json``, what goes beside the model, and the features it saw."""
    params = classifiers.describe(metrics["classifier"]["params"])
    return templating.render("model_card.md", m=metrics, spec=description["spec"], params=params, cache=cache)
