"""What a notebook or a script uses: the public names of the package, on real caches and runs."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

import pipeline


def test_public_names_are_listed_and_there() -> None:
    assert {*pipeline.__all__, "__version__"} == set(dir(pipeline))
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = pipeline.load_modle
    assert issubclass(pipeline.UserError, ValueError)


def test_importing_costs_nothing() -> None:
    code = "import sys, pipeline; dir(pipeline); print(*(name for name in sys.modules if name.startswith('pipeline')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pipeline"]


def test_the_version_is_the_one_that_is_cited() -> None:
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dynamic"]
    assert f"\nversion: {pipeline.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
