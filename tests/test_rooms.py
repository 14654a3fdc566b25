"""The rooms: who imports whom, and who alone imports what is heavy."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "pipeline"
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.glob("*.py")}

GROUND = {
    "aside",
    "collection",
    "errors",
    "files",
    "memory_file",
    "options",
    "progress",
    "sealing",
    "spec",
}  # importable by all; import only each other
LEAVES = {
    "datasets",
    "feeding",
    "folders",
    "images",
    "models",
    "sheet",
    "card",
    "guard",
    "parts",
    "reuse",
    "weights",
    "weights_mirror",
    "vgg16",
    "store",
    "certainty",
    "classifiers",
    "multinomial",
    "scaling",
    "records",
    "leaderboard",
    "charts",
    "history",
    "figures",
    "report",
    "hardware",
}
SAME_ROOM = {
    "weights": {"weights_mirror"},
    "parts": {"store"},
    "reuse": {"store"},
    "datasets": {"folders"},
    "folders": {"images"},
    "leaderboard": {"report"},
    "card": {"report"},
}  # one room in two modules, each small enough to read
STAGES = {
    "computing", "demo", "extract", "fitting", "grids", "inspection", "page", "paths", "predict", "protocol", "reading",
    "sharing", "sweep", "train", "transformer",
}  # fmt: skip
TOP = {"cli", "__main__", "__init__"}

OWNERS = {
    "argparse": {"cli"},
    "tensorflow": {"vgg16"},
    "keras": {"vgg16"},
    "h5py": {"store"},
    "matplotlib": {"figures"},
    "skops": {"models"},
    "tqdm": {"progress"},
    "pooch": {"datasets"},
    "requests": {"datasets"},
    "sklearn": {"fitting", "classifiers", "multinomial", "paths", "protocol", "scaling", "train", "transformer"},
    "scipy": {"multinomial", "fitting"},
    "threadpoolctl": {"multinomial"},
    "jinja2": {"page"},
    "PIL": {"images", "page", "sheet"},
    "joblib": {"models", "train", "sweep"},
}


def imports(tree: ast.AST) -> set[str]:
    """Every module imported anywhere in a module, late imports included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def own(name: str) -> set[str]:
    """The package's modules that a module imports."""
    return {
        parts[1] for item in imports(MODULES[name]) if (parts := item.split("."))[0] == "pipeline" and len(parts) > 1
    } & set(MODULES)


def test_every_module_has_a_room() -> None:
    assert set(MODULES) == GROUND | LEAVES | STAGES | TOP


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name: str) -> None:
    if name in GROUND:
        allowed = GROUND
    elif name in LEAVES:
        allowed = GROUND | SAME_ROOM.get(name, set())
    elif name in STAGES:
        allowed = GROUND | LEAVES | STAGES
    else:
        allowed = GROUND | STAGES | TOP | {"classifiers", "hardware", "leaderboard"}
    assert own(name) - {name} <= allowed


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_heavy_packages_have_one_owner(package: str) -> None:
    users = {name for name, tree in MODULES.items() if package in {item.split(".")[0] for item in imports(tree)}}
    assert users <= OWNERS[package]


def test_spec_imports_nothing_heavy() -> None:
    assert {item.split(".")[0] for item in imports(MODULES["spec"])} <= set(sys.stdlib_module_names) | {"pipeline"}


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("import pipeline.cli", {"numpy", "h5py", "tensorflow", "sklearn", "matplotlib", "tqdm"}),
        ("import pipeline.cli, pipeline.extract", {"tqdm", "importlib.metadata", "PIL", "pooch", "requests"}),
        (
            "import pipeline.extract, pipeline.train, pipeline.sweep, pipeline.page, pipeline.inspection",
            {"tensorflow", "keras", "sklearn", "matplotlib"},
        ),
        ("import pipeline.protocol, pipeline.figures", {"tensorflow", "keras"}),
    ],
)
def test_heavy_imports_are_late(command: str, absent: set[str]) -> None:
    code = f"import sys; {command}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_modules_stay_small() -> None:
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 600, path.name
