"""Fills the templates beside this module; values are escaped where the result is HTML."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound, select_autoescape
from markupsafe import Markup

from pipeline.common import text
from pipeline.common.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["number"] = text.number
    environment.filters["percent"] = percent
    environment.filters["share"] = text.percent
    return environment


def percent(value: float | None, digits: int = 2) -> str:
    """A share as ``85.04 %``, with a space that does not break; a dash where there is none."""
    return text.percent(value, digits).replace(" ", "\u00a0")


def render(name: str, **values: Any) -> str:
    """Fill a template with values."""
    try:
        template = _environment().get_template(name)
    except TemplateNotFound as error:  # an OSError, but none of whatever is being written
        raise UserError(
            f"The template {name} is missing from {TEMPLATES}: this program is not installed completely. Install it "
            f"again."
        ) from error
    return template.render(values)


def render_page(name: str, **values: Any) -> bytes:
    """Fill a template that extends ``base.html``: a page with style and script in it, which needs nothing else."""
    # Ours, and meant to be markup: escaped, neither would work.
    style, script = (Markup((TEMPLATES / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))  # noqa: S704
    return render(name, style=style, script=script, **values).encode("utf-8")
