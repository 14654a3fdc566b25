"""A setting is declared once; its flag, its variable of make, its checks and its messages follow.

    @dataclass(frozen=True, kw_only=True)
    class FeatureOptions(Options):
        image_size: int = option(64, "height and width the network sees", metavar="PX", least=32, most=1024)

The type hint says what the flag takes: nothing for a bool; for a tuple of numbers, numbers with commas between them;
for a tuple of anything else, one value each time that it is given.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.common.errors import UserError
from pipeline.common.text import did_you_mean

_WORDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path", bool: "1 or 0"}
_METAVAR = {int: "N", float: "X", Path: "FILE"}
_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Option:
    """A setting."""

    name: str  # as in Python; with hyphens it is the flag, in capitals the variable of make
    kind: type  # bool, int, float, str or Path
    default: Any  # None where the program chooses, MISSING where it must be given
    help: str
    least: float | None = None  # bounds, included
    most: float | None = None
    choices: Sequence[str] = ()
    metavar: str | None = None
    many: bool = False  # whether it has several values, as a tuple
    positional: bool = False
    late: bool = False  # whether it is part of a key that there was before it: at its default, the key is what it was
    advice: str = ""  # what to do, to end a message about a value that cannot be

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def has_commas(self) -> bool:
        """Whether its values are given in one text."""
        return self.many and self.kind in (int, float)

    def read(self, text: str) -> Any:
        """What is given to a flag, in its type; where it is of no such type the text itself, for `check` to refuse."""
        try:
            if self.has_commas:
                return tuple(self.kind(part) for part in text.split(","))
            return _SWITCH[text.lower()] if self.kind is bool else self.kind(text)
        except (ValueError, KeyError):
            return text

    def given(self, arguments: object) -> Any:
        """Its value by the parsed flags, else by the variable of make; None when it was not given."""
        value = getattr(arguments, self.name)
        if value not in (None, []):
            return value
        told = _variables().get(self.name.upper())
        if told and self.many and not self.has_commas:  # a path may have spaces in it; names and grids have none
            return tuple(map(self.read, [told] if self.kind is Path else told.split()))
        return self.read(told) if told else None

    def show(self, value: Any) -> str:
        """A value as `read` takes it."""
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def check(self, value: Any, subject: str | None = None) -> Any:
        """Return a value that the setting may have, in its type.

        Raises
        ------
        UserError
            When it is of another type, out of bounds or none of the choices; ``subject`` is what the message calls the
            setting.
        """
        if value is None and self.default is None:
            return None
        values = list(value) if self.many and isinstance(value, list | tuple) else [value]
        needed = self.default is MISSING or (self.has_commas and self.default != ())
        if not all(map(self._allows, values)) or (not values and needed):
            subject = subject or f"The {self.name.replace('_', ' ')} parameter"
            near = did_you_mean(value, self.choices) if isinstance(value, str) else ""
            value = values[0] if len(values) == 1 else value
            raise UserError(f"{subject} must be {self._allowed()}. Got {value!r} instead.{near} {self.advice}".rstrip())
        values = [self.kind(item) if self.kind in (float, Path) else item for item in values]
        return tuple(values) if self.many else values[0]

    def _allows(self, value: Any) -> bool:
        if self.kind in (int, float):  # a bool is no number, and a number must be one that a float can hold
            least = -sys.float_info.max if self.least is None else self.least
            return type(value) in (int, self.kind) and bool(least <= value <= (self.most or sys.float_info.max))
        kinds = (str, Path) if self.kind is Path else self.kind
        return isinstance(value, kinds) and (not self.choices or value in self.choices)

    def _allowed(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        what = f"{_WORDS[self.kind].removeprefix('a ')}s" if self.many else _WORDS[self.kind]
        if self.most is not None:
            return f"{what} between {self.least:.10g} and {self.most:.10g}"
        return what if self.least is None else f"{what} of at least {self.least:g}"


def option(default: Any, help: str, **more: Any) -> Any:  # noqa: A002 - argparse's name of it
    """Declare a field of `Options`; ``more`` are attributes of `Option`."""
    return dataclasses.field(default=default, metadata={"option": {"help": help, **more}})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings, checked: the base of what a command is asked for."""

    def __post_init__(self) -> None:
        for item in self.declared():
            object.__setattr__(self, item.name, item.check(getattr(self, item.name)))

    @classmethod
    @functools.cache
    def declared(cls) -> list[Option]:
        """The settings, in the order of their declaration."""
        found, hints = [], typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if "option" in field.metadata:
                kinds = typing.get_args(hints[field.name]) or (hints[field.name],)  # of X | None, of tuple[X, ...]
                many = typing.get_origin(hints[field.name]) is tuple
                found.append(Option(field.name, kinds[0], field.default, many=many, **field.metadata["option"]))
        return found

    @classmethod
    def of(cls, arguments: object, **more: Any) -> Self:
        """Take the settings from parsed flags and variables; ``more`` are other fields, and defaults of this command.

        Raises
        ------
        UserError
            When one is missing that must be given, or cannot have its value.
        """
        for item in cls.declared():
            value = item.given(arguments)
            if value is not None:
                more[item.name] = value
            elif item.default is MISSING:
                where = f"{'' if item.positional else item.flag} {item.metavar}".strip()
                raise UserError(
                    f"The {item.name.replace('_', ' ')} parameter must be given: {item.help}. Add {where} (with make: "
                    f"{item.name.upper()}={item.metavar})."
                )
        return cls(**more)

    def command_line(self) -> str:
        """Flags that ask for what differs from the defaults, one for each setting."""
        given = [(item, value) for item in self.declared() if (value := getattr(self, item.name)) != item.default]
        return " ".join(
            item.flag if value is True else f"{item.flag} {shlex.quote(item.show(value))}" for item, value in given
        )


# --- flags and variables ----------------------------------------------------------------------


def add_flags(group: Any, options: Iterable[Option], **defaults: Any) -> None:
    """Add flags to an ``argparse`` parser, or to a group of its help.

    ``defaults`` are those that the help is to show in place of the declared ones. A flag that is not given is None.
    """
    for item in options:
        default = defaults.get(item.name, item.default)
        told = "" if default is False or default in (None, (), MISSING) else f" (default: {item.show(default)})"
        more: dict[str, Any] = {"help": item.help.replace("%", "%%") + told, "default": None}
        if item.kind is bool:
            more |= {"action": "store_true"}
        else:
            shown = "|".join(item.choices) or item.metavar or _METAVAR.get(item.kind)
            more |= {"type": item.read, "metavar": shown}
        if item.positional:
            more |= {"nargs": "*" if item.many else "?"}
        elif item.many and not item.has_commas:
            more |= {"action": "append"}
        action = group.add_argument(item.name if item.positional else item.flag, **more)
        if item.choices:
            action.completer = lambda choices=item.choices, **_: choices  # argcomplete's hook


def _variables() -> Mapping[str, str]:
    """The variables that were given to make, where make has started this program."""
    names = os.environ.get("PIPELINE_VARIABLES", "").split()
    return {name: os.environ.get(f"PIPELINE_{name}", "") for name in names}


def check_variables(options: Iterable[Option]) -> None:
    """Raise UserError when make was given a variable that no flag has."""
    given = _variables()
    known = sorted({item.name.upper() for item in options}) if given else []
    for name in given:
        if name not in known:
            raise UserError(
                f"There is no variable {name}: no flag has that name.{did_you_mean(name, known)} Variables are the "
                f"flags in capitals, with _ for -; 'python -m pipeline COMMAND --help' lists them."
            )
