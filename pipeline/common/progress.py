"""Progress a person can see: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm  # loaded for the first bar: a cache hit that shows none need not pay for it

log = logging.getLogger("pipeline")

LINE_INTERVAL = 10.0  # seconds between two plain lines: often enough to trust, rare enough to read


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes log lines to stderr above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if "tqdm" not in sys.modules:  # there is no bar
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def format_seconds(seconds: float) -> str:
    """Say a duration as a person would: ``8.4 s``, ``2 min 05 s``, ``1 h 03 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_bytes(size: float) -> str:
    """Say a number of bytes in decimal units, as file managers do: ``722.0 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class Progress:
    """Counts work done, and shows rate and time left.

    Parameters
    ----------
    what : str
        What is being done, for example "features".
    total : int
        How many units there are in all; 0 where that is not known yet.
    unit : str
        The unit in the plural, for example "images".
    done : int
        How many units are already done, by an earlier run; they do not count into the rate.
    scale : bool
        Whether to print the counts with k, M, G, as for bytes.
    """

    def __init__(self, what: str, total: int, unit: str, *, done: int = 0, scale: bool = False) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._start = self._last = time.monotonic()
        self._first = done
        self._note = ""
        self._scale = scale
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=done,
                desc=what,
                unit=f" {unit}",
                unit_scale=scale,
                dynamic_ncols=True,
                smoothing=0.1,
                file=sys.stderr,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def rate(self) -> float:
        """Units per second since this run began."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def update(self, count: int) -> None:
        """Count ``count`` more units as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        else:
            self._maybe_line()

    def skip(self, count: int) -> None:
        """Count ``count`` more units as done by an earlier run: they say nothing about the rate."""
        self.done += count
        self._first += count
        if self._bar is not None:
            self._bar.initial += count
            self._bar.update(count)

    def note(self, text: str) -> None:
        """Say what is being worked on just now, beside the counts."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self._maybe_line()

    def close(self) -> None:
        """Take the bar off the terminal; what it led to is said by the caller."""
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()

    def _maybe_line(self) -> None:
        now = time.monotonic()
        if now - self._last < LINE_INTERVAL:
            return
        self._last = now
        say = format_bytes if self._scale else "{:,.0f}".format
        parts = [f"{self.what}: {say(self.done)}"]
        if self.total:
            share = self.done / self.total
            parts[0] += f" of {say(self.total)}" + ("" if self._scale else f" {self.unit}") + f" ({share:.0%})"
        if self.done > self._first:
            if self.rate >= 1:  # "0 candidates/s" says nothing that the time left does not
                parts.append(f"{say(self.rate)}{'' if self._scale else ' ' + self.unit}/s")
            if self.total:
                parts.append(f"{format_seconds((self.total - self.done) / self.rate)} left")
        if self._note:
            parts.append(self._note)
        log.info(", ".join(parts))
