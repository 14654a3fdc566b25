"""Both stages in one go, on whatever weights can be had: something to see on any machine.

python -m pipeline demo
"""

from __future__ import annotations

import dataclasses
import logging

from pipeline.commands import train
from pipeline.features import extract
from pipeline.features.extract import Extracted, FeatureOptions
from pipeline.network.weights import WeightsUnavailable
from pipeline.output.run_folder import RunPlace
from pipeline.selection.options import TrainOptions

log = logging.getLogger("pipeline")


def demo(
    features: FeatureOptions, training: TrainOptions, *, batch_size: int | None = None, threads: int | None = None
) -> tuple[Extracted, RunPlace]:
    """Extract and train; when no pretrained weights can be had, with untrained ones, and that is said.

    Raises
    ------
    UserError, Interrupted
        As `extract.extract` and `train.train`.
    """
    try:
        extracted = extract.extract(features, batch_size=batch_size, threads=threads)
    except WeightsUnavailable as error:
        log.warning("warning: %s", error)
        log.warning("warning: going on with an untrained network, so that there is something to see")
        features = dataclasses.replace(features, weights="random")
        extracted = extract.extract(features, batch_size=batch_size, threads=threads)
    return extracted, train.train(features, training)
