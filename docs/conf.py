"""How the documentation is built: `make docs`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The examples run in a copy, so that what they compute is not left beside them. A second build finds it there.
GALLERY = ROOT / "docs" / "_build" / "gallery"
shutil.copytree(ROOT / "examples" / "gallery", GALLERY, dirs_exist_ok=True)
if not (GALLERY / "data").exists():
    (GALLERY / "data").symlink_to(Path(os.environ.get("DATA_DIR") or ROOT / "data").resolve())

from pipeline import __version__ as release

project = "vgg16-features"
author = "the authors of vgg16-features"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
autodoc_typehints = "none"  # the docstrings give types, with shapes
sphinx_gallery_conf = {
    "examples_dirs": str(GALLERY),
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 1e9,
}

html_theme = "furo"
html_show_copyright = False
html_title = f"{project} {release}"
