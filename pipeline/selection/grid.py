"""Many experiments from few words: grids on the command line, experiment files, and what they expand to.

python -m pipeline sweep --grid C=1e-4..1,log,9 --taps top --taps all
python -m pipeline sweep --file experiments.toml

Either is a table of names and values, read by `_read_table`.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError, file_errors
from pipeline.common.options import Option
from pipeline.models import classifiers
from pipeline.network.taps import ALL_TAPS, TOP_TAPS, columns_of, parse_taps
from pipeline.selection.trials import Trial

if TYPE_CHECKING:
    from pipeline.selection.options import TrainOptions

MANY = 200  # candidates from which on a person is asked: by far the most grids are smaller, or slips
MOST = 1_000_000  # candidates that are not even listed
COMMON = ("classifier", "taps", "seed")  # keys that every classifier has
SEED = Option("seed", int, 0, "of the split and the shuffling", least=0, most=classifiers.MAX_SEED)

# Where the built-in search looks: everything, the convolutions, the later layers, the classic pooled output.
BUILT_IN_TAPS: tuple[tuple[str, ...], ...] = (
    ALL_TAPS,
    tuple(tap for tap in ALL_TAPS if "conv" in tap),
    tuple(tap for tap in ALL_TAPS if tap[len("block")] in "345"),
    tuple(tap for tap in ALL_TAPS if tap[len("block")] in "45"),
    TOP_TAPS,
)

Grid = Mapping[str, Sequence[Any]]  # the values of each name


# --- reading ----------------------------------------------------------------------------------


def read_flags(texts: Sequence[str], classifier: str) -> Grid:
    """Read ``NAME=VALUES``, each of another name, as one grid.

    ``C=1e-4..1,log,9``, ``C=0.001,0.01``, ``hidden_layer_sizes=256,512x128``; of ``classifier`` where they name none.
    Raises UserError when one is not of that form, or a value is not allowed.
    """
    table: dict[str, Any] = {}
    for text in texts:
        name, sign, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise UserError(f"The grid parameter must be NAME=VALUES, for example C=1e-4..1,log,9. Got {text!r}.")
        if name in table:
            raise UserError(f"The grid over {name} was given twice. Join its values: {name}=VALUE,VALUE,….")
        parts = [part.strip() for part in values.split(",") if part.strip()]
        table[name] = values if ".." in values else [_plain(part) for part in parts]
    try:
        return _read_table(table, True, classifier)
    except UserError as error:
        raise UserError(f"The grid parameter {' '.join(texts)}: {error}") from error


def _plain(text: str) -> Any:
    """A value as TOML would have it: a number, a list of whole ones (``512x128``), else a text."""
    for read in (int, float, lambda text: [int(part) for part in text.split("x")]):
        with suppress(ValueError):
            return read(text)
    return text


def read_file(path: Path, classifier: str = "logistic") -> list[Grid]:
    """Read an experiment file: tables ``[[run]]``, of one value each, and ``[[grid]]``, of lists and ranges.

    Tables that name no classifier are of ``classifier``. Raises UserError, which names file and key, when the file
    cannot be read, is no TOML, or has a key, classifier, parameter or type that is not allowed.
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
    """A table's values, checked and in their types; ``many`` allows lists and ranges of them."""
    grid: dict[str, Sequence[Any]] = {"classifier": [classifier]}
    ranges = {key for key, value in table.items() if many and isinstance(value, str) and ".." in value}
    for key, value in table.items():
        grid[key] = _range(key, value) if key in ranges else value if many and isinstance(value, list) else [value]
        if not grid[key]:
            raise UserError(f"the key {key!r} is an empty list. Give at least one value, or leave it out.")
    names = grid["classifier"]
    if not all(isinstance(name, str) and name in classifiers.REGISTRY for name in names):
        raise UserError(f"the key 'classifier' must be one of {', '.join(classifiers.REGISTRY)}. Got {names}.")
    for key, values in grid.items():
        subject = f"the key {key!r}"
        if key == "taps":
            grid[key] = [_read_taps(value) for value in values]
        elif key == "seed":
            grid[key] = _checked(SEED, values, subject, key in ranges)
        elif key != "classifier":
            for name in names:
                own = {option.name: option for option in classifiers.get(name).options}
                if key not in own:
                    allowed = ", ".join((*COMMON, *own))
                    raise UserError(f"{subject} is not known for the classifier {name}. Allowed are {allowed}.")
                grid[key] = _checked(own[key], values, subject, key in ranges)
    return grid


