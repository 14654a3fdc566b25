"""Shared parts of the tests: small real files, and real processes."""

from __future__ import annotations

import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("DATA_DIR") or ROOT / "data").resolve()
WEIGHTS_FILE = DATA_DIR / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
HAS_CIFAR10 = (DATA_DIR / "cifar-10-batches-bin" / "test_batch.bin").exists()
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = "4.14.1"
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine")

Run = Callable[..., subprocess.CompletedProcess[str]]


# Files of a minute or so: begun first, so that at the end no core is left with one of them while the others are idle.
LONG = [f"test_{name}" for name in ("faults", "cluster", "end_to_end", "vgg16", "examples", "cluster_fits", "cli")]
if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many of them as cores, and numpy has not been loaded yet
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
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


@pytest.fixture(scope="session")
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


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, which has loaded already what takes seconds to load."""
    from pipeline import cli
    from pipeline.common.progress import log

    def start(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(log, "handlers", [])  # what is there writes to where errors went before
        capsys.readouterr()
        try:
            status = cli.main([*map(str, arguments)])
        except SystemExit as end:  # after help
            status = int(end.code or 0)
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return start


def command(*arguments: object, cwd: Path = ROOT) -> str:
    """Do a command in this process, for a fixture of more than one test; gives what it prints."""
    from pipeline import cli
    from pipeline.common.progress import log

    log.handlers.clear()
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()) as noted, chdir(cwd):
        status = cli.main([*map(str, arguments)])
    log.handlers.clear()
    assert status == 0, noted.getvalue()
    return said.getvalue()


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


# --- pages in a browser -----------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start headless Chromium with a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    started = []

    def start(*, script: bool = True, width: int = 1280, dark: bool = False) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (
            "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / f'profile {len(started)}'}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        if not script:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        started.append(driver)
        show_as(driver, width, dark)
        return driver

    yield start
    for driver in started:
        driver.quit()


@pytest.fixture(scope="session")
def axe(request: pytest.FixtureRequest) -> str:
    """axe-core as its registry has it, kept in pytest's cache."""
    folder = request.config.cache.mkdir(f"axe-core-{AXE}")  # type: ignore[union-attr]
    archive = folder / f"axe-core-{AXE}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        command = [npm, "pack", f"axe-core@{AXE}", "--pack-destination", str(folder)]
        if npm is None or subprocess.run(command, capture_output=True, timeout=120, check=False).returncode:
            pytest.skip(f"axe-core {AXE} is not in the cache, and npm cannot fetch it")
    with tarfile.open(archive) as files:
        script = files.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode("utf-8")


def show_as(driver: Any, width: int, dark: bool) -> None:
    """Give a page this width in pixels, and this ground."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def violations(driver: Any, axe: str) -> list[tuple[str, list[str]]]:
    """Rules of WCAG 2.2 AA that the page of a browser breaks as far as axe-core can tell, and where."""
    driver.execute_script(axe)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = driver.execute_async_script("axe.run({runOnly: arguments[0]}).then(arguments[1])", tags)
    assert len(found["passes"]) > 20
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]]


def operate_map(driver: Any, rings: Mapping[str, Mapping[str, str]]) -> None:
    """Use the map of a page by keyboard, by pointer and by its buttons.

    ``rings`` says of every choice of what is ringed which points are, by their names, and what is said of each.
    """
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    one = driver.find_element(By.CSS_SELECTOR, ".map")
    svg, status, tile = (one.find_element(By.CSS_SELECTOR, each) for each in ("svg", "[role=status]", ".tile"))
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    assert not tile.is_displayed()

    def circles(name: str) -> list[tuple[float, float]]:
        path = svg.find_element(By.CSS_SELECTOR, f".{name}").get_attribute("d") or ""
        found = re.findall(r"M(-?\d+) (\d+)a(\d+)", path)
        return [(float(x) + float(radius), float(y)) for x, y, radius in found]

    def told() -> int:
        cells = one.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(3)")
        return sum(int(cell.get_attribute("textContent")) for cell in cells)

    note = "const [status] = arguments; new MutationObserver(() => seen.push(status.textContent)).observe(status, {childList: true})"
    driver.execute_script(note, status)
    chooser = Select(one.find_element(By.TAG_NAME, "select"))
    assert [option.text for option in chooser.options] == list(rings)
    for name, said in rings.items():
        chooser.select_by_visible_text(name)
        assert (len(circles("ring")), told()) == (len(said), len(said))
        driver.execute_script("window.seen = []")
        svg.send_keys(Keys.PAGE_DOWN * len(said))
        assert set(driver.execute_script("return seen")) == {f"{point}: {what}" for point, what in said.items()}
        assert circles("at")[0] in circles("ring")
    assert tile.is_displayed()

    svg.send_keys(Keys.HOME)  # none of the map's
    for key, axis, way in (
        (Keys.ARROW_LEFT, 0, -1),
        (Keys.ARROW_UP, 1, -1),
        (Keys.ARROW_RIGHT, 0, 1),
        (Keys.ARROW_DOWN, 1, 1),
    ):
        for _ in range(4):
            before = status.text, tile.get_attribute("style"), circles("at")[0]
            svg.send_keys(key)
            if status.text == before[0]:
                break  # at the edge
            assert tile.get_attribute("style") != before[1]
            assert way * (circles("at")[0][axis] - before[2][axis]) > 0
        else:
            continue
        assert circles("at")[0] == before[2]

    box = svg.rect
    for x, y in circles("ring")[:3]:
        away = (x / 1000 - 0.5) * box["width"], (y / 1000 - 0.5) * box["height"]
        ActionChains(driver).move_to_element_with_offset(svg, *map(round, away)).perform()
        near = circles("at")[0]
        assert abs(near[0] - x) + abs(near[1] - y) < 2 * 1000 / box["width"], "rounded to pixels"
    before = len(circles("ring"))
    first, *_ = one.find_elements(By.CSS_SELECTOR, ".legend button")
    own = int(one.find_element(By.CSS_SELECTOR, "tbody td:nth-child(3)").get_attribute("textContent"))
    first.click()
    assert first.get_attribute("aria-pressed") == "false"
    assert not svg.find_element(By.TAG_NAME, "path").is_displayed()
    assert len(circles("ring")) == before - own
    driver.execute_script("window.seen = []")
    svg.send_keys(Keys.PAGE_UP * 20)
    assert not any(f": {first.text}, " in text for text in driver.execute_script("return seen"))
    first.click()
    assert len(circles("ring")) == before
    assert told() == before
    assert driver.get_log("browser") == []
