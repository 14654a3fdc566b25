"""The registry of classifiers: what can be set, where to search, how each learns, how each is made.

To add a classifier, write a function that makes its estimator and one `Classifier` in `REGISTRY`; the command
line, sweeps, experiment files and reports follow. This module loads without scikit-learn: the functions that
make estimators import it when they are called.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.common.options import Option

# Columns up to which `mlp` has small batches, and its hidden units up to there and beyond. On the validation split of
# CIFAR-10 512 units are a point better than 256 with 512 columns, and no better, in twice the time, with 6,016.
FEW_COLUMNS, UNITS, FEWER_UNITS = 1024, 512, 256
SAMPLED_ROWS = 5000  # that the parts of `kernel` which need no labels are fitted on: its memory does not grow
MAX_SEED = 2**32 - 1  # what numpy's legacy generator, which scikit-learn uses, accepts


@dataclass(frozen=True)
class Classifier:
    """Everything that stage two knows about a classifier."""

    help: str
    options: tuple[Option, ...]  # exactly one is searched on validation when it is left out, and has the default None
    space: Callable[[int], list[Any]]  # from the number of columns to the values to search, most regularised first
    # How it is fitted, which is how its history is taken: by L-BFGS, scored at every iteration; by passes over the
    # rows, stopped early on validation; or in one step, from the products of columns or from all rows in memory, where
    # the history is the validation curve over the values searched.
    solver_kind: Literal["iterations", "epochs", "products", "once"]
    # Whether its probabilities are its own. If not, its decision values become probabilities by temperature scaling,
    # one number fitted on the validation split.
    probabilities: bool
    # From all parameters, a seed and the shape (rows, columns) of what it will be fitted on to an unfitted estimator;
    # the features will be standardised.
    make: Callable[[Mapping[str, Any], int, tuple[int, int]], Any]
    annealed: bool = False  # whether the step size falls to zero, and the number of epochs is chosen so that it does
    # Training rows that the training scores of its history are taken on at most; None for all. What learns in epochs
    # has its last scores on all of them.
    max_scored_rows: int | None = None
    weighs_classes: bool = True  # whether the parameter ``class_weight`` can be among those that it is fitted with

    @property
    def tuned_option(self) -> str:
        """Name of the option that is chosen on validation when it is left out."""
        (name,) = (option.name for option in self.options if option.default is None)
        return name


def _around(centre: float, *factors: float) -> list[float]:
    """Regularisation strengths, of two significant digits: enough for one, and readable."""
    return [float(f"{centre * factor:.1e}") for factor in factors]


# --- estimators -------------------------------------------------------------------------------


def _logistic(params: Mapping[str, Any], seed: int, shape: tuple[int, int]) -> Any:
    from sklearn.linear_model import LogisticRegression

    del seed, shape  # the objective is convex, and the solver starts from zeros
    return LogisticRegression(**params, solver="lbfgs")  # L2 is its default penalty


def _mlp(params: Mapping[str, Any], seed: int, shape: tuple[int, int]) -> Any:
    import numpy as np
    from sklearn.neural_network import MLPClassifier

    rows, columns = shape
    return MLPClassifier(
        **_own(params),
        solver="adam",
        # An update of three million weights takes as long as the products of a hundred rows; but to learn from few rows
        # takes some dozens of updates in each epoch.
        batch_size=min(256 if columns <= FEW_COLUMNS else max(256, min(1024, rows // 40)), rows),
        shuffle=False,  # the rows come shuffled: to do it again would copy them
        # A generator, not a number: each partial_fit would shuffle alike from the same number.
        random_state=np.random.RandomState(seed),
    )


def _svm(params: Mapping[str, Any], seed: int, shape: tuple[int, int]) -> Any:
    import numpy as np
    from sklearn.linear_model import SGDClassifier

    del shape
    # One against the rest, averaged over the steps; LinearSVC's liblinear needs float64 and one core, and took
    # minutes where this takes seconds.
    generator = np.random.RandomState(seed)
    return SGDClassifier(**_own(params), loss="hinge", average=True, n_jobs=-1, random_state=generator)


def _ridge(params: Mapping[str, Any], seed: int, shape: tuple[int, int]) -> Any:
    from sklearn.linear_model import RidgeClassifier

    del seed, shape  # solved in closed form
    return RidgeClassifier(**params, solver="cholesky")


def _kernel(params: Mapping[str, Any], seed: int, shape: tuple[int, int]) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import Normalizer

    rows, columns = min(shape[0], SAMPLED_ROWS), shape[1]
    # Directions alone: what a width means does not depend on the columns then.
    components = PCA(min(params["n_components"], rows, columns), iterated_power=2, random_state=seed)
    kernel = Nystroem(gamma=params["gamma"], n_components=min(params["n_landmarks"], rows), random_state=seed)
    ridge = RidgeClassifier(params["alpha"], solver="cholesky")
    return Pipeline([("components", components), ("unit", Normalizer()), ("kernel", kernel), ("ridge", ridge)])


def _knn(params: Mapping[str, Any], seed: int, shape: tuple[int, int]) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline

    rows, _ = shape
    # Few rows or columns have fewer components; the smallest subsets of a learning curve have few rows.
    components = PCA(min(params["n_components"], *shape), whiten=True, iterated_power=2, random_state=seed)
    neighbours = KNeighborsClassifier(
        min(params["n_neighbors"], rows), weights="distance", metric="cosine", algorithm="brute", n_jobs=-1
    )
    return Pipeline([("components", components), ("neighbours", neighbours)])


_EARLY_STOPPING = (  # ours, not scikit-learn's
    Option("max_epochs", int, 100, "epochs at most", least=1),
    Option("patience", int, 3, "epochs without a validation loss lower by a thousandth before stopping", least=1),
)


def _own(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that the estimator is made with: class weights go in with each epoch."""
    ours = {"epochs", "class_weight", *(option.name for option in _EARLY_STOPPING)}
    return {name: value for name, value in params.items() if name not in ours}