def _checked(option: Option, values: Sequence[Any], subject: str, is_range: bool) -> Sequence[Any]:
    if is_range and not option.many:  # in their type already, and between the two ends
        for end in (values[0], values[-1]):
            option.check(end, subject)
        return values
    return [option.check(value, subject) for value in values]


def _range(name: str, text: str) -> list[float]:
    """The values of ``LOW..HIGH,log,COUNT`` (equal ratios) or ``LOW..HIGH,lin,COUNT`` (equal steps)."""
    import numpy as np  # late: most commands have no grid

    whole = any(option.kind is int for _, option in classifiers.all_options().get(name, [("", SEED)]))
    try:
        ends, scale, count = (part.strip() for part in text.split(","))
        low, high = map(float, ends.split(".."))
        if not 1 <= int(count) <= MOST or not math.isfinite(low + high) or (scale == "log" and min(low, high) <= 0):
            raise ValueError
        spaced: Any = {"log": np.geomspace, "lin": np.linspace}[scale]
        values = spaced(low, high, int(count))
    except (ValueError, KeyError):
        raise UserError(
            f"the key {name!r} must be LOW..HIGH,log,COUNT, in equal ratios, or LOW..HIGH,lin,COUNT, in equal steps, "
            f"as in 1e-4..1,log,9: with log, LOW and HIGH are above 0, and COUNT is 1 to {MOST:,}, the most that a "
            f"sweep takes. Got {text!r}."
        ) from None
    # 0.001, not 0.0010000000000000002.
    return [round(value) if whole else float(f"{value:.6g}") for value in values.tolist()]


def _read_taps(choice: Any) -> tuple[str, ...]:
    names = choice if isinstance(choice, list) else [choice]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"the key 'taps' must be text, or a list of names. Got {choice!r}.")
    return parse_taps(",".join(names))


# --- what they expand to ----------------------------------------------------------------------


def _parts(
    grid: Grid, training: TrainOptions, choices: Sequence[tuple[str, ...]], sizes: int
) -> Iterator[tuple[str, tuple[str, ...], Grid]]:
    """Each classifier and choice of taps of a grid, with the values of the seed and of every option."""
    for classifier in grid.get("classifier", [training.classifier]):
        given = training.options if classifier == training.classifier else {}
        base = classifiers.resolve(classifier, given)
        for taps in grid.get("taps", choices):
            varied = {"seed": grid.get("seed", [training.seed])}
            columns = sizes * columns_of(taps)
            for name, value in classifiers.by_columns(base, columns).items():
                left_out = [value] if value is not None else classifiers.get(classifier).space(columns)
                varied[name] = grid.get(name, left_out)
            yield classifier, taps, varied


def expand(
    grids: Sequence[Grid], training: TrainOptions, choices: Sequence[tuple[str, ...]], *, sizes: int = 1, sure: bool
) -> list[Trial]:
    """List all candidates, each once; what a grid does not name is as in ``training``, or searched as `train` would.

    ``choices`` are the taps to compare where a grid names none, of so many ``sizes`` side by side. Raises UserError
    when there are very many, unless the user is ``sure``, or more than a sweep takes.
    """
    parts = [part for grid in grids for part in _parts(grid, training, choices, sizes)]
    total = sum(math.prod(map(len, varied.values())) for _, _, varied in parts)
    if total > MOST or (total > MANY and not sure):
        says = f"That makes {total:,} candidates, each of them a fit"
        if total > MOST:
            raise UserError(f"{says}; {MOST:,} is the most that a sweep takes. Make the grid smaller.")
        raise UserError(f"{says}. Add --yes if that is meant, or make the grid smaller.")
    found = (
        Trial(classifier, taps, training.weighted(classifier, dict(zip(list(varied)[1:], values, strict=True))), seed)
        for classifier, taps, varied in parts
        for seed, *values in itertools.product(*varied.values())
    )
    return list({repr(trial): trial for trial in found}.values())
