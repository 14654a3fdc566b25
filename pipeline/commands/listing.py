"""What commands that list something for each image have in common: which images, and how the list is given."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

from pipeline.commands.options import ListOptions
from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.text import count_of_files, printable, terminal_width, to_json, wrap
from pipeline.data import folder
from pipeline.data.dataset import Skipped, few_reasons, listing
from pipeline.features import compute

log = logging.getLogger("pipeline")


def check_targets(options: ListOptions) -> None:
    """Raise UserError unless what is asked for can be written: now, not after an hour of computing."""
    for path in filter(None, (options.output, options.sheet)):
        with file_errors("write the file", path):
            if path.is_dir():
                raise UserError(f"There is a folder where {path} is to be written. Name a file.")
            if not path.parent.is_dir():
                raise UserError(f"There is no folder {path.parent} to write {path.name} to. Make it, or name another.")
            if not os.access(path.parent, os.W_OK):
                raise UserError(
                    f"The folder {path.parent} cannot be written to. Give yourself permission, or name another."
                )


def gather(named: Sequence[Path], *, follow_links: bool) -> tuple[list[Path], list[Skipped]]:
    """Every image file that is named, or in a folder that is named, and what in these is none."""
    paths: list[Path] = []
    skipped: list[Skipped] = []
    for path in named:
        with file_errors("read the images", path):
            if path.is_dir():
                found, left_out = folder.list_images(path, follow_links=follow_links)
                paths += [path / name for name in found]
                skipped += [Skipped(str(path / item.file), item.reason) for item in left_out]
            elif path.exists():
                paths.append(path)
            else:
                raise UserError(f"There is no image or folder {printable(str(path))}. Check the path.")
    if not paths:
        what = f" {count_of_files(len(skipped))} cannot be used: {few_reasons(skipped)}." if skipped else ""
        raise UserError(f"There is no image in {', '.join(printable(str(path)) for path in named)}.{what}")
    return paths, skipped


def check_usable(found: Sized, skipped: Sequence[Skipped], named: Sequence[Path], *, strict: bool) -> None:
    """Raise UserError when not one image can be used, or, where that is strict, one cannot."""
    if not found:
        raise UserError(f"There is no image among {count_of_files(len(skipped))}: {few_reasons(skipped)}.")
    if strict:
        compute.refuse_skipped(skipped, ", ".join(printable(str(path)) for path in named))


def told(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    """What was not used, and why, for programs."""
    return [{"file": printable(item.file), "reason": item.reason} for item in skipped]


def deliver(
    options: ListOptions,
    summary: dict[str, Any],
    texts: dict[str, Callable[[int], str]],
    sheet: Callable[[], bytes],
    skipped: Sequence[Skipped],
    said: str,
) -> tuple[str, dict[str, Any]]:
    """Write what was asked for; return what is to be printed, and the same for programs, which is ``summary``.

    ``texts`` give the list as ``table`` and ``csv``, in lines of so many columns; ``sheet`` draws the contact sheet;
    ``said`` is what a file holds, as in ``3 predictions``.
    """
    if options.sheet is not None:
        with file_errors("write the contact sheet", options.sheet):
            atomic.write_atomically(options.sheet, sheet())
        log.info("contact sheet: %s", options.sheet)
    closing = wrap(f"{listing(skipped, '')}\n") if skipped else ""
    kind = options.resolved_format
    texts = {**texts, "json": lambda _: to_json(summary).decode("utf-8")}
    if options.output is None:
        text = texts[kind](terminal_width())
        if kind == "table":
            return f"{text}\n{closing}" if closing else text, summary
        if closing:
            log.warning("%s", closing.rstrip())  # beside what a program reads
        return text, summary
    with file_errors("write the list", options.output):
        atomic.write_atomically(options.output, texts[kind](sys.maxsize).encode("utf-8"))
    return wrap(f"{printable(str(options.output))}: {said}\n") + closing, summary
