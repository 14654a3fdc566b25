"""The bar of `common.progress`: tqdm's on a terminal, plain lines of the log everywhere else."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

log = logging.getLogger("pipeline")

LINE_INTERVAL = 10.0  # seconds between two plain lines: often enough to trust, rare enough to read


class Bar(tqdm):  # type: ignore[type-arg]
    """See `common.progress.Progress` for the parameters."""

    monitor_interval = 0  # no thread that looks after it

    def __init__(self, what: str, total: int, unit: str, *, done: int, scale: bool) -> None:
        self._on_terminal, self._last_line = sys.stderr.isatty(), time.monotonic()
        done_text, total_text = ("{n_fmt}", "{total_fmt}") if scale else ("{n:,}", "{total:,}")
        rest = (
            f" of {total_text}{{unit}} ({{percentage:.0f}}%), {{rate_fmt}}, {{remaining}} left" if total else "{unit}"
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
            bar_format=None if self._on_terminal else f"{{desc}}: {done_text}{rest}{{postfix}}",
        )

    def update(self, n: float | None = 1) -> None:
        """Count more units as done."""
        super().update(n)

    def skip(self, count: int) -> None:
        """Count more units as done by an earlier run: they say nothing about the rate."""
        self.initial += count
        self.update(count)

    def note(self, text: str) -> None:
        """Say what is being worked on just now, beside the counts."""
        self.set_postfix_str(text)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show the bar, or at times a line; tqdm's own hook."""
        if self._on_terminal:
            return super().display(msg, pos)
        if msg is None and self.n > self.initial and time.monotonic() - self._last_line >= LINE_INTERVAL:
            self._last_line = time.monotonic()
            log.info("%s", self)
        return False
