"""
Classify a folder of your own images
====================================

Images in a folder for each class are all that is needed. Here the folder is made of scikit-learn's handwritten digits;
put your own in its place.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import pipeline
from pipeline.cli import main

digits = load_digits()
names = {3: "three", 5: "five", 8: "eight"}
for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    if label in names:
        folder = Path("scans", names[label])
        if number >= len(digits.images) - 100:
            folder = Path("new-scans")  # images that come later
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((image * 255 / 16).astype(np.uint8))
        grey.resize((32, 32)).save(folder / f"{names[label]}-{number:04d}.png")
print(*sorted(str(path) for path in Path("scans").iterdir()), sep="\n")

# %%
# Stage one computes the features, stage two trains. ``main`` is the command line:
# ``main(["train", "--dataset", "scans"])`` is ``python -m pipeline train --dataset scans``. At 32 pixels and with the
# last layer alone it takes seconds; the default, all layers at 64 pixels, is better.

settings = ["--dataset", "scans", "--image-size", "32", "--taps", "top"]
main(["features", *settings])
main(["train", *settings])

# %%
# What the run found, as a picture:

(folder,) = Path("output").glob("scans-logistic-*")
run = pipeline.load_run(folder.name)
pipeline.ConfusionMatrixDisplay.from_run(run).plot(colorbar=False)
plt.show()

# %%
# The model classifies images that come later; here of files, but arrays will do, too.

model = pipeline.load_model(run.name)
files = sorted(Path("new-scans").iterdir())[:24]
probabilities = model.predict_proba(files)
best = model.classes_[probabilities.argmax(axis=1)]

figure, axes = plt.subplots(4, 6, figsize=(7, 5.4), subplot_kw={"xticks": [], "yticks": []}, layout="constrained")
for place, file, label, probability in zip(axes.flat, files, best, probabilities.max(axis=1), strict=True):
    place.imshow(Image.open(file), cmap="gray")
    place.set_title(f"{label} {probability:.0%}", fontsize=8)
plt.show()

# %%
# On the command line, the same of the whole folder: a table, and a sheet of thumbnails in ``sheet.png``.

main(["predict", "--model", f"models/{run.name}.joblib", "new-scans", "--top-k", "2", "--sheet", "sheet.png"])
