"""A name, or a folder of images, to a data set.

To add one, write ``load_NAME(data_dir, *, download)`` in a module ``pipeline/data/NAME.py``, and add NAME to `NAMES`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.keys import safe_name
from pipeline.common.text import did_you_mean
from pipeline.data.dataset import Dataset, NotFoundHere
from pipeline.data.options import FolderOptions

NAMES = ("cifar10", "digits")  # their images are square
AS_IT_IS = FolderOptions()


def is_folder(name: str) -> bool:
    """Whether a ``--dataset`` names a folder of images; `NAMES` come before folders of the same name."""
    return name not in NAMES and Path(name).expanduser().is_dir()


def name_of(name: str) -> str:
    """What a data set is called: a folder by its own name, which must not pass for one of `NAMES`."""
    if name in NAMES:
        return name
    base = safe_name(Path(name).expanduser().resolve().name)
    return f"{base}-folder" if base.lower() in NAMES else base


def load_dataset(name: str, data_dir: Path, *, download: bool, how: FolderOptions = AS_IT_IS) -> Dataset:
    """Load a data set by name: one of `NAMES`, looked for, or downloaded, in ``data_dir``; or the path of a folder.

    Raises
    ------
    NotFoundHere
        When it is not on this machine and must not be downloaded, or is neither a known name nor a folder.
    UserError
        When the files are faulty, or the download failed.
    """
    if name in NAMES and (how.labels or how.group_by):
        raise UserError(
            f"A table of labels and groups are for a folder of images. Name the folder with --dataset: got {name!r}."
        )
    if name in NAMES:
        load = getattr(importlib.import_module(f"pipeline.data.{name}"), f"load_{name}")
        loaded: Dataset = load(data_dir, download=download)
        return loaded
    if is_folder(name):
        from pipeline.data.folder import load_folder  # late: it loads Pillow

        return load_folder(Path(name).expanduser(), name_of(name), how)
    raise NotFoundHere(
        f"The dataset parameter must be one of {', '.join(NAMES)}, or a folder of images. Got {name!r}, where there is "
        f"no folder.{did_you_mean(name, NAMES)}"
    )
