"""Beside the network: work keeps its order, and hides no error."""

from __future__ import annotations

import signal
import time

import pytest

from pipeline.common.background import BackgroundWorker


def test_work_in_the_background_is_done_in_order_and_its_errors_are_raised() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.01)
        if number == 3:
            raise OSError("no space")
        done.append(number)

    with pytest.raises(OSError, match="no space"), BackgroundWorker() as worker:
        for number in range(10):
            worker.submit(work, number)
    assert done == [0, 1, 2], "nothing is begun after an error"


def test_an_interrupt_waits_for_what_was_begun() -> None:
    done: list[int] = []

    def work() -> None:
        time.sleep(0.1)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), BackgroundWorker() as worker:
        worker.submit(work)
        raise KeyboardInterrupt
    assert done == [1]


def test_more_interrupts_wait_too() -> None:
    done: list[int] = []

    def work() -> None:
        time.sleep(0.5)
        done.append(1)

    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt), BackgroundWorker() as worker:
            worker.submit(work)
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)  # again and again, while the block ends
            time.sleep(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert done == [1]
