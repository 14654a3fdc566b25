"""The front door: flags in, exit status out.

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
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pipeline.commands.options import ExportOptions, InspectOptions, PredictOptions, ReportOptions
from pipeline.common.errors import Interrupted, UserError
from pipeline.common.options import Option, Options, add_flags, check_variables
from pipeline.features.options import ComputeOptions, FeatureOptions
from pipeline.models import classifiers
from pipeline.network import device
from pipeline.selection.options import SweepOptions, TrainOptions

log = logging.getLogger("pipeline")

EXIT_USER, EXIT_INTERRUPTED = 2, 130
EXIT_PIPE = 141  # 128 + SIGPIPE, as a shell has it
PROGRAM = "python -m pipeline"


@dataclass(frozen=True)
class Command:
    """What a command does, and the options whose fields are its flags."""

    run: Callable[[argparse.Namespace], str]
    options: Sequence[type[Options]]
    defaults: Mapping[str, Any]

    def groups(self) -> dict[str, list[Option]]:
        """Its flags, by the titles of their groups; of two that have one name, that of the later options."""
        owners = {item.name: options for options in self.options for item in options.declared()}
        found = {
            options.__name__.replace("Options", " options").lower(): [
                item for item in options.declared() if owners[item.name] is options
            ]
            for options in self.options
        }
        return {**found, "options of the classifiers": classifiers.flags()} if TrainOptions in self.options else found


COMMANDS: dict[str, Command] = {}


def _command(*options: type[Options], **defaults: Any) -> Callable[[Any], Any]:
    """Make a function, from what was given to what is printed, the command of its name; its docstring is the help."""

    def register(run: Callable[[argparse.Namespace], str]) -> Callable[[argparse.Namespace], str]:
        COMMANDS[run.__name__] = Command(run, options, defaults)
        return run

    return register


@_command(ComputeOptions)
def features(given: argparse.Namespace) -> str:
    """Stage one: push all images through VGG16 once."""
    from pipeline.features import extract

    return f"{extract.extract(ComputeOptions.of(given)).summary}\n"


@_command(FeatureOptions, TrainOptions)
def train(given: argparse.Namespace) -> str:
    """Stage two: train a classifier on the cached features."""
    return _train(FeatureOptions.of(given), _training(given))


@_command(FeatureOptions, TrainOptions, SweepOptions)
def sweep(given: argparse.Namespace) -> str:
    """Stage two, many times: choose among many candidates, then train the best."""
    from pipeline.commands import sweep
    from pipeline.output import report

    chosen = SweepOptions.of(given, training=_training(given))
    given.taps = "all"  # which the features need follows from the choices
    asked = FeatureOptions.of(given)
    result = sweep.sweep(asked, chosen)
    return _with_page(asked, chosen.training, f"{sweep.summary(result)}\n{report.summary(result.winner)}")


@_command(ReportOptions)
def report(given: argparse.Namespace) -> str:
    """Rebuild leaderboard and page from the runs that are there."""
    from pipeline.output import page

    options = ReportOptions.of(given)
    return page.summary(page.rebuild(options.output_dir, options.data_dir, dataset=options.dataset))


@_command(ComputeOptions, TrainOptions, dataset="digits")
def demo(given: argparse.Namespace) -> str:
    """Both stages on scikit-learn's digits, in about a minute."""
    from pipeline.features import extract
    from pipeline.network.weights import WeightsUnavailable

    asked, training = ComputeOptions.of(given, **COMMANDS["demo"].defaults), _training(given)
    try:
        extracted = extract.extract(asked)
    except WeightsUnavailable as error:
        log.warning("warning: %s", error)
        log.warning("warning: going on with an untrained network, so that there is something to see")
        asked = dataclasses.replace(asked, weights="random")
        extracted = extract.extract(asked)
    sys.stdout.write(f"{extracted.summary}\n")
    return _train(asked, training)


@_command(PredictOptions)
def predict(given: argparse.Namespace) -> str:
    """Classify images of your own with a fitted model."""
    from pipeline.commands import predict

    return predict.predict(PredictOptions.of(given))


@_command(ExportOptions)
def export(given: argparse.Namespace) -> str:
    """Write a model in the format for sharing (skops)."""
    from pipeline.models import persistence

    return persistence.export(ExportOptions.of(given).model)


@_command(InspectOptions, FeatureOptions)
def inspect(given: argparse.Namespace) -> str:
    """What a feature file holds, and whether it verifies."""
    from pipeline.commands import inspect

    options = InspectOptions.of(given)
    return inspect.inspect(options.file, FeatureOptions.of(given), must_verify=options.verify)


def _training(given: argparse.Namespace) -> TrainOptions:
    own = {item.name: item.given(given) for item in classifiers.flags()}
    return TrainOptions.of(given, options={name: value for name, value in own.items() if value is not None})


def _train(asked: FeatureOptions, training: TrainOptions) -> str:
    from pipeline.commands import train
    from pipeline.output import report

    return _with_page(asked, training, report.summary(train.train(asked, training)))


def _with_page(asked: FeatureOptions, training: TrainOptions, text: str) -> str:
    """Bring leaderboard and page up to date; a run's results, and where all of them are."""
    from pipeline.output import leaderboard

    if not leaderboard.is_current(training.output_dir):
        from pipeline.output import page  # late: a run that is found needs none of what makes the page

        page.rebuild(training.output_dir, asked.data_dir)
    return f"{text}all runs:\n  {training.output_dir / leaderboard.PAGE_NAME}\n"


# --- the front door ---------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one paragraph instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:].rstrip('.')}. '{self.prog} --help' lists what there is.")


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = _Parser(
        prog=PROGRAM,
        description="VGG16 features once, classifiers as often as you like.",
        epilog=f"'{PROGRAM} COMMAND --help' lists a command's flags.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, command in COMMANDS.items():
        text = command.run.__doc__
        own = commands.add_parser(name, help=text, description=text)
        for title, options in command.groups().items():
            add_flags(own, title, options, **command.defaults)
    return parser


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 the user can mend it, 130 interrupted."""
    from pipeline.common.progress import ConsoleHandler

    if not log.handlers:
        log.addHandler(ConsoleHandler(sys.stderr))
        log.setLevel(logging.INFO)
        log.propagate = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that are not text, or not in its encoding
    device.prefer_avx512()
    signal.signal(signal.SIGTERM, _interrupt)  # like SIGINT: stop cleanly, and say how to go on
    try:
        check_variables(item for command in COMMANDS.values() for group in command.groups().values() for item in group)
        arguments = build_parser().parse_args(argv)
        sys.stdout.write(COMMANDS[arguments.command].run(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return EXIT_PIPE
    except UserError as error:
        log.error("error: %s", error)
        return EXIT_USER
    except Interrupted as stop:
        log.error("%s", stop)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        log.error("Interrupted. Nothing was left half-written; run the same command again.")
        return EXIT_INTERRUPTED
    return 0
