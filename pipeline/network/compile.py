"""The network, compiled for this machine: where it computes, in what precision, how many images at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.common.memory import free_memory
from pipeline.common.progress import format_bytes
from pipeline.common.quiet import interrupts_later, quiet_stderr
from pipeline.network import device
from pipeline.network.device import Plan

if TYPE_CHECKING:
    from pipeline.network.vgg16 import Extractor
    from pipeline.network.weights import Layer

log = logging.getLogger("pipeline")


@contextmanager
def _loading_tensorflow() -> Iterator[None]:
    """Let no interrupt come while TensorFlow is loaded in the block, and spare it Keras.

    It would load Keras's optimizers, in case a saved model has one, and with them all of Keras and scikit-learn: nearly
    half of the time, for nothing that is used here. Without them it goes on; who wants Keras later still gets it.
    """
    spared = "keras.src.optimizers"
    if "tensorflow" not in sys.modules:
        sys.modules.setdefault(spared, None)  # type: ignore[arg-type]
    try:
        with interrupts_later():
            yield
    finally:
        if sys.modules.get(spared, spared) is None:
            del sys.modules[spared]


def make_plan(precision: str, *, image_size: int, batch_size: int | None, elsewhere: str | None = None) -> Plan:
    """Decide how to compute on this machine, see `device.choose_device`; TensorFlow is loaded only for a GPU.

    What computes ``elsewhere`` decides by itself whether it can: in ``auto`` it is what is faster here.
    """
    if elsewhere is not None:
        fastest = "bfloat16" if device.is_faster_in_bfloat16() else "float32"
        chosen = batch_size or device.default_batch_size(image_size)
        return Plan("", f"the cluster {elsewhere}", fastest if precision == "auto" else precision, chosen)
    gpus: list[device.Gpu] = []
    if device.may_have_gpu():
        with quiet_stderr():
            with _loading_tensorflow():
                from pipeline.network import vgg16

            gpus = vgg16.gpus()
    plan = device.choose_device(
        precision,
        gpus,
        bfloat16=device.is_faster_in_bfloat16() if precision == "auto" else device.has_bfloat16(),
        image_size=image_size,
        batch_size=batch_size,
        memory=free_memory(),
    )
    if gpus and not plan.device.startswith("GPU"):
        seen = ", ".join(f"{gpu.name} ({format_bytes(gpu.free)} free)" for gpu in gpus)
        log.warning("warning: computing on the processor: no GPU here has the memory and the precision: %s", seen)
        vgg16.leave_gpus()
    return plan


def make_extractor(layers: Mapping[str, Layer], *, plan: Plan, threads: int | None = None, **network: Any) -> Extractor:
    """Compile the network, see `vgg16.Extractor`, and prove its precision on a few images.

    ``network`` is what `FeatureSpec.network` gives.
    """
    log.info("loading TensorFlow")
    with quiet_stderr():
        with _loading_tensorflow():
            from pipeline.network import vgg16  # late: only a run that computes needs it

        if threads is not None:
            vgg16.use_threads(threads)
        extractor = vgg16.Extractor(
            layers, precision=plan.precision, batch_size=plan.batch_size, device=plan.device, **network
        )
        # Not on the user's pictures: a blank page shows no difference between precisions.
        coarse = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
        extractor.check_precision(coarse.repeat(4, axis=1).repeat(4, axis=2))
    return extractor
