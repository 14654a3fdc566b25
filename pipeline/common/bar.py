"""The bar of `common.progress`: tqdm's on a terminal or in a notebook, plain lines of the log everywhere else."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from pipeline.common.progress import in_notebook
from pipeline.common.text import shorten

if TYPE_CHECKING or not in_notebook():
    from tqdm import tqdm
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no widgets: then it is a bar of text
        from tqdm.auto import tqdm  # a bar of the notebook's own where it can show one; it loads more

log = logging.getLogger("pipeline")

LINE_INTERVAL = 10.0  # seconds between two plain lines: often enough to trust, rare enough to read


class Bar(tqdm):  # type: ignore[type-arg]
    """See `common.progress.Progress` for the parameters."""

    monitor_interval = 0  # no thread that looks after it

    def __init__(self, what: str, total: int, unit: str, *, done: int, scale: bool) -> None:
        self._is_bar, self._last_line = sys.stderr.isatty() or in_notebook(), time.monotonic()
        done_text, total_text = ("{n_fmt}", "{total_fmt}") if scale else ("{n:,}", "{total:,}")
        rest = (
            f" of {total_text}{{unit}} ({{percentage:.0f}} %), {{rate_fmt}}, {{remaining}} left" if total else "{unit}"
        )
        super().__init__(
            total=total or None,
            initial=done,
            desc=what,
            unit=f" {unit}",
            unit_scale=scale,
            dynamic_ncols=True,
            smoothing=0.1,
            miniters=1,
            leave=False,
            bar_format=None if self._is_bar else f"{{desc}}: {done_text}{rest}{{postfix}}",
            disable=log.level > logging.INFO,
        )

    def skip(self, count: int) -> None:
        """Count more units as done by an earlier run: they say nothing about the rate."""
        if not self.disable:
            self.initial += count
            self.update(count)

    def note(self, text: str) -> None:
        """Say what is being worked on just now, beside the counts."""
        if not self.disable:
            self.set_postfix_str(text)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What a bar is drawn from, its words shortened until the bar itself has ten columns; tqdm's own hook."""
        found = dict(super().format_dict)
        if found["ncols"]:
            room = found["ncols"] - len(self.format_meter(**{**found, "ncols": None, "postfix": None}))
            if found["postfix"]:
                found["postfix"] = shorten(found["postfix"], room - 2) if room >= 12 else None
            if room < 0:
                found["prefix"] = shorten(found["prefix"].removesuffix(": "), max(8, len(found["prefix"]) + room - 2))
        return found

    @staticmethod
    def format_meter(*arguments: Any, **more: Any) -> str:
        """Write slow rates with their unit as fast ones have it, ``6.79 s/steps``; tqdm's own hook."""
        return str(tqdm.format_meter(*arguments, **more)).replace("s/ ", " s/")

    def display(self, *arguments: Any, **more: Any) -> Any:
        """Show the bar, or at times a line; tqdm's own hook."""
        if self._is_bar:
            return super().display(*arguments, **more)
        if not any(arguments) and self.n > self.initial and time.monotonic() - self._last_line >= LINE_INTERVAL:
            self._last_line = time.monotonic()
            log.info("%s", self)
        return False
