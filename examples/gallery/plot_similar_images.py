"""
Find similar images
===================

Images whose features point in the same direction look alike. With ``load_features`` and scikit-learn's nearest
neighbours, a cache is an index of similar images.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from pipeline import load_features, row_names
from pipeline.cli import main

digits = load_digits()
for number, image in enumerate(digits.images[:500]):
    folder = Path("archive", str(digits.target[number]))
    folder.mkdir(parents=True, exist_ok=True)
    grey = Image.fromarray((image * 255 / 16).astype(np.uint8))
    grey.resize((32, 32)).save(folder / f"{number:04d}.png")
main(["features", "--dataset", "archive", "--image-size", "32", "--taps", "block5_conv1.avg"])

# %%
# The features, and the file of each row:

(cache,) = Path("features").glob("archive-vgg16-32px-*.h5")
train, _ = load_features(cache, "train")
test, _ = load_features(cache, "test")
names = {split: row_names(cache, split) for split in ("train", "test")}

# %%
# For six images of the test split, the five most similar ones of the training split:

nearest = NearestNeighbors(n_neighbors=5, metric="cosine").fit(train)
asked = range(0, len(test), len(test) // 6)[:6]
distances, rows = nearest.kneighbors(test[asked])

figure, axes = plt.subplots(6, 6, figsize=(6, 6.6), subplot_kw={"xticks": [], "yticks": []})
for line, row, near, distance in zip(axes, asked, rows, distances, strict=True):
    files = [names["test"][row], *names["train"][near]]
    titles = ["asked", *(f"{value:.2f}" for value in distance)]
    for place, name, title in zip(line, files, titles, strict=True):
        place.imshow(Image.open(Path("archive") / name), cmap="gray")
        place.set_title(title, fontsize=8)
figure.suptitle("Most similar images, with their cosine distance")
figure.tight_layout()
plt.show()
