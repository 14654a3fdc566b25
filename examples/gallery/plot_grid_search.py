"""
GridSearchCV over VGG16 features
================================

``VGG16Features`` is a scikit-learn transformer. It keeps what it computed, so this search over two layers, four
values of C and three folds runs each image through the network once for each layer, not once for each candidate and
fold.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import VGG16Features

digits = load_digits()
grey = (digits.images[:300] * 255 / 16).astype(np.uint8)
images = np.repeat(grey[..., np.newaxis], 3, axis=3)  # uint8, RGB, (300, 8, 8, 3)
labels = digits.target[:300]

model = Pipeline(
    [
        ("features", VGG16Features(image_size=32)),
        ("scale", StandardScaler()),
        ("classifier", LogisticRegression(max_iter=1000)),
    ]
)
layers = ["block4_conv3.avg", "block5_pool.avg"]
strengths = [1e-4, 1e-3, 1e-2, 1e-1]
choices = {"features__taps": layers, "classifier__C": strengths}
search = GridSearchCV(model, choices, cv=3).fit(images, labels)
print(search.best_params_)

# %%
# The mean accuracy over the folds, for each layer and each C:

found = search.cv_results_
figure, axes = plt.subplots(figsize=(6, 4))
for layer in layers:
    rows = np.flatnonzero(found["param_features__taps"] == layer)
    rows = rows[np.argsort(found["param_classifier__C"][rows].astype(float))]
    axes.semilogx(strengths, found["mean_test_score"][rows], marker="o", label=layer)
axes.set(xlabel="C", ylabel="accuracy", title="Cross-validated accuracy by layer")
axes.legend()
plt.show()
