"""What is shipped: a wheel of the package alone, and locks that hold what pyproject.toml asks for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipeline

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _locked(name: str) -> dict[str, str]:
    """Every package of a lock with the version that this machine would get."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text, "a lock names no host"
    pins: dict[str, str] = {}
    for entry in re.split(r"\n(?=[a-z])", text)[1:]:
        requirement = Requirement(entry.split("\\\n")[0])
        assert "--hash=sha256:" in entry, requirement
        if requirement.marker is None or requirement.marker.evaluate():
            (pin,) = requirement.specifier
            assert pin.operator == "==", requirement
            pins[canonicalize_name(requirement.name)] = pin.version
    return pins


def test_locks_hold_what_the_project_asks_for_and_users_get_nothing_else() -> None:
    user = _locked("requirements.txt")
    asked = [(user, PROJECT["dependencies"])]
    for extra in ("dev", "docs"):
        asked.append((_locked(f"requirements-{extra}.txt"), PROJECT["optional-dependencies"][extra]))
    for pins, requirements in asked:
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
        assert user.items() <= pins.items(), "tests and documentation run with what users have"
    assert {"pytest", "ruff", "mypy", "selenium", "hypothesis", "polars", "sphinx", "torch"}.isdisjoint(user)


@pytest.mark.timeout(120)
def test_the_wheel_holds_the_package_alone_with_its_command_and_templates(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"vgg16_features-{pipeline.__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (scripts,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").rglob("*.*") if path.is_file()}
    package = {name for name in package if not name.endswith(".pyc")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert "pipeline/py.typed" in package
    assert any(name.endswith("templates/index.html") for name in package)
    assert "vgg16-features = pipeline.cli:main" in scripts
    assert any(name.endswith("licenses/LICENSE") for name in names)
