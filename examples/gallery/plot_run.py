"""
Plot what a run found
=====================

``train`` keeps everything it measured. ``load_run`` gives it as arrays, and four displays plot it as scikit-learn's own
displays do: into any axes, in any style.
"""

from pathlib import Path

import matplotlib.pyplot as plt

import pipeline
from pipeline.cli import main

# %%
# Both stages, on scikit-learn's handwritten digits. ``main`` is the command line: ``main(["demo"])`` is
# ``python -m pipeline demo``. At 32 pixels and with the last layer alone it takes seconds; the default, all layers at
# 64 pixels, is better.

main(["demo", "--image-size", "32", "--taps", "top"])

# %%
# A run is found by its name, which ``train`` prints and ``pipeline.runs()`` lists.

(folder,) = Path("output").glob("digits-logistic-*")
run = pipeline.load_run(folder.name)
low, high = run.metrics["interval"]["test"]
print(f"{run.name}: {run.metrics['accuracy']['test']:.2%} of test, 95 % interval {low:.2%} to {high:.2%}")

figure, axes = plt.subplots(2, 2, figsize=(10, 9), layout="constrained")
pipeline.HistoryDisplay.from_run(run).plot(ax=axes[0, 0])
pipeline.LearningCurveDisplay.from_run(run).plot(ax=axes[0, 1])
pipeline.CalibrationDisplay.from_run(run).plot(ax=axes[1, 0])
pipeline.ConfusionMatrixDisplay.from_run(run).plot(ax=axes[1, 1], colorbar=False)
plt.show()
