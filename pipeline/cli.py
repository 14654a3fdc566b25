"""The command line: flags in, exit status out.

python -m pipeline COMMAND --help

A command's flags are the fields of its options. What is heavy is imported after they have been understood, so that
help and mistakes cost nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import __version__
from pipeline.commands import presets
from pipeline.commands.options import (
    AuditOptions,
    EnsembleOptions,
    ExportOptions,
    InspectOptions,
    MessageOptions,
    PredictOptions,
    ReportOptions,
    SimilarOptions,
)
from pipeline.common.errors import Interrupted, UserError
from pipeline.common.options import Option, Options, add_flags, check_variables
from pipeline.common.progress import show_log
from pipeline.common.text import did_you_mean, to_json, wrap
from pipeline.features.options import ComputeOptions, FeatureOptions
from pipeline.models import classifiers
from pipeline.network import device
from pipeline.selection.options import SweepOptions, TrainOptions

if TYPE_CHECKING:
    from pipeline.output.run_folder import RunFolder

log = logging.getLogger("pipeline")

EXIT_USER, EXIT_INTERRUPTED = 2, 130
EXIT_PIPE = 141  # 128 + SIGPIPE, as a shell has it
PROGRAM = "python -m pipeline"


Answer = tuple[str, Mapping[str, Any]]  # what a command found: for people, and the same for programs

TITLES: Mapping[type[Options], str] = {
    FeatureOptions: "which features",
    ComputeOptions: "which features, and how they are computed",
    TrainOptions: "the run",
    SweepOptions: "the candidates",
    MessageOptions: "what is said",
}
OF_CLASSIFIERS = "settings of the classifiers; each may be given for those it names"


@dataclass(frozen=True)
class Command:
    """What a command does, the options whose fields are its flags, and how one might call it."""

    run: Callable[[argparse.Namespace], Answer]
    example: str
    options: Sequence[type[Options]]
    defaults: Mapping[str, Any]

    def groups(self) -> dict[str, list[Option]]:
        """Its flags, by the titles of their groups; of two that have one name, that of the later options."""
        owners = {item.name: options for options in self.options for item in options.declared()}
        found = {
            TITLES.get(options, "options"): [item for item in options.declared() if owners[item.name] is options]
            for options in self.options
        }
        own = {OF_CLASSIFIERS: classifiers.flags()} if TrainOptions in self.options else {}
        return {**found, **own, TITLES[MessageOptions]: MessageOptions.declared()}


COMMANDS: dict[str, Command] = {}


def _command(example: str, *options: type[Options], **defaults: Any) -> Callable[[Any], Any]:
    """Make a function the command of its name; its docstring is the help."""

    def register(run: Callable[[argparse.Namespace], Answer]) -> Callable[[argparse.Namespace], Answer]:
        COMMANDS[run.__name__] = Command(run, example, options, defaults)
        return run

    return register


@_command("--dataset photos --image-size 128", ComputeOptions)
def features(given: argparse.Namespace) -> Answer:
    """Stage one: push all images through VGG16 once."""
    from pipeline.features import extract, store

    made = extract.extract_all(ComputeOptions.of(given, **presets.for_features(given)))
    specs = [store.peek_spec(each.path) for each in made]
    found = [
        {"file": str(each.path), "bytes": each.path.stat().st_size, "key": spec.key(), "spec": spec.to_dict()}
        for each, spec in zip(made, specs, strict=True)
    ]
    return "".join(f"{wrap(each.summary)}\n" for each in made), found[0] if len(found) == 1 else {"caches": found}


@_command("--classifier mlp --taps top", FeatureOptions, TrainOptions)
def train(given: argparse.Namespace) -> Answer:
    """Stage two: train a classifier on the cached features."""
    return _train(FeatureOptions.of(given, **presets.for_features(given)), _training(given))


@_command("--grid C=1e-4..1,log,9 --taps top --taps all", FeatureOptions, TrainOptions, SweepOptions)
def sweep(given: argparse.Namespace) -> Answer:
    """Stage two, many times: choose among many candidates, then train the best."""
    from pipeline.commands import sweep

    preset = presets.chosen(given)
    taps = [preset["taps"]] if "taps" in preset else []
    chosen = SweepOptions.of(given, training=_training(given), taps=tuple(taps))
    given.taps = "all"  # which the features need follows from the choices
    asked = FeatureOptions.of(given, **{**preset, "taps": "all"})
    result = sweep.sweep(asked, chosen)
    text, summary = _finished(asked, chosen.training, result.winner)
    return f"{sweep.summary(result)}\n{text}", {**summary, "candidates": str(result.path)}


@_command("cifar10-mlp-1a2b3c4d cifar10-logistic-5e6f7a8b", EnsembleOptions)
def ensemble(given: argparse.Namespace) -> Answer:
    """Join runs into one: the mean of what their models say, weighed on validation."""
    from pipeline.commands import ensemble

    options = EnsembleOptions.of(given)
    return _finished(options, options, ensemble.ensemble(options))


@_command("--dataset digits", ReportOptions)
def report(given: argparse.Namespace) -> Answer:
    """Rebuild leaderboard and page from the runs that are there."""
    from pipeline.output import page

    options = ReportOptions.of(given)
    rebuilt = page.rebuild(options.output_dir, options.data_dir, dataset=options.dataset)
    files = {"page": str(rebuilt.page), "leaderboard": str(rebuilt.table)}
    return rebuilt.summary(), {**files, "runs": [run.metrics for run in rebuilt.runs]}


@_command("", ComputeOptions, TrainOptions, dataset="digits")
def demo(given: argparse.Namespace) -> Answer:
    """Both stages on scikit-learn's digits, in about a minute."""
    from pipeline.features import extract
    from pipeline.network.weights import WeightsUnavailable

    asked = ComputeOptions.of(given, **presets.for_features(given), **COMMANDS["demo"].defaults)
    training = _training(given)
    try:
        extracted = extract.extract_all(asked)
    except WeightsUnavailable as error:
        log.warning("warning: %s", error)
        log.warning("warning: going on with an untrained network, so that there is something to see")
        asked = dataclasses.replace(asked, weights="random")
        extracted = extract.extract_all(asked)
    for each in extracted:
        log.info("%s", each.summary)
    return _train(asked, training)


