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
# The model predicts new images, and draws them on a sheet with the predicted class and its probability.

(model,) = Path("models").glob("scans-*.joblib")
main(["predict", "--model", str(model), "new-scans", "--sheet", "sheet.png"])

figure, axes = plt.subplots(figsize=(8, 8))
axes.imshow(Image.open("sheet.png"))
axes.set_axis_off()
plt.show()