REGISTRY: dict[str, Classifier] = {
    "logistic": Classifier(
        help="multinomial logistic regression, L2, by L-BFGS",
        options=(
            Option("C", float, None, "inverse of the L2 strength; chosen on validation when left out", least=1e-12),
            Option("max_iter", int, 1000, "solver iterations at most", least=1),
            Option("tol", float, 3e-4, "the solver stops when no gradient component is larger", least=1e-12),
        ),
        # On CIFAR-10's validation split 0.003 had the lowest log loss for 6,016 columns and 0.01 for 512, which is the
        # third of these. scikit-learn's default of 1 is far off for either.
        space=lambda columns: _around(0.2 / math.sqrt(columns), *(2.5**power for power in range(-2, 8))),
        solver_kind="iterations",
        probabilities=True,
        make=_logistic,
    ),
    "mlp": Classifier(
        help="a network with hidden layers, early stopping, best epoch kept",
        options=(
            Option(
                "hidden_layer_sizes",
                int,
                (),
                f"units of each hidden layer; {UNITS}, above {FEW_COLUMNS:,} columns {FEWER_UNITS}",
                least=1,
                many=True,
            ),
            Option("alpha", float, None, "L2 strength; chosen on validation when left out", least=0),
            Option("learning_rate_init", float, 1e-3, "Adam's step size at the beginning", least=1e-12),
            *_EARLY_STOPPING,
        ),
        # 3 for 6,016 columns; scikit-learn divides by the rows of the batch.
        space=lambda columns: _around(math.sqrt(columns) / 27, 3, 1, 1 / 3),
        solver_kind="epochs",
        probabilities=True,
        make=_mlp,
        annealed=True,
        max_scored_rows=10_000,  # to score all of them after each epoch would take half as long as to learn from them
    ),
    "svm": Classifier(
        help="linear support vector machines, one against the rest, by averaged gradient descent",
        options=(
            Option("alpha", float, None, "L2 strength; chosen on validation when left out", least=1e-12),
            *_EARLY_STOPPING,
        ),
        space=lambda columns: _around(columns / 600_000, 10, 3, 1, 0.3, 0.1),  # 0.01 for 6,016 columns
        solver_kind="epochs",
        probabilities=False,
        make=_svm,
        max_scored_rows=10_000,
    ),
    "ridge": Classifier(
        help="ridge regression on the classes, in closed form",
        options=(Option("alpha", float, None, "L2 strength; chosen on validation when left out", least=0),),
        space=lambda columns: _around(columns, 10, 3, 1, 0.3, 0.1, 0.03),
        solver_kind="products",
        probabilities=False,
        make=_ridge,
    ),
    "kernel": Classifier(
        help="ridge regression on a Gaussian kernel of principal components, by Nystroem's approximation",
        options=(
            Option("alpha", float, None, "L2 strength; chosen on validation when left out", least=0),
            Option("gamma", float, 1.0, "of the kernel exp(-gamma d²) between directions", least=1e-12),
            Option("n_landmarks", int, 2048, "rows that the kernel is approximated by", least=1, most=SAMPLED_ROWS),
            Option("n_components", int, 512, "principal components kept", least=1),
        ),
        # Whatever the columns: those of the kernel are as many as there are landmarks.
        space=lambda columns: [3, 1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001],
        solver_kind="products",
        probabilities=False,
        make=_kernel,
    ),
    "knn": Classifier(
        help="votes of the nearest neighbours, by the cosine of whitened principal components",
        options=(
            Option("n_neighbors", int, None, "neighbours that vote; chosen on validation when left out", least=1),
            Option("n_components", int, 256, "principal components kept, whitened", least=1),
        ),
        space=lambda columns: [50, 30, 20, 12, 7, 3],
        solver_kind="once",
        probabilities=False,
        make=_knn,
        weighs_classes=False,
        max_scored_rows=5000,  # the votes of every row on every other would take longer than all the rest
    ),
}


