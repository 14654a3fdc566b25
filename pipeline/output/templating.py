"""Fills the templates beside this module; values are escaped where the result is HTML."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound, UndefinedError, select_autoescape

from pipeline.common import text
from pipeline.common.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    own = {
        "number": text.number,
        "percent": percent,
        "share": text.percent,
        "interval": text.interval,
        "printable": text.printable,
    }
    environment.filters.update(own)
    return environment


def percent(value: float | None, digits: int = 2) -> str:
    """A share as ``85.04 %``, with a space that does not break; a dash where there is none."""
    return text.percent(value, digits).replace(" ", "\u00a0")


def render(name: str, **values: Any) -> str:
    """Fill a template with values; raises LookupError when it needs one that is not there."""
    try:
        return _environment().get_template(name).render(values)
    except UndefinedError as error:
        raise LookupError(str(error)) from error
    except TemplateNotFound as error:  # an OSError, but none of whatever is being written
        raise UserError(
            f"The template {error.name} is missing from {TEMPLATES}: this program is not installed completely. "
            f"Install it again."
        ) from error
