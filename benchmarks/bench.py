"""Stage one against the ways a performance-minded user would otherwise take: ``make bench``.

    benchmarks/.venv/bin/python benchmarks/bench.py --data-dir DATA [--quick]

Every contender lives in a process of its own (`contenders.py`) and is checked against float32 before it is timed. Then
they take turns, round after round, so that a slow minute of the machine falls on all. All get the same images, uint8,
already at the network's size; enlarging is measured with the whole command. The result goes to docs/benchmark.md and
docs/images/, where processors that are fast in bfloat16, and those that are not, have a part each: the other one is
left as it is. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import contenders
import matplotlib as mpl
import numpy as np
import scaling

from pipeline.common.errors import UserError
from pipeline.data import datasets
from pipeline.network import device, winograd

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from pipeline.network.taps import CONV_LAYERS
from pipeline.network.weights import load_weights

SIZES = (32, 64, 96, 128, 224)
COMMAND_SIZES = (32, 64, 96)  # of the whole command
CLASSIC = "keras predict, float32"
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # relative L2 difference from float32; ours are rounded to float16
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of CIFAR-10's 60,000 images
ROWS = 60_000
BARE_ROUNDS = 15  # for as many rounds' seconds: the command takes minutes, in which a machine's speed may change


@dataclass
class Contender:
    """A running contender and what was measured of it: images per second, round by round."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[str]
    batch: int = 0
    difference: float = 0.0
    rates: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)  # for an image; none where the machine does not tell

    def ask(self, line: str | None = None) -> dict[str, Any]:
        """Send a line, if any, and read the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if line is not None:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        if not answer:
            status = self.process.wait()
            self.errors.seek(0)
            raise SystemExit(f"{self.errors.read()}{self.name} ended with status {status}")
        return answer

    def end(self) -> None:
        """Stop the process."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def images_at(size: int, data_dir: Path, folder: Path) -> Path:
    """The first 1,024 test images of CIFAR-10 at a size, as a file for all contenders."""
    import tensorflow as tf

    dataset = datasets.load_dataset("cifar10", data_dir, download=True)
    images = np.ascontiguousarray(dataset.splits["test"].images[:1024])
    if size != images.shape[1]:
        larger = tf.image.resize(images.astype(np.float32), (size, size), method="bicubic").numpy()
        images = np.clip(np.rint(larger), 0, 255).astype(np.uint8)
    path = folder / f"{size}.npy"
    np.save(path, images)
    return path


