"""What there is, as pandas DataFrames; pandas is not needed for anything else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.features.find import claims
from pipeline.network.taps import columns_of
from pipeline.output import leaderboard

if TYPE_CHECKING:
    from pandas import DataFrame


def runs(output_dir: str | Path = "output", *, dataset: str | None = None) -> DataFrame:
    """Every run, a row each, as in ``leaderboard.csv``: data set by data set, best on validation first.

    Parameters
    ----------
    output_dir : str or Path
    dataset : str, optional
        Only the runs of this data set.

    Raises
    ------
    UserError
        When pandas is not installed, or there is no run on the data set.
    """
    pandas = _pandas("runs")
    text = leaderboard.csv_of(leaderboard.of_dataset(leaderboard.read(Path(output_dir)), dataset))
    texts = dict.fromkeys(("run", "dataset", "classifier", "parameters", "taps"), str)  # also of one that is "NA", or 7
    return pandas.read_csv(
        io.BytesIO(text), dtype=texts, parse_dates=["created"], true_values=["yes"], false_values=["no"],
        keep_default_na=False, na_values=[""],
    )  # fmt: skip


def caches(features_dir: str | Path = "features") -> DataFrame:
    """Every feature file, a row each, by what it claims to hold: `load_features` verifies what it reads.

    Raises
    ------
    UserError
        When pandas is not installed.
    """
    pandas = _pandas("caches")
    rows = [
        {
            "file": str(path), "dataset": spec.dataset, **spec.image, "limit": spec.limit, "precision": spec.precision,
            "taps": " ".join(spec.taps), "columns": columns_of(spec.taps), "bytes": path.stat().st_size,
            "key": spec.key(), "dataset_digest": spec.dataset_digest, "weights_digest": spec.weights_digest,
        }
        for path, spec in claims(Path(features_dir), "*.h5")
    ]  # fmt: skip
    return pandas.DataFrame(rows)


def _pandas(name: str) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise UserError(
            f"pipeline.{name}() gives a pandas DataFrame, and pandas is not installed here. Install it with "
            f"'pip install pandas'."
        ) from error
    return pandas
