"""Fitted classifiers on disk: proved by their recorded digest before anything in them is looked at.

A ``.joblib`` file is a pickle, and unpickling runs what the file says. So one is loaded only when its bytes have the
sha256 that `train` recorded in the ``.json`` beside it. That finds damage, mix-ups and a file put in another's
place; it does not stop somebody who can write both files. A ``.skops`` file is for sharing: it holds arrays and the
names of types, and is loaded only when all of these are known here to be harmless.

python -m pipeline export --model models/RUN.joblib
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.text import to_json
from pipeline.features.spec import FORMAT_VERSION, FeatureSpec

# What skops does not trust by itself, and yet is nothing but numbers: the state of MLPClassifier's solver, and the
# temperature that makes probabilities of decision values, with the (trusted) classifier that it belongs to.
TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)
JOBLIB, SKOPS = ".joblib", ".skops"
_DIGESTS = {JOBLIB: "sha256", SKOPS: "skops_sha256"}  # where the description has each file's


@dataclass(frozen=True)
class Model:
    """A fitted classifier, from raw features to class probabilities."""

    path: Path
    estimator: Any  # with ``predict_proba`` and ``classes_``
    spec: FeatureSpec  # of the features that it takes, ``spec.taps`` of each of its sizes side by side
    classes: tuple[str, ...]  # label i means classes[i]
    weights: str  # ``imagenet``, ``random``, or the path of the file of VGG16's weights that it was trained with
    description: Mapping[str, Any]  # all that the ``.json`` beside it says


def load_model(path: Path) -> Model:
    """Load a model that `train` wrote, or that was shared as ``.skops``, if it is what its description says.

    Raises UserError when either file is absent, the model's digest is not the recorded one, it was made by another
    version, or a ``.skops`` file names a type that is not known to be harmless.
    """
    if path.suffix not in _DIGESTS:
        raise UserError(
            f"The model parameter must name a .joblib or .skops file, as train and export write. Got {path}."
        )
    description = _describe(path)
    with file_errors("read the model", path):
        content = path.read_bytes()
    found, expected = hashlib.sha256(content).hexdigest(), description.get(_DIGESTS[path.suffix])
    if found != expected:
        recorded = f"{str(expected)[:12]}… is recorded in {path.with_suffix('.json').name}" if expected else "none is"
        raise UserError(
            f"The model {path} is not the file that was written here: its sha256 is {found[:12]}…, {recorded}. It was "
            f"not opened, because opening a model can run code. Train it again, or copy both files again."
        )
    spec = _check_versions(path, description)
    if path.suffix == JOBLIB:
        import joblib  # late: it loads numpy's and its own machinery

        estimator = joblib.load(io.BytesIO(content))
    else:
        estimator = _from_skops(path, content)
    _check_fit(path, estimator, spec, description)
    weights = description["weights"]
    if weights not in ("imagenet", "random"):
        weights = str(description.get("weights_source", weights))
    return Model(path, estimator, spec, tuple(description["classes"]), weights, description)


def _describe(path: Path) -> Mapping[str, Any]:
    beside = path.with_suffix(".json")
    if not path.is_file():
        raise UserError(f"There is no model {path}. 'python -m pipeline train' writes one, and prints its path.")
    try:
        description = json.loads(beside.read_bytes())
        kinds = {"spec": dict, "classes": list, "weights": str, "versions": dict}
        if not isinstance(description, dict) or not all(
            isinstance(description.get(name), kind) for name, kind in kinds.items()
        ):
            raise ValueError("it does not say what the model is")
    except FileNotFoundError as error:
        raise UserError(
            f"The model {path} has no {beside.name} beside it, which says what it was trained on and what its digest "
            f"is. Copy both files, or train the model again."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"The description {beside} cannot be read: {error}. Train the model again.") from error
    return description


def _check_versions(path: Path, description: Mapping[str, Any]) -> FeatureSpec:
    """Refuse a model of another version of this program or of scikit-learn."""
    try:
        spec = FeatureSpec.from_dict(description["spec"])
        if spec.format_version != FORMAT_VERSION:
            raise UserError(f"its features have the format {spec.format_version}")
    except UserError as error:
        raise UserError(
            f"The model {path} was made by another version of this program: {str(error).rstrip('.')}. Train it again."
        ) from error
    if description.get("key", spec.key()) != spec.key():
        raise UserError(
            f"The description {path.with_suffix('.json')} was edited: its spec is not the one that the model was "
            f"trained on, and predictions would be wrong. Copy both files again, or train the model again."
        )
    made, here = str(description["versions"].get("scikit-learn")), version("scikit-learn")
    # scikit-learn promises nothing between versions; a third number is for mended faults alone.
    if made.split(".")[:2] != here.split(".")[:2]:
        raise UserError(
            f"The model {path} was fitted by scikit-learn {made}; this is {here}, which may read it wrongly. Train it "
            f"again, or use it where scikit-learn is {made}."
        )
    return spec


def _check_fit(path: Path, estimator: Any, spec: FeatureSpec, description: Mapping[str, Any]) -> None:
    """Refuse a classifier that does not belong to its description: nothing but an edit makes one."""
    columns, classes = getattr(estimator, "n_features_in_", None), getattr(estimator, "classes_", ())
    expected = spec.columns
    if columns != expected or not len(classes) or max(classes) >= len(description["classes"]):
        raise UserError(
            f"The model {path} and its description do not belong together: it takes {columns} columns and knows "
            f"{len(classes)} classes, but the description has {expected} columns and {len(description['classes'])} "
            f"classes. Copy both files again, or train the model again."
        )


def _from_skops(path: Path, content: bytes) -> Any:
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return skops.io.loads(content, trusted=list(TRUSTED))
    except UntrustedTypesFoundException as error:
        raise UserError(
            f"The model {path} was refused: it holds types that could run code when it is loaded or used "
            f"({' '.join(str(error).split())}). Ask its author what they are for."
        ) from error
    except Exception as error:  # a hostile file makes skops raise whatever it likes
        raise UserError(f"The model {path} is damaged: {type(error).__name__}: {error}. Copy it again.") from error


def to_skops(path: Path, estimator: Any) -> bytes:
    """A fitted pipeline in the format for sharing; raises UserError for a type that `load_model` would refuse."""
    import skops.io

    content: bytes = skops.io.dumps(estimator)
    untrusted = sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED))
    if untrusted:
        raise UserError(
            f"The model {path} cannot be stored in the format for sharing: {', '.join(untrusted)} would be refused "
            f"when it is loaded. Share the .joblib file with those who trust you, or choose another --classifier."
        )
    return content


def export(path: Path) -> Path:
    """Write ``RUN.skops`` beside ``RUN.joblib``, and its digest into ``RUN.json``; return where.

    Raises UserError when the model is refused, or holds what the format, or who loads it, would refuse.
    """
    if path.suffix != JOBLIB:
        raise UserError(f"The model parameter must name a .joblib file that train wrote. Got {path}.")
    model = load_model(path)
    content = to_skops(path, model.estimator)
    target = path.with_suffix(SKOPS)
    digest = hashlib.sha256(content).hexdigest()
    with file_errors("write the model", target):
        atomic.write_atomically(target, content)
        description = to_json({**model.description, "skops_sha256": digest})
        atomic.write_atomically(path.with_suffix(".json"), description)
    return target
