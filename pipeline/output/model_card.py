"""The model card: what a person must know before using a fitted model, in Markdown, beside it.

After Mitchell et al., Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.output import run_folder

MOST_CLASSES = 200  # listed one by one


def render(metrics: Mapping[str, Any], description: Mapping[str, Any], cache: Any) -> str:
    """Write the card of a run.

    Parameters
    ----------
    metrics : mapping
        The run's ``metrics.json``.
    description : mapping
        What goes beside the model.
    cache : store.Cache
        The features that it was trained on.
    """
    sections = {
        "Data": _data(metrics, description, cache),
        "Features": _features(metrics, description),
        "Classifier and protocol": _protocol(metrics),
        "Metrics": _metrics(metrics),
        "Classes": _classes(metrics),
        "Limits": _limits(metrics, cache),
        "How to use it": _use(metrics),
        "Whom to trust": _TRUST.format(run=metrics["run"]),
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    return f"# {metrics['run']}\n\nMade {metrics['created']}.\n\n{body}\n"


def _data(metrics: Mapping[str, Any], description: Mapping[str, Any], cache: Any) -> str:
    data, made = metrics["dataset"], cache.provenance
    rows = ", ".join(f"{count:,} rows of {split}" for split, count in cache.rows.items())
    limit = description["spec"]["limit"]
    lines = [
        f"- {data['name']}, from `{made['dataset_source']}`: {rows}"
        + (f", the first {limit:,} of each" if limit else ""),
        f"- sha256 over images, labels and class names: `{data['digest']}`",
    ]
    if data["official"] is not True:
        lines.append("- **These are not the official files of that data set.**")
    if cache.has_members and not cache.skipped:
        lines.append("- every file of it was used")
    elif cache.has_members:
        leaks = sum(item.is_leak for item in cache.skipped)
        count = len(cache.skipped)
        lines.append(
            f"- {count:,} {'file was' if count == 1 else 'files were'} not used, {leaks:,} of them because of a leak "
            f"from train into test; `skipped.csv` in the run's folder lists them"
        )
    return "\n".join(lines)


def _features(metrics: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    spec, features = description["spec"], metrics["features"]
    weights = {
        "imagenet": "ImageNet weights",
        "random": "**random weights: the network is untrained**",
    }.get(features["weights"], f"weights of `{features['weights']}`")
    how = {
        "squash": "each side scaled by its own factor",
        "crop": "their middle square",
        "pad": "filled up to a square",
    }[spec["fit"]]
    return "\n".join(
        [
            f"- VGG16 (https://arxiv.org/abs/1409.1556), {weights}, sha256 over them `{spec['weights_digest']}`",
            f"- images at {spec['image_size']} × {spec['image_size']} pixels, {spec['interpolation']}; those that "
            f"are not square: {how} (`{spec['fit']}`)",
            f"- {features['columns']:,} columns, computed in {spec['precision']}: {', '.join(spec['taps'])}",
        ]
    )


def _protocol(metrics: Mapping[str, Any]) -> str:
    classifier = metrics["classifier"]
    params = ", ".join(f"{name}={value}" for name, value in classifier["params"].items())
    lines = [
        f"- {classifier['name']} on standardised features: {params}; seed {metrics['seed']}",
        "- a stratified 10 % of the training rows is validation; every choice is made on it, by log loss; the chosen "
        "classifier is refitted on all training rows; the test split is scored once",
    ]
    if metrics.get("converged") is False:
        lines.append(f"- **The solver did not converge**: {metrics.get('convergence') or 'no reason is recorded'}")
    return "\n".join(lines)


def _metrics(metrics: Mapping[str, Any]) -> str:
    accuracy, loss = metrics["accuracy"], metrics["log_loss"]
    interval = dict(metrics.get("interval") or {}).get("test")
    tested = run_folder.number(accuracy["test"], ".2%")
    if interval:
        tested += f" (95 % interval {interval[0]:.2%} to {interval[1]:.2%})"
    lines = [
        "| | train | validation | test |",
        "| --- | --- | --- | --- |",
        f"| accuracy | {accuracy['train']:.2%} | {accuracy['validation']:.2%} | {tested} |",
        f"| log loss | {loss['train']:.4f} | {loss['validation']:.4f} | {run_folder.number(loss['test'], '.4f')} |",
        "",
        "Train and validation are scores of the classifier fitted on 90 % of the training rows, test is that of the "
        "refitted one."
        if accuracy["test"] is not None
        else "**There are no test scores: every image of the test split was left out.**",
    ]
    error = dict(metrics.get("calibration") or {}).get("ece")
    if error is not None:
        lines += ["", f"Expected calibration error on test: {error:.4f}: so far, on average, are confidences off."]
    return "\n".join(lines)


def _classes(metrics: Mapping[str, Any]) -> str:
    per_class = metrics["per_class"]
    lines = ["| class | precision | recall | F1 | test rows |", "| --- | --- | --- | --- | --- |"]
    for name, item in list(per_class.items())[:MOST_CLASSES]:
        label = name.replace("\\", "\\\\").replace("|", "\\|")
        lines.append(
            f"| {label} | "
            + " | ".join(run_folder.number(item[name], ".3f") for name in ("precision", "recall", "f1"))
            + f" | {item['support']:,} |"
        )
    if len(per_class) > MOST_CLASSES:
        lines.append(f"\n{len(per_class) - MOST_CLASSES:,} more are in `metrics.json`.")
    return "\n".join(lines)


def _limits(metrics: Mapping[str, Any], cache: Any) -> str:
    lines = [
        f"- It knows these {len(metrics['per_class'])} classes and no other: whatever an image shows, one of them is "
        f"named, and the probabilities add up to one.",
        "- The probabilities hold for images like those it was tested on. Another camera, scanner, time or place is "
        "another matter, and only a test on such images tells.",
        "- VGG16 was trained on photographs from the web (ImageNet) and brings their biases.",
    ]
    few = min((item["support"] for item in metrics["per_class"].values()), default=0)
    if few < 30:
        lines.append(f"- The smallest class has {few} test rows: its figures are rough.")
    if metrics["features"]["weights"] == "random":
        lines.append("- The features come from an untrained network: this model is for trying the program out.")
    return "\n".join(lines)


def _use(metrics: Mapping[str, Any]) -> str:
    versions = metrics["versions"]
    return f"""```sh
python -m pipeline predict --model models/{metrics["run"]}.joblib IMAGE_OR_FOLDER
```

Everything about size, taps, precision and weights is taken from `{metrics["run"]}.json` beside it. Fitted by
scikit-learn {versions["scikit-learn"]}; a version whose first or second number is another is refused."""


_TRUST = """A `.joblib` file **runs code when it is loaded**. `predict` loads it only if its sha256 is the one that
`train` recorded in `{run}.json`. That protects from a damaged file, from mixing up two models, and from a file put in
this one's place. It does **not** protect from somebody who replaces both files, or who gives you both: load only models
that you trained, or whose author you trust as you would with a program of theirs.

To share it, write it as `.skops` with `python -m pipeline export --model models/{run}.joblib`: that format holds
numbers and names of types, and is loaded only when all of these are known to be harmless. It cannot run code; it can
still be a bad or a manipulated classifier."""