@_command("--model models/RUN.joblib photos/", PredictOptions)
def predict(given: argparse.Namespace) -> Answer:
    """Classify images of your own with a fitted model."""
    from pipeline.commands import predict

    return predict.predict(PredictOptions.of(given))


@_command("--dataset photos", AuditOptions, FeatureOptions)
def audit(given: argparse.Namespace) -> Answer:
    """Look for wrong labels, near duplicates, outliers and dull images."""
    from pipeline.commands import audit

    text, summary = audit.audit(FeatureOptions.of(given), AuditOptions.of(given))
    return wrap(text), summary


@_command("--dataset photos cat.jpg", SimilarOptions, FeatureOptions)
def similar(given: argparse.Namespace) -> Answer:
    """Find the rows of a cache that are most like images of your own."""
    from pipeline.commands import similar

    return similar.similar(FeatureOptions.of(given), SimilarOptions.of(given))


@_command("--model models/RUN.joblib", ExportOptions)
def export(given: argparse.Namespace) -> Answer:
    """Write a model in the format for sharing (skops)."""
    from pipeline.models import persistence

    model = persistence.export(ExportOptions.of(given).model)
    beside = model.with_suffix(".json")
    text = f"{model}: share it together with {beside.name}; predict takes it as --model\n"
    return wrap(text), {"model": str(model), "description": str(beside)}


@_command("features/FILE.h5 --verify", InspectOptions, FeatureOptions)
def inspect(given: argparse.Namespace) -> Answer:
    """What a feature file holds, and whether it verifies."""
    from pipeline.commands import inspect

    options = InspectOptions.of(given)
    text, summary = inspect.inspect(options.file, FeatureOptions.of(given), must_verify=options.verify)
    return wrap(text), summary


def _training(given: argparse.Namespace) -> TrainOptions:
    return TrainOptions.of(given, **presets.for_training(given))


def _train(asked: FeatureOptions, training: TrainOptions) -> Answer:
    from pipeline.commands import train

    return _finished(asked, training, train.train(asked, training))


