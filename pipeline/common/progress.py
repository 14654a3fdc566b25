"""Progress a person can see: a bar on a terminal or in a notebook, plain lines everywhere else."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from pipeline.common.text import wrap

if TYPE_CHECKING:
    from pipeline.common.bar import Bar

log = logging.getLogger("pipeline")


def in_notebook() -> bool:
    """Whether this is the process of a notebook; what starts one has loaded the same modules."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes log lines to stderr above a progress bar instead of through it, as wide as the terminal is."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if "tqdm" not in sys.modules or not (sys.stderr.isatty() or in_notebook()):  # no bar to be drawn around
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Break the line only where a person sees it: what reads a file or a pipe finds it whole."""
        text = super().format(record)
        return wrap(text) if self.stream.isatty() else text


def show_log(level: int = logging.INFO) -> None:
    """Show the log from a level on, once however often it is asked for."""
    if not log.handlers:
        log.addHandler(ConsoleHandler(sys.stderr))
        log.propagate = False
    log.handlers[0].setFormatter(logging.Formatter("%(asctime)s  %(message)s" if level < logging.INFO else None))
    log.setLevel(level)


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


def Progress(what: str, total: int, unit: str, *, done: int = 0, scale: bool = False) -> Bar:  # noqa: N802 - a class to its users
    """Count work done, and show rate and time left, until the end of the block.

    As in "features: 120 of 400 images"; ``total`` is 0 where it is not known yet, units ``done`` by an earlier run do
    not count into the rate, and ``scale`` prints counts with k, M, G, as for bytes.
    """
    from pipeline.common.bar import Bar  # late: a cache hit that shows none need not pay for tqdm

    return Bar(what, total, unit, done=done, scale=scale)
