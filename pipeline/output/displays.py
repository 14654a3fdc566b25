"""Drawings of a run in scikit-learn's manner: take a run, then plot it into any axes.

>>> run = pipeline.load_run("cifar10-mlp-1a2b3c4d")  # doctest: +SKIP
>>> pipeline.HistoryDisplay.from_run(run).plot(ax=ax)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import calibration, metrics, model_selection

from pipeline.common.errors import UserError
from pipeline.output.results import Columns, RunResults


class HistoryDisplay:
    """Loss or accuracy after every step of a fit, on training and on validation.

    Attributes
    ----------
    ax_, figure_, lines_
        Axes, figure and both lines, once it is plotted.
    """

    def __init__(self, history: Columns, *, estimator_name: str | None = None) -> None:
        self.history, self.estimator_name = history, estimator_name

    @classmethod
    def from_run(cls, run: RunResults) -> HistoryDisplay:
        """Take the history of a run."""
        return cls(run.history, estimator_name=run.name)

    def plot(self, ax: Any = None, *, metric: str = "loss", **line_kw: Any) -> HistoryDisplay:
        """Draw both curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            New ones when left out.
        metric : {'loss', 'accuracy'}
        **line_kw
            For ``ax.plot``.
        """
        import matplotlib.pyplot as plt

        if metric not in ("loss", "accuracy"):
            raise UserError(f"The metric parameter must be 'loss' or 'accuracy'. Got {metric!r} instead.")
        if ax is None:
            _, ax = plt.subplots()
        unit = next(iter(self.history))
        self.lines_ = [
            ax.plot(self.history[unit], self.history[f"{split}_{metric}"], label=split, **line_kw)[0]
            for split in ("train", "validation")
        ]
        ax.set(xlabel=unit, ylabel="mean cross-entropy (nats)" if metric == "loss" else metric)
        if self.estimator_name:
            ax.set_title(self.estimator_name)
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self


class LearningCurveDisplay(model_selection.LearningCurveDisplay):  # type: ignore[misc]
    """scikit-learn's, of a run."""

    @classmethod
    def from_run(cls, run: RunResults) -> LearningCurveDisplay:
        """Take the accuracies of a run against the number of training rows."""
        curve = run.learning_curve
        sizes = np.unique(curve["rows"])
        train, validation = (  # (sizes, seeds)
            np.array([curve[f"{split}_accuracy"][curve["rows"] == size] for size in sizes])
            for split in ("train", "validation")
        )
        return cls(train_sizes=sizes, train_scores=train, test_scores=validation, score_name="accuracy")

    def plot(self, *arguments: Any, **more: Any) -> LearningCurveDisplay:
        """Draw as scikit-learn does, which calls Test what is validation here."""
        super().plot(*arguments, **more)
        handles, labels = self.ax_.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            handle.set_label(label.replace("Test", "Validation"))
        self.ax_.legend()
        return self


class ConfusionMatrixDisplay(metrics.ConfusionMatrixDisplay):  # type: ignore[misc]
    """scikit-learn's, of a run."""

    @classmethod
    def from_run(cls, run: RunResults, *, normalize: str | None = None) -> ConfusionMatrixDisplay:
        """Take the test images of a run; ``normalize`` is that of ``sklearn.metrics.confusion_matrix``."""
        matrix = metrics.confusion_matrix(
            run.predictions["label"], run.predictions["predicted"], labels=list(run.class_names), normalize=normalize
        )
        return cls(confusion_matrix=matrix, display_labels=list(run.class_names))


class CalibrationDisplay(calibration.CalibrationDisplay):  # type: ignore[misc]
    """scikit-learn's, of a run: how often a confidence in the predicted class is right."""

    @classmethod
    def from_run(cls, run: RunResults, *, n_bins: int = 10, strategy: str = "quantile") -> CalibrationDisplay:
        """Take the test images of a run, by default in bins of equally many."""
        right = run.predictions["label"] == run.predictions["predicted"]
        confidences = run.predictions["confidence"]
        shares, means = calibration.calibration_curve(right, confidences, n_bins=n_bins, strategy=strategy)
        return cls(shares, means, confidences, estimator_name=run.name)

    def plot(self, **more: Any) -> CalibrationDisplay:
        """Draw as scikit-learn does, with what the axes are here."""
        super().plot(**more)
        self.ax_.set(xlabel="confidence of the prediction", ylabel="share that is right")
        return self
