"""A fitted model in a format that others can load without trusting its author: skops.

python -m pipeline export --model models/RUN.joblib
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.text import to_json
from pipeline.models import persistence


def export(path: Path) -> str:
    """Write ``RUN.skops`` beside ``RUN.joblib``, and its digest into ``RUN.json``; return what to print.

    Raises
    ------
    UserError
        When the model is refused, or holds what the format, or who loads it, would refuse.
    """
    if path.suffix != persistence.JOBLIB:
        raise UserError(f"The model parameter must name a .joblib file that train wrote. Got {path}.")
    model = persistence.load(path)
    content = persistence.to_skops(path, model.estimator)
    target = path.with_suffix(persistence.SKOPS)
    digest = hashlib.sha256(content).hexdigest()
    with file_errors("write the model", target):
        atomic.write_atomically(target, content)
        description = to_json({**model.description, "skops_sha256": digest})
        atomic.write_atomically(path.with_suffix(".json"), description)
    return f"{target}: share it together with {path.with_suffix('.json').name}; predict takes it as --model\n"
