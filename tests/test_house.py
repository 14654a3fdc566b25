"""The plan of the house: who may import whom, and who alone imports what is heavy."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGES = ["common", "data", "network", "features", "models", "selection", "output", "commands"]
MODULES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "pipeline").rglob("*.py")}
OWNERS = {  # packages whose modules alone import what is heavy
    "tensorflow": {"network"},
    "keras": {"network"},
    "h5py": {"network", "features"},
    "sklearn": {"features", "models", "selection", "output", "commands"},
    "matplotlib": {"output"},
    "jinja2": {"output"},
    "argparse": {"common", "pipeline"},
    "pooch": {"data", "network"},
    "dask": {"common"},
    "distributed": {"common"},
}


def imports(tree: ast.AST) -> set[str]:
    """Every module and name imported anywhere in a module, late imports included."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), "absolute imports only"
    return {f"{getattr(node, 'module', '') or ''}.{alias.name}".lstrip(".") for node in nodes for alias in node.names}


def test_a_module_imports_only_from_its_own_package_and_those_before_it() -> None:
    for path, tree in MODULES.items():
        rank = PACKAGES.index(path.parent.name) if path.parent.name in PACKAGES else len(PACKAGES)
        for name in imports(tree):
            if name.startswith("pipeline.") and name.split(".")[1] in PACKAGES:
                assert PACKAGES.index(name.split(".")[1]) <= rank, f"{path} imports {name}"


@pytest.mark.parametrize("heavy", sorted(OWNERS))
def test_what_is_heavy_has_owners(heavy: str) -> None:
    users = {
        path.parent.name for path, tree in MODULES.items() if any(name.split(".")[0] == heavy for name in imports(tree))
    }
    assert users <= OWNERS[heavy]


def test_packages_are_named_in_order_and_empty_at_the_front() -> None:
    assert {path.parent.name for path in MODULES if path.parent.parent.name == "pipeline"} == set(PACKAGES)
    assert all(not (ROOT / "pipeline" / name / "__init__.py").read_text(encoding="utf-8") for name in PACKAGES)


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("import pipeline.cli", {"numpy", "h5py", "tensorflow", "sklearn", "matplotlib", "tqdm"}),
        (
            "import pipeline.cli, pipeline.features.extract",
            {"tqdm", "importlib.metadata", "PIL", "pooch", "requests", "dask"},
        ),
        (
            "import pipeline.features.extract, pipeline.commands.train, pipeline.commands.sweep, pipeline.output.page, "
            "pipeline.commands.inspect",
            {"tensorflow", "keras", "sklearn", "matplotlib"},
        ),
        ("import pipeline.selection.protocol, pipeline.output.figures", {"tensorflow", "keras"}),
    ],
)
def test_heavy_imports_are_late(command: str, absent: set[str]) -> None:
    code = f"import sys; {command}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_modules_stay_small() -> None:
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 600, path.name
