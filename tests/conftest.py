"""Shared parts of the tests: small real files, and real processes."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("DATA_DIR") or ROOT / "data").resolve()
WEIGHTS_FILE = DATA_DIR / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
HAS_CIFAR10 = (DATA_DIR / "cifar-10-batches-bin" / "test_batch.bin").exists()

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("data") and not HAS_CIFAR10:
            item.add_marker(pytest.mark.skip(reason="no CIFAR-10 in $DATA_DIR"))
        if item.get_closest_marker("weights") and not WEIGHTS_FILE.exists():
            item.add_marker(pytest.mark.skip(reason="no VGG16 weights in $DATA_DIR"))


@pytest.fixture(autouse=True)
def _no_keras_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What lies in the home of whoever runs the tests must not change their outcome."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path_factory.getbasetemp() / "no-keras-home"))


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of what is said read whole sentences; `test_terminal` is about where their lines are broken."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def run() -> Run:
    """Run ``python -m pipeline`` as a real process, as a user would."""

    def start(
        *arguments: object, env: Mapping[str, str] | None = None, timeout: float = 300, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return start


def assert_user_error(done: subprocess.CompletedProcess[str], *words: str) -> str:
    """A user's error is one paragraph on stderr and exit status 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (paragraph,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.rstrip().endswith(paragraph), "the error comes last"
    for word in words:
        assert word in paragraph
    return paragraph


@contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    """A real web server on this machine: the address at which it serves a folder."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.func.log_message = lambda *arguments: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}"
        service.shutdown()
