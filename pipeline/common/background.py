"""One thing at a time beside what the caller does: the last part is written while the next is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline.common.quiet import interrupts_later


class BackgroundWorker:
    """Does one thing at a time in a thread, in the order in which they are handed over.

    An error of that thread is raised at the next `submit` or `result`, as itself. Leaving the block waits for what was
    begun, also after an error and one interrupt or many: a file being written is finished or removed, never left.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")
        self._begun: Future[Any] | None = None

    def __enter__(self) -> BackgroundWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.result()
        finally:
            with interrupts_later():  # a lock held for what was begun must not be let go before
                self._pool.shutdown()

    def submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Begin some work, once the work before it is done."""
        self.result()
        self._begun = self._pool.submit(work, *arguments)

    def result(self) -> Any:
        """Wait for the work begun, if any, and return its result."""
        begun, self._begun = self._begun, None
        return begun.result() if begun is not None else None
