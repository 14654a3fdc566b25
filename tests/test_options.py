"""Settings that are declared once: what follows from the declaration."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.common.options import Option, Options, add_flags, check_variables, option


@dataclass(frozen=True, kw_only=True)
class Cooking(Options):
    dish: str = option("soup", "what to cook", choices=("soup", "stew"))
    max_minutes: int = option(30, "100 % done by then", metavar="N", least=1, most=90, advice="Take 30.")
    salt: float | None = option(None, "grams", least=0)
    sizes: tuple[int, ...] = option((2, 3), "of the pots", least=1)
    spice: tuple[str, ...] = option((), "what to add")
    book: Path = option(Path("my book"), "where recipes are")
    no_heat: bool = option(False, "serve it cold")


@dataclass(frozen=True, kw_only=True)
class Eating(Options):
    guests: tuple[Path, ...] = option(MISSING, "who comes", metavar="GUEST", positional=True)
    dessert: Path = option(MISSING, "what comes last", metavar="DISH")


def parse(*arguments: str) -> Cooking:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, Cooking.declared())
    return Cooking.of(parser.parse_args(arguments))


def make(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set what the Makefile hands on."""
    monkeypatch.setenv("PIPELINE_VARIABLES", " ".join(variables))
    for name, value in variables.items():
        monkeypatch.setenv(f"PIPELINE_{name}", value)


def test_flags_have_the_declared_types_and_defaults() -> None:
    assert parse() == Cooking()
    asked = parse(
        "--dish=stew", "--max-minutes=5", "--salt=1", "--sizes=4,5", "--spice=dill", "--spice=2 leaves", "--book=a b",
        "--no-heat",
    )  # fmt: skip
    assert asked == Cooking(
        dish="stew", max_minutes=5, salt=1.0, sizes=(4, 5), spice=("dill", "2 leaves"), book=Path("a b"), no_heat=True
    )
    assert type(asked.salt) is float


def test_a_command_line_asks_for_the_same_again() -> None:
    import shlex

    asked = parse("--max-minutes=5", "--sizes=4,5", "--book=it's $HOME", "--no-heat")
    assert parse(*shlex.split(asked.command_line())) == asked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dish": "cake"}, "The dish parameter must be one of soup, stew. Got 'cake' instead.$"),
        ({"dish": "Stw"}, r"Got 'Stw' instead. Did you mean stew\?"),
        (
            {"max_minutes": 91},
            "The max minutes parameter must be a whole number between 1 and 90. Got 91 instead. Take 30.",
        ),
        ({"max_minutes": True}, "whole number between 1 and 90. Got True instead."),
        ({"max_minutes": None}, "Got None instead."),
        ({"salt": float("nan")}, "The salt parameter must be a number of at least 0. Got nan instead."),
        ({"sizes": ()}, r"must be whole numbers of at least 1. Got \(\) instead."),
        ({"sizes": (1, 2.0)}, r"Got \(1, 2.0\) instead."),
        ({"no_heat": 1}, "must be 1 or 0. Got 1 instead."),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cooking(**given)


def test_a_text_of_another_type_is_refused_like_a_value() -> None:
    with pytest.raises(UserError, match="whole number between 1 and 90. Got 'x' instead. Take 30"):
        parse("--max-minutes", "x")
    with pytest.raises(UserError, match="whole numbers of at least 1. Got '4,x' instead"):
        parse("--sizes", "4,x")


def test_variables_of_make_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    make(monkeypatch, DISH="stew", SPICE=" dill  $leaf ", BOOK=" a # b ", NO_HEAT="1", SIZES="7,8", SALT="")
    asked = Cooking(dish="stew", spice=("dill", "$leaf"), book=Path(" a # b "), no_heat=True, sizes=(7, 8))
    assert parse() == asked, "a variable without a value was not given"
    assert parse("--dish", "soup", "--spice=x").spice == ("x",), "what is said by a flag counts"
    make(monkeypatch, NO_HEAT="maybe")
    with pytest.raises(UserError, match="no heat parameter must be 1 or 0. Got 'maybe'"):
        parse()
    monkeypatch.setenv("PIPELINE_VARIABLES", "")
    assert parse() == Cooking(), "nothing else of the environment counts"


def test_what_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def eat(*arguments: str) -> Eating:
        parser = argparse.ArgumentParser()
        add_flags(parser, Eating.declared())
        return Eating.of(parser.parse_args(arguments))

    assert eat("a", "b c", "--dessert", "x") == Eating(guests=(Path("a"), Path("b c")), dessert=Path("x"))
    with pytest.raises(UserError, match=r"guests .* must be given: who comes. Add GUEST \(with make: GUESTS=GUEST\)"):
        eat("--dessert", "x")
    with pytest.raises(UserError, match=r"Add --dessert DISH \(with make: DESSERT=DISH\)"):
        eat("a")
    make(monkeypatch, GUESTS="-my aunt", DESSERT="a b")
    assert eat() == Eating(guests=(Path("-my aunt"),), dessert=Path("a b"))


def test_a_variable_that_no_flag_has_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    make(monkeypatch, DISH="stew", MAX_MINUTSE="3")
    with pytest.raises(UserError, match=r"no variable MAX_MINUTSE: .* Did you mean MAX_MINUTES\?"):
        check_variables(Cooking.declared())
    make(monkeypatch, dish="stew")
    with pytest.raises(UserError, match=r"Did you mean DISH\?"):
        check_variables([Option("dish", str, None, ""), Option("hush", str, None, "")])