def _finished(
    asked: FeatureOptions | EnsembleOptions, training: TrainOptions | EnsembleOptions, place: RunFolder
) -> Answer:
    """A run's results, what to do with them, and where all runs are: leaderboard and page are brought up to date."""
    from pipeline.output import leaderboard, report

    if not leaderboard.is_current(training.output_dir):
        from pipeline.output import page  # late: a run that is found needs none of what makes the page

        page.rebuild(training.output_dir, asked.data_dir)
    words = [f"{PROGRAM} predict", f"--model {shlex.quote(str(place.model))}"]
    if asked.data_dir != Path("data"):
        words.insert(1, f"--data-dir {shlex.quote(str(asked.data_dir))}")
    command = " \\\n    ".join(words)
    everything = f"all runs:\n  {training.output_dir / leaderboard.PAGE_NAME}\n"
    text = f"{report.summary(place)}{everything}to classify images of your own:\n  {command} IMAGES\n"
    return wrap(text), {**(place.load() or {}), "folder": str(place.folder), "model": str(place.model)}


# --- what is asked, and what is answered -------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one paragraph instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:].rstrip('.')}. '{self.prog} --help' lists what there is.")


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="VGG16 features once, classifiers as often as you like.",
        epilog=f"'{PROGRAM} COMMAND --help' lists a command's flags. Begin with '{PROGRAM} demo'.",
    )
    parser.add_argument("--version", action="version", version=f"vgg16-features {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    for name, command in COMMANDS.items():
        text, groups = command.run.__doc__, command.groups()
        positional = [item.metavar for items in groups.values() for item in items if item.positional]
        own = commands.add_parser(
            name,
            help=text,
            description=text,
            prog=f"{PROGRAM} {name}",
            usage=" ".join([PROGRAM, name, "[options]", *map(str, positional)]),
            epilog=f"example: {PROGRAM} {name} {command.example}".rstrip(),
        )
        for title, items in groups.items():
            group = own if title == "options" else own.add_argument_group(title)
            add_flags(group, items, **command.defaults)
    return parser


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """What was asked for; flags in front of the command count as if they stood behind it.

    Raises UserError when there is no such command, or it has no such flag.
    """
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks how a line might go on
        import argcomplete

        argcomplete.autocomplete(parser)
    before = next((at for at, word in enumerate(argv) if not word.startswith("-")), 0)
    name = argv[before]
    if not name.startswith("-") and name not in COMMANDS:
        raise UserError(
            f"There is no command {name}.{did_you_mean(name, COMMANDS)} There are {', '.join(COMMANDS)}; "
            f"'{PROGRAM} --help' says what each does."
        )
    arguments, unknown = parser.parse_known_args([name, *argv[:before], *argv[before + 1 :]])
    if arguments.command is None:
        parser.error(f"name a command before {name}")
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = [item.flag for items in COMMANDS[name].groups().values() for item in items if not item.positional]
        raise UserError(
            f"'{PROGRAM} {name}' has no flag {flag}.{did_you_mean(flag, known)} '{PROGRAM} {name} --help' lists its "
            f"flags."
            if flag.startswith("-")
            else f"'{PROGRAM} {name}' does not know what {flag} is for. Flags begin with --, and '{PROGRAM} {name} "
            f"--help' lists them."
        )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 something that the user can correct, 130 interrupted."""
    show_log()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that are not text, or not in its encoding
    device.prefer_avx512()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like SIGINT: stop cleanly, and say how to go on
    messages = MessageOptions()
    try:
        check_variables(item for command in COMMANDS.values() for group in command.groups().values() for item in group)
        arguments = _parsed((sys.argv[1:] if argv is None else list(argv)) or ["--help"])
        messages = MessageOptions.of(arguments)
        show_log(messages.level)
        text, summary = COMMANDS[arguments.command].run(arguments)
        sys.stdout.write(to_json(summary).decode("utf-8") if messages.json else text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return EXIT_PIPE
    except UserError as error:
        log.error("error: %s", error, exc_info=messages.verbose)
        return EXIT_USER
    except Interrupted as stop:
        log.error("%s", stop)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        log.error("Interrupted. Nothing was left half-written; run the same command again.")
        return EXIT_INTERRUPTED
    return 0
