"""Many experiments from few words: grids on the command line, experiment files, and what they expand to.

python -m pipeline sweep --grid C=1e-4..1,log,9 --taps top --taps all
python -m pipeline sweep --file experiments.toml
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError, file_errors
from pipeline.common.options import Option
from pipeline.models import classifiers
from pipeline.network.taps import ALL_TAPS, TOP_TAPS, columns_of, parse_taps
from pipeline.selection.trials import Trial

MANY = 200  # candidates from which on a person is asked: by far the most grids are smaller, or slips
MOST = 10_000_000  # candidates that are not even listed
_SEED = Option("seed", int, 0, "", least=0, most=classifiers.MAX_SEED)
COMMON = ("classifier", "taps", "seed")  # keys that every classifier has

# Where the built-in search looks: everything, the convolutions, the later layers, the classic pooled output.
BUILT_IN_TAPS: tuple[tuple[str, ...], ...] = (
    ALL_TAPS,
    tuple(tap for tap in ALL_TAPS if "conv" in tap),
    tuple(tap for tap in ALL_TAPS if tap[len("block")] in "345"),
    tuple(tap for tap in ALL_TAPS if tap[len("block")] in "45"),
    TOP_TAPS,
)


@dataclass(frozen=True)
class Range:
    """Equal steps, or equal ratios, from ``low`` to ``high``: nothing is listed before it is wanted.

    ``whole`` rounds every value to a whole number.
    """

    low: float
    high: float
    ratios: bool
    count: int
    whole: bool = False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int | float]:
        for index in range(self.count):
            share = index / (self.count - 1) if self.count > 1 else 0.0
            if self.ratios:
                value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
            else:
                value = self.low + share * (self.high - self.low)
            yield round(value) if self.whole else float(f"{value:.6g}")  # 0.001, not 0.0010000000000000002


Values = Sequence[Any] | Range
Grid = Mapping[str, Any]  # of Values


# --- the command line -------------------------------------------------------------------------


def parse_grids(texts: Sequence[str]) -> dict[str, Values]:
    """Read grids, each as `parse_grid` does, of different options; raises UserError."""
    parsed = [parse_grid(text) for text in texts]
    names = [name for name, _ in parsed]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"The grid over {twice[0]} was given twice. Join its values: {twice[0]}=VALUE,VALUE,….")
    return dict(parsed)


def parse_grid(text: str) -> tuple[str, Values]:
    """Read ``NAME=VALUES``: ``C=1e-4..1,log,9``, ``C=0.001,0.01``, ``hidden_layer_sizes=256,512x128``.

    Raises
    ------
    UserError
        When it is not of that form.
    """
    name, sign, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not sign or not name:
        raise UserError(f"The grid parameter must be NAME=VALUES, for example C=1e-4..1,log,9. Got {text!r}.")
    if name not in classifiers.all_options() and name not in ("classifier", "seed"):
        raise UserError(
            f"The grid parameter names {name!r}, which is no option. The options are classifier, seed, "
            f"{', '.join(classifiers.all_options())}; taps are varied by giving --taps more than once."
        )
    return name, parse_values(name, values)


def parse_values(name: str, text: str) -> Values:
    """Read ``LOW..HIGH,log,COUNT``, ``LOW..HIGH,lin,COUNT`` or ``VALUE,VALUE,…``.

    Raises
    ------
    UserError
        When it is not of that form, or empty.
    """
    if ".." in text:
        return _parse_range(name, text)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(
            f"The grid over {name} is empty. Give its values, as in {name}=0.001,0.01 or {name}=1e-4..1,log,9."
        )
    if name == "classifier":
        return parts
    return [_parse_value(name, part) for part in parts]


def _parse_range(name: str, text: str) -> Range:
    ends, _, rest = text.partition(",")
    low, _, high = ends.partition("..")
    scale, _, count = rest.partition(",")
    try:
        found = Range(float(low), float(high), scale.strip() == "log", int(count), _is_whole(name))
    except ValueError:
        found = None
    if found is None or scale.strip() not in ("log", "lin") or not math.isfinite(found.low + found.high):
        raise UserError(
            f"The grid over {name} must be LOW..HIGH,log,COUNT or LOW..HIGH,lin,COUNT, as in 1e-4..1,log,9. "
            f"Got {text!r}."
        )
    if found.count < 1:
        raise UserError(f"The grid over {name} is empty: it asks for {found.count} values. Ask for at least 1.")
    if found.ratios and min(found.low, found.high) <= 0:
        raise UserError(f"The grid over {name} goes in equal ratios, so both ends must be above 0. Got {text!r}.")
    return found


def _is_whole(name: str) -> bool:
    """Whether the values of an option, or the seed, are whole numbers."""
    return name == "seed" or any(option.kind is not float for _, option in classifiers.all_options().get(name, ()))


def _parse_value(name: str, text: str) -> Any:
    try:
        if name == "hidden_layer_sizes":
            return tuple(int(part) for part in text.split("x"))
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise UserError(f"The grid over {name} must hold numbers. Got {text!r}.") from None


# --- experiment files -------------------------------------------------------------------------


def read_file(path: Path, classifier: str = "logistic") -> list[Grid]:
    """Read an experiment file: tables ``[[run]]``, of one value each, and ``[[grid]]``, of lists and ranges.

    Parameters
    ----------
    path : Path
    classifier : str
        Of tables that name none.

    Raises
    ------
    UserError
        When the file cannot be read, is no TOML, or has a key, classifier, parameter or type that is not allowed;
        the message names file and key, and what is allowed.
    """
    with file_errors("read the experiment file", path):
        content = path.read_bytes()
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The experiment file {path} is not valid TOML: {error}.") from error
    unknown = sorted(set(document) - {"run", "grid"})
    if unknown:
        raise UserError(
            f"The experiment file {path} has the key {unknown[0]!r}, which is not known. "
            f"Allowed are [[run]] and [[grid]]."
        )
    found: list[Grid] = []
    for kind in ("run", "grid"):
        tables = document.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise UserError(f"The experiment file {path} has {kind!r} as no list of tables. Write it as [[{kind}]].")
        for number, table in enumerate(tables, 1):
            try:
                found.append(_read_table(table, kind == "grid", classifier))
            except UserError as error:
                raise UserError(f"The experiment file {path}, [[{kind}]] number {number}: {error}") from error
    if not found:
        raise UserError(f"The experiment file {path} is empty. Write at least one [[run]] or [[grid]] into it.")
    return found


def _read_table(table: Mapping[str, Any], many: bool, classifier: str) -> Grid:
    names = _read_classifiers(table.get("classifier", classifier), many)
    options = [{option.name: option for option in classifiers.get(name).options} for name in names]
    for key in table:
        for name, own in zip(names, options, strict=True):
            if key not in COMMON and key not in own:
                allowed = ", ".join((*COMMON, *own))
                raise UserError(f"the key {key!r} is not known for the classifier {name}. Allowed are {allowed}.")
    grid: dict[str, Any] = {}
    for key, value in table.items():
        if key == "classifier":
            grid[key] = names
        elif key == "taps":
            grid[key] = _read_taps(value, many)
        else:
            grid[key] = _read_values(key, value, many)
            for name in names:
                _check(name, key, grid[key], f"the key {key!r}")
    return grid


def _read_classifiers(value: Any, many: bool) -> list[str]:
    names = value if many and isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"the key 'classifier' must be one of {', '.join(classifiers.REGISTRY)}. Got {value!r}.")
    return names


def _read_values(key: str, value: Any, many: bool) -> Values:
    if many and isinstance(value, str) and ".." in value:
        return _parse_range(key, value)
    values = list(value) if many and isinstance(value, list) else [value]
    if not values:
        raise UserError(f"the key {key!r} is an empty list. Give at least one value, or leave it out.")
    return values


def _check(classifier: str, name: str, values: Values, subject: str) -> None:
    """Raise UserError when an option of a classifier, or the seed, cannot have these values."""
    if isinstance(values, Range):  # all others lie between its ends
        values = list(dataclasses.replace(values, count=min(values.count, 2)))
    for value in values:
        if name == "seed":
            _SEED.check(value, subject)
        else:
            classifiers.check_option(classifier, name, value, subject)


def _read_taps(value: Any, many: bool) -> Values:
    choices = value if many and isinstance(value, list) else [value]
    if not choices:
        raise UserError("the key 'taps' is an empty list. Give at least one choice, or leave it out.")
    found = []
    for choice in choices:
        names = choice if isinstance(choice, list) else [choice]
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"the key 'taps' must be text, or a list of names. Got {choice!r}.")
        found.append(parse_taps(",".join(names)))
    return found


# --- what they expand to ----------------------------------------------------------------------


@dataclass(frozen=True)
class Defaults:
    """What a grid leaves open: the classifier, its options and the seed given on the command line."""

    classifier: str
    options: Mapping[str, Any]
    seed: int
    taps: Sequence[tuple[str, ...]]


def _parts(grid: Grid, defaults: Defaults) -> Iterator[tuple[str, tuple[str, ...], dict[str, Values]]]:
    """Each classifier and choice of taps of a grid, with the values of every option."""
    for classifier in grid.get("classifier", [defaults.classifier]):
        known = classifiers.get(classifier)
        given = defaults.options if classifier == defaults.classifier else {}
        base = classifiers.resolve(classifier, given)
        for taps in grid.get("taps", defaults.taps):
            varied: dict[str, Values] = {}
            for name, value in base.items():
                if name in grid:
                    varied[name] = grid[name]
                elif value is None:
                    varied[name] = known.space(columns_of(taps))
                else:
                    varied[name] = [value]
            for name in set(grid) - set(COMMON) - set(base):
                classifiers.check_option(classifier, name, next(iter(grid[name])))  # says that it is not its own
            yield classifier, taps, varied


def _size(values: Values) -> int:
    return values.count if isinstance(values, Range) else len(values)  # len() of a range is bounded by the machine


def count(grids: Sequence[Grid], defaults: Defaults) -> int:
    """Number of candidates, without listing them."""
    return sum(
        math.prod(map(_size, (*varied.values(), grid.get("seed", [defaults.seed]))))
        for grid in grids
        for _, _, varied in _parts(grid, defaults)
    )


def expand(grids: Sequence[Grid], defaults: Defaults, *, sure: bool) -> list[Trial]:
    """List all candidates, each once.

    Parameters
    ----------
    grids : sequence of mapping
        Names to values; what is not named is as the defaults say, or searched as `train` would.
    defaults : Defaults
    sure : bool
        Whether the user wants however many there are.

    Raises
    ------
    UserError
        When there are too many, or a value is not allowed.
    """
    total = count(grids, defaults)
    if total > MOST or (total > MANY and not sure):
        says = f"That makes {total:,} candidates, each of them a fit"
        if total > MOST:
            raise UserError(f"{says}; {MOST:,} is the most that a sweep takes. Make the grid smaller.")
        raise UserError(f"{says}. Add --yes if that is meant, or make the grid smaller.")
    found: dict[str, Trial] = {}
    for grid in grids:
        _check("", "seed", grid.get("seed", []), "The seed")
        for classifier, taps, varied in _parts(grid, defaults):
            for seed in grid.get("seed", [defaults.seed]):
                for values in itertools.product(*varied.values()):
                    params = classifiers.resolve(classifier, dict(zip(varied, values, strict=True)))
                    candidate = Trial(classifier, taps, params, seed)
                    found.setdefault(repr(candidate), candidate)
    return list(found.values())