def start(name: str, *arguments: object) -> Contender:
    """Start a contender's process; what it says on stderr is shown only if it fails."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `Contender.end`
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "contenders.py"), name, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
    )  # fmt: skip
    return Contender(name, process, errors)


def _able() -> list[str]:
    """Contenders for this processor: where bfloat16 is slower than float32, nobody would use it."""
    return [name for name in contenders.NAMES if device.is_faster_in_bfloat16() or not name.endswith("bfloat16")]


def compare(size: int, images: Path, chosen: argparse.Namespace) -> list[Contender]:
    """Build, check and time all contenders at a size."""
    running: list[Contender] = []
    reference = None
    try:
        for name in _able():
            one = start(name, "--size", size, "--data-dir", chosen.data_dir, "--images", images)
            running.append(one)
            answer = one.ask()
            one.batch, found = answer["batch"], np.array(answer["features"])
            reference = found if reference is None else reference
            one.difference = float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
            if one.difference > TOLERANCE[name.rpartition(", ")[2]]:
                raise SystemExit(f"{name} at {size} px is wrong: it differs from float32 by {one.difference:.1e}")
            say(f"{size} px: {name} is right (difference {one.difference:.1e}), batch {one.batch}")
        for number in range(chosen.rounds):
            # Each round begins with another contender, so that none always follows the same one.
            for one in running[number % len(running) :] + running[: number % len(running)]:
                answer = one.ask(str(chosen.seconds))
                one.rates.append(answer["images"] / answer["seconds"])
                one.joules += [answer["joules"] / answer["images"]] if answer["joules"] else []
            say(f"{size} px: round {number + 1} of {chosen.rounds}")
    finally:
        for one in running:
            one.end()
    return running


def operations(size: int, fewest: bool = False) -> float:
    """Floating-point operations for an image up to block5_pool, without those on padding.

    A 3 × 3 convolution of an h × h map touches (3 h - 2)² pairs of pixels, two operations for each pair of channels.
    The ``fewest`` are those of Winograd's F(4 × 4, 3 × 3) or F(6 × 6, 3 × 3), 36 or 64 pairs for each tile, where they
    are fewer, without the transforms.
    """
    total, channels = 0.0, 3
    for layer, out in CONV_LAYERS.items():
        side = size >> (int(layer[5]) - 1)
        pairs = (3 * side - 2) ** 2
        tiles = [(each.span * each.tiles(side)) ** 2 for each in winograd.FILTERINGS]
        total += 2 * (min(pairs, *tiles) if fewest else pairs) * channels * out
        channels = out
    return total


@dataclass
class Run:
    """A command that was run: wall-clock seconds from start to end of its process, and its peak memory in bytes."""

    seconds: float
    peak: int


def timed(command: list[str]) -> Run:
    """Run a command to its end."""
    timer = [sys.executable, str(ROOT / "benchmarks" / "timed.py")]
    done = subprocess.run([*timer, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed: {done.stdout}{done.stderr}")
    return Run(**json.loads(done.stdout))


def whole_command(chosen: argparse.Namespace, folder: Path) -> dict[int, tuple[int, Run, float, list[float]]]:
    """Run ``features`` as a user does: for each size rows, the run, the bare graph's rate, and second calls."""
    results = {}
    for size in COMMAND_SIZES:
        limit = min(chosen.rows, 10_000 if size == COMMAND_SIZES[-1] else chosen.rows)
        rows = min(limit, 50_000) + min(limit, 10_000)
        place = folder / str(size)
        command = [sys.executable, "-m", "pipeline", "features", "--data-dir", str(chosen.data_dir.resolve())]
        command += ["--features-dir", str(place), "--image-size", str(size)]
        command += ["--limit", str(limit)] if limit < 50_000 else []
        bare = ["--size", size, "--data-dir", chosen.data_dir, "--images", folder / "32.npy"]
        rates = []
        for number in range(2):
            if number:
                say(f"{size} px: the whole command on {rows:,} images")
                run = timed(command)
            graph = start(contenders.FROM_32, *bare)
            graph.ask()
            answer = graph.ask(str(BARE_ROUNDS * chosen.seconds))
            rates.append(answer["images"] / answer["seconds"])
            graph.end()
        again = [timed(command).seconds for _ in range(7)]
        results[size] = (rows, run, statistics.mean(rates), again)
    return results


def scale(chosen: argparse.Namespace, folder: Path) -> dict[int, Run]:
    """Time and peak memory of stage one against the number of images, 32 px, all taps."""
    results = {}
    images = folder / "images"
    scaling.write_images(chosen.data_dir, int(max(SCALES) * chosen.scaling_rows), images)
    for times in SCALES:
        rows = int(times * chosen.scaling_rows)
        say(f"stage one on {rows:,} images")
        script = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--rows", str(rows)]
        script += ["--file", str(images.resolve())]
        results[rows] = timed([*script, "--data-dir", str(chosen.data_dir.resolve())])
    return results


# --- what is written --------------------------------------------------------------------------


def classic_rate(found: list[Contender]) -> float:
    """Median rate, in images per second, of the script that all are compared with."""
    return statistics.median(next(one for one in found if one.name == CLASSIC).rates)


def table(size: int, found: list[Contender], ceiling: float) -> str:
    """A Markdown table of one size."""
    classic = classic_rate(found)
    energy = all(one.joules for one in found)
    lines = [
        "| contender | batch | images/s, median (least to most) | times the classic script | share of the ceiling "
        "| difference from float32 |" + " joules/image |" * energy,
        "| --- | --- | --- | --- | --- | --- |" + " --- |" * energy,
    ]
    for one in sorted(found, key=lambda one: statistics.median(one.rates)):
        rate = statistics.median(one.rates)
        share = rate * operations(size) / ceiling
        spread = f"{rate:,.0f} ({min(one.rates):,.0f} to {max(one.rates):,.0f})"
        lines.append(
            f"| {one.name} | {one.batch} | {spread} | {rate / classic:.2f} | {share:.0%} | {one.difference:.1e} |"
            + (f" {statistics.median(one.joules):.3g} |" if energy else "")
        )
    return "\n".join(lines)


