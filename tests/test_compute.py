"""Beside the network: reading ahead and writing behind keep their order, and hide no error."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pipeline import compute


class Images:
    """Numbers instead of images; notes what was read, and by whom."""

    def __init__(self, count: int, faulty: int = -1) -> None:
        self.values, self.faulty = np.arange(count), faulty
        self.read: list[tuple[int, int]] = []
        self.threads: list[str] = []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.read.append((rows.start, rows.stop))
        self.threads.append(threading.current_thread().name)
        if rows.start <= self.faulty < rows.stop:
            raise ValueError("a faulty image")
        return self.values[rows]


def parts(images: Images, size: int, rows: list[range]) -> list[np.ndarray]:
    def extract(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"block5_pool.avg": np.repeat(batch[:, None], 512, axis=1).astype(np.float16)}

    with compute.ReadAhead(images, size, 10) as ahead:
        return [
            compute.features(extract, ahead, part, ["block5_pool.avg"], lambda count: None)["block5_pool.avg"][:, 0]
            for part in rows
        ]


def test_every_row_is_read_once_in_order_and_ahead() -> None:
    images = Images(25)
    found = parts(images, 4, [range(10), range(10, 20), range(20, 25)])
    assert np.concatenate(found).tolist() == list(range(25))
    assert images.read == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 20), (20, 24), (24, 25)]
    assert images.threads[0] == "MainThread"
    assert "MainThread" not in images.threads[1:]


def test_parts_that_are_there_are_skipped() -> None:
    found = parts(Images(35), 4, [range(10), range(20, 30), range(30, 35)])
    assert np.concatenate(found).tolist() == [*range(10), *range(20, 35)]


def test_a_faulty_image_stops_only_who_asks_for_it() -> None:
    found = parts(Images(30, faulty=11), 4, [range(10), range(20, 30)])
    assert np.concatenate(found).tolist() == [*range(10), *range(20, 30)]
    with pytest.raises(ValueError, match="a faulty image"):
        parts(Images(30, faulty=11), 4, [range(10), range(10, 20)])


def test_work_aside_is_done_in_order_and_its_errors_are_raised() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.01)
        if number == 3:
            raise OSError("no space")
        done.append(number)

    with pytest.raises(OSError, match="no space"), compute.Aside() as aside:
        for number in range(10):
            aside.do(work, number)
    assert done == [0, 1, 2], "nothing is begun after an error"


def test_an_interrupt_waits_for_what_was_begun() -> None:
    done: list[int] = []

    def work() -> None:
        time.sleep(0.1)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), compute.Aside() as aside:
        aside.do(work)
        raise KeyboardInterrupt
    assert done == [1]
