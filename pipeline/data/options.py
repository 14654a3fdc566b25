"""How a folder of images is read, and how an image is shown to the network, as on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.options import Options, option
from pipeline.common.text import did_you_mean

TABLE_COLUMNS = ("file", "label", "split", "group")  # of a table of labels; the last two may be missing

# What the network sees of an image: itself, or itself and its mirror image, whose features are averaged.
VIEWS = ("plain", "mirror")
SIZE: dict[str, Any] = {
    "metavar": "PX",
    "least": 32,  # below it the fifth pooling has nothing left to pool
    "most": 1024,  # more than four times what VGG16 was trained at is surely a slip
    "advice": "VGG16 halves an image five times: take 64 for CIFAR-10, or 32 for its own size.",
}


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """How an image is made to fit, at whatever size."""

    fit: str = option(
        "squash", "what is done to images that are not square", metavar="NAME", choices=("squash", "crop", "pad")
    )


@dataclass(frozen=True, kw_only=True)
class ImageOptions(FitOptions):
    """What is done to an image before the network sees it: part of the key, the record and the card as it is given.

    A field that is added is ``late``, so that the keys of what is there stay.
    """

    image_size: int = option(64, "height and width the network sees", **SIZE)
    view: str = option("plain", "what the network sees of an image", choices=VIEWS, late=True)

    @property
    def image(self) -> dict[str, Any]:
        """What is done to an image, by name, whatever else a subclass holds."""
        others = {item.name: getattr(self, item.name) for item in ImageOptions.declared()}
        return {"image_size": self.image_size, **others}


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Options):
    """What a folder of images is taken for: it changes which rows there are, and so the data set's digest."""

    follow_links: bool = option(False, "follow symbolic links out of a folder of images")
    labels: Path | None = option(
        None, "a table of file, label and, if it has them, split and group", metavar="FILE.csv"
    )
    table_columns: str | None = option(
        None, "what the table calls its columns, as in file=path,label=class", metavar="NAME=NAME,…"
    )
    group_by: str | None = option(
        None, "images whose paths have the same match are not parted by a split", metavar="REGEX"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.column_names()
        if self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                raise UserError(
                    f"The group by parameter must be a regular expression. Got {self.group_by!r} instead: {error}."
                ) from error

    def column_names(self) -> dict[str, str]:
        """What a table calls `TABLE_COLUMNS`, of those that it calls otherwise."""
        found = {}
        for pair in (self.table_columns or "").split(",") if self.table_columns else []:
            name, _, called = pair.partition("=")
            if name.strip() not in TABLE_COLUMNS or not called.strip():
                raise UserError(
                    f"The table columns parameter must be {', '.join(TABLE_COLUMNS)}, each with = and the table's name "
                    f"of it, as in file=path,label=class. Got {pair!r} instead."
                    f"{did_you_mean(name.strip(), TABLE_COLUMNS)}"
                )
            found[name.strip()] = called.strip()
        if found and self.labels is None:
            raise UserError("The table columns parameter names columns of a table, so it needs --labels FILE.csv.")
        return found

    @property
    def reading(self) -> dict[str, Any]:
        """What differs from the defaults, as plain JSON values that make the same again; not what a subclass adds."""
        held = {item.name: getattr(self, item.name) for item in FolderOptions.declared()}
        return {
            name: value if value is True else str(value) for name, value in held.items() if value not in (None, False)
        }