def draw_rates(results: dict[int, list[Contender]], ceilings: dict[str, float], path: Path) -> None:
    """Bars of all contenders, one panel for each size, with the least and the most of the rounds."""
    figure, panels = plt.subplots(1, len(results), figsize=(4.2 * len(results) + 1.6, 4.6), sharey=True, squeeze=False)
    for panel, (size, found) in zip(panels[0], results.items(), strict=True):
        rates = [statistics.median(one.rates) for one in found]
        spread = [
            [rate - min(one.rates) for rate, one in zip(rates, found, strict=True)],
            [max(one.rates) - rate for rate, one in zip(rates, found, strict=True)],
        ]
        colours = ["#1f77b4" if one.name.startswith("ours") else "#a9a9a9" for one in found]
        panel.barh([one.name for one in found], rates, color=colours, xerr=spread, ecolor="#404040")
        limits = {
            "direct": max(ceilings.values()) / operations(size),
            "Winograd": ceilings["float32"] / operations(size, fewest=True),
        }
        for (name, limit), alignment in zip(
            sorted(limits.items(), key=lambda each: each[1]), ("right", "left"), strict=True
        ):
            panel.axvline(limit, color="#d62728", linestyle="--", linewidth=1)
            panel.text(limit, -0.9, f" {name} ", color="#d62728", ha=alignment, va="bottom", fontsize=8)
        limit = max(limits.values())
        for position, (rate, one) in enumerate(zip(rates, found, strict=True)):
            label = panel.text(max(one.rates) + 0.02 * limit, position, f"{rate / rates[0]:.1f} ×", va="center")
            label.set(fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        panel.set_xlim(0, 1.2 * max(limit, *rates))
        panel.set_title(f"{size} px")
        panel.set_xlabel("images per second")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter("{x:,.0f}")
    panels[0][0].invert_yaxis()
    figure.suptitle("VGG16 features on a processor (×: times the classic script)", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_scaling(results: dict[int, Run], path: Path) -> None:
    """Time and peak memory against the number of images."""
    rows = list(results)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    left.plot(rows, [run.seconds for run in results.values()], marker="o")
    left.set_ylabel("seconds")
    right.plot(rows, [run.peak / 1e9 for run in results.values()], marker="o", color="#2ca02c")
    right.set_ylabel("peak resident memory, GB")
    for panel in (left, right):
        panel.set_ylim(0, 1.15 * panel.get_ylim()[1])
        panel.set_xlim(0, 1.1 * max(rows))
        panel.set_xlabel("images (32 px, all taps)")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def verdicts(results: dict[int, list[Contender]]) -> str:
    """The ratios that matter, of medians of the same rounds."""
    lines = [
        "| size | precision | ours, all taps, to the fastest that convolves directly | to ncnn | to the classic script "
        "| time of all taps to that of `top` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size, found in results.items():
        rate = {one.name: statistics.median(one.rates) for one in found}
        for precision in ("bfloat16", "float32"):
            if (ours := f"ours, all taps, {precision}") not in rate:
                continue
            others = [name for name in rate if name.endswith(precision) and not name.startswith(("ours", "ncnn"))]
            fastest = max(others, key=lambda name: rate[name])
            ratios = [rate[ours] / rate[other] for other in (fastest, "ncnn, float32", CLASSIC)]
            ratios.append(rate[f"ours, top, {precision}"] / rate[ours])
            first, *rest = (f"**{ratio:.2f}**" for ratio in ratios)
            lines.append(f"| {size} px | {precision} | {first} ({fastest.split(',')[0]}) | {' | '.join(rest)} |")
    return "\n".join(lines)


def write(
    chosen: argparse.Namespace,
    results: dict[int, list[Contender]],
    commands: dict[int, tuple[int, Run, float, list[float]]],
    scaled: dict[int, Run],
    ceilings: dict[str, float],
) -> None:
    """Write the page and its pictures, of what there is so far."""
    pictures, kind = chosen.output / "images", "" if device.is_faster_in_bfloat16() else "_float32"
    pictures.mkdir(parents=True, exist_ok=True)
    draw_rates(results, ceilings, pictures / f"benchmark{kind}.png")
    machine = device.describe()
    packages = ("tensorflow", "keras", "torch", "openvino", "onnxruntime", "ncnn")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        f"Written by `make bench` on {time.strftime('%Y-%m-%d')}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['system']}; {versions}. {chosen.rounds} rounds, in each every contender for {chosen.seconds:g} s in "
        f"turn, each in a process of its own, checked against float32 before. Images are CIFAR-10's, uint8, enlarged "
        f"beforehand; batch sizes are each contender's best of those tried, ours the product's own choice.",
        "",
        f"The ceiling is the best of many matrix products of 1,024 to 4,096 rows: in bfloat16 "
        f"{ceilings['bfloat16'] / 1e12:.2f} TFLOP/s "
        f"(in float32 {ceilings['float32'] / 1e12:.2f}); the share counts VGG16's multiplications and additions, "
        f"without those on padding, against the faster of them. The picture has that ceiling of direct convolutions, "
        f"and the bound of Winograd's in float32: the fewest multiplications of F(4 × 4, 3 × 3) or F(6 × 6, 3 × 3), "
        f"without the transforms.",
        "",
        f"![Rates of all contenders](images/benchmark{kind}.png)",
        "",
        verdicts(results),
        "",
    ]
    for size, found in results.items():
        lines += [f"### {size} px", "", table(size, found, max(ceilings.values())), ""]
    if commands:
        lines += [
            "### The whole command",
            "",
            "`features` with all taps, from the start of its process to its end, start-up, enlarging, hashing and "
            "fsync included, against the bare graph (the same images at 32 px, enlarged in the graph), measured for "
            f"{BARE_ROUNDS * chosen.seconds:g} s before and as long after.",
            "",
            "| size | images | seconds | images/s | times the classic script | share of the ceiling | bare graph "
            "| share of the bare graph | peak memory | called again (median of 7) |",
            "| --- " * 10 + "|",
        ]
    for size, (rows, run, bare, again) in commands.items():
        rate, classic = rows / run.seconds, classic_rate(results[size])
        lines.append(
            f"| {size} px | {rows:,} | {run.seconds:.0f} | {rate:,.0f} | {rate / classic:.2f} | "
            f"{rate * operations(size) / max(ceilings.values()):.0%} | {bare:,.0f} | {rate / bare:.1%} | "
            f"{run.peak / 1e9:.2f} GB | {statistics.median(again):.2f} s |"
        )
    if scaled:
        draw_scaling(scaled, pictures / f"benchmark_memory{kind}.png")
        lines += [
            "",
            "### Time and memory against the number of images",
            "",
            "Stage one at 32 px, all taps, on CIFAR-10 repeated and read from a file as it is needed.",
            "",
            f"![Time and peak memory](images/benchmark_memory{kind}.png)",
            "",
            "| images | seconds | peak memory |",
            "| --- | --- | --- |",
            *(f"| {rows:,} | {run.seconds:.0f} | {run.peak / 1e9:.2f} GB |" for rows, run in scaled.items()),
        ]
    lines.append("")
    page = chosen.output / "benchmark.md"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    parts = dict(re.findall(r"^## (.+)\n\n((?:(?!^## ).*\n)*)", before, re.MULTILINE))
    parts["Without bfloat16" if kind else "With bfloat16"] = "\n".join(lines)
    text = "\n".join(f"## {title}\n\n{part.strip()}\n" for title, part in sorted(parts.items()))
    page.write_text(f"# Benchmark\n\n{text}", encoding="utf-8")


def run(chosen: argparse.Namespace) -> None:
    """Measure, and write what was found."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT) as name:  # not in /tmp, which may be memory
        folder = Path(name)
        files = {size: images_at(size, chosen.data_dir, folder) for size in SIZES}
        ceilings = start("ceiling").ask()
        results = {size: compare(size, path, chosen) for size, path in files.items()}
        write(chosen, results, {}, {}, ceilings)  # what was measured in half an hour is not lost by a later fault
        commands = whole_command(chosen, folder)
        write(chosen, results, commands, {}, ceilings)
        write(chosen, results, commands, scale(chosen, folder), ceilings)
    say(f"written: {chosen.output / 'benchmark.md'}")


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="where the page and its images go")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a contender in a round")
    parser.add_argument("--rows", type=int, default=ROWS, help="of each split for the whole command")
    parser.add_argument("--scaling-rows", type=int, default=ROWS, help="images that count as one CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="a few minutes: to see that it works, not to quote")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.seconds, chosen.rows, chosen.scaling_rows = 2, 1.0, 2000, 4000
    try:
        load_weights("imagenet", chosen.data_dir)  # fetched once, before anyone needs them
        run(chosen)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
