"""Loading native code without its greetings; and without an interrupt what must not end in its middle."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.errors import UserError


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the end of the block, however many come.

    Within TensorFlow's loading they become other errors; an interrupted `Thread.join` takes the thread for ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda *_: came.append(1)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if came:
        raise KeyboardInterrupt


_one_at_a_time = threading.RLock()


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to stderr in the block; show it only if the block fails.

    TensorFlow's C++ side greets before any of its log levels apply. There is one stderr for all threads, so another
    that comes to such a block waits.
    """
    with _one_at_a_time, tempfile.TemporaryFile() as spool:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(spool.fileno(), 2)
        try:
            yield
        except UserError:
            raise  # it says all there is to say
        except Exception:
            sys.stderr.flush()
            spool.seek(0)
            os.write(kept, spool.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