def all_options() -> dict[str, list[tuple[str, Option]]]:
    """Every option by its name, with the classifiers that have it."""
    found: dict[str, list[tuple[str, Option]]] = {}
    for name, classifier in REGISTRY.items():
        for option in classifier.options:
            found.setdefault(option.name, []).append((name, option))
    return found


def flags() -> list[Option]:
    """Every option once, for the command line; the help says whose it is."""
    found = []
    for owners in all_options().values():
        texts: dict[str, list[str]] = {}
        for classifier, item in owners:
            default = "" if item.default in (None, ()) else f" (default: {item.show(item.default)})"
            texts.setdefault(f"{item.help}{default}", []).append(classifier)
        text = "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
        found.append(dataclasses.replace(owners[0][1], default=None, help=text))
    return found


# --- what a user gives ------------------------------------------------------------------------


def get(name: str) -> Classifier:
    """A classifier by name; raises UserError when there is none of that name."""
    if name not in REGISTRY:
        raise UserError(f"The classifier parameter must be one of {', '.join(REGISTRY)}. Got {name!r}.")
    return REGISTRY[name]


def resolve(classifier: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a classifier: the value given, else the default (None: chosen on validation).

    Raises UserError when an option is not one of the classifier's, or a value is of another type or too small.
    """
    options = {option.name: option for option in get(classifier).options}
    for name in given:
        if name not in options:
            own = ", ".join(option.flag for option in options.values())
            raise UserError(
                f"The --{name.replace('_', '-')} option is not one of the classifier {classifier}, which has {own}. "
                f"Leave it out, or choose another --classifier."
            )
    return {
        name: option.check(given[name], f"The {option.flag} option") if name in given else option.default
        for name, option in options.items()
    }


def candidates(classifier: str, options: Mapping[str, Any], columns: int) -> list[dict[str, Any]]:
    """Parameter sets to choose from on validation, most regularised first.

    Of ``options``, as `resolve` gives them, the one that is None is searched: the more columns the features have, the
    stronger the regularisation must be.
    """
    known, options = get(classifier), by_columns(options, columns)
    if options[known.tuned_option] is not None:
        return [options]
    return [{**options, known.tuned_option: value} for value in known.space(columns)]


def by_columns(options: Mapping[str, Any], columns: int) -> dict[str, Any]:
    """The options, with the default of the one that depends on the columns."""
    units = UNITS if columns <= FEW_COLUMNS else FEWER_UNITS
    return {name: (units,) if value == () else value for name, value in options.items()}


def describe(params: Mapping[str, Any]) -> str:
    """Parameters as a person writes them: ``C=0.0026, max_iter=1000``."""
    return ", ".join(
        f"{name}={value:g}"
        if isinstance(value, float)
        else f"{name}={'-'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in params.items()
    )
