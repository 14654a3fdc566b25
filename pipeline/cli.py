"""The command line: commands, flags, exit codes.

Everything heavy is imported after the arguments have been understood, so help and mistakes cost nothing.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.common.errors import Interrupted, UserError
from pipeline.models import classifiers
from pipeline.network import device

log = logging.getLogger("pipeline")

EXIT_USER, EXIT_INTERRUPTED = 2, 130
EXIT_PIPE = 141  # 128 + SIGPIPE, as a shell has it
PROGRAM = "python -m pipeline"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one paragraph instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:].rstrip('.')}. '{self.prog} --help' lists what there is.")


def _number(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"it must be {what}. Got {text!r}") from None

    return parse


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"it must be whole numbers separated by commas. Got {text!r}") from None


def _add_feature_flags(parser: argparse.ArgumentParser, *, many_taps: bool = False) -> None:
    group = parser.add_argument_group("features")
    group.add_argument("--dataset", default="cifar10", metavar="NAME", help="cifar10, digits or a folder of images")
    group.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="data sets and weights")
    group.add_argument("--features-dir", type=Path, default=Path("features"), metavar="DIR", help="feature caches")
    group.add_argument(
        "--image-size", type=_number(int), default=64, metavar="PX", help="height and width the network sees"
    )
    group.add_argument("--fit", default="squash", metavar="NAME", help="images not square: squash, crop or pad them")
    group.add_argument(
        "--weights", default="imagenet", metavar="NAME|FILE", help="imagenet, random (untrained) or a Keras file"
    )
    group.add_argument(
        "--precision",
        default="auto",
        metavar="NAME",
        help="auto (bfloat16 where the processor has it), float32, bfloat16",
    )
    if many_taps:
        several = "all, top, or names separated by commas; given more than once, choices to compare"
        group.add_argument("--taps", action="append", metavar="NAMES", help=several)
    else:
        group.add_argument("--taps", default="all", metavar="NAMES", help="all, top, or names separated by commas")
    group.add_argument("--limit", type=_number(int), metavar="N", help="only the first N rows of each split")
    group.add_argument("--strict", action="store_true", help="make images that cannot be used an error")
    group.add_argument("--follow-links", action="store_true", help="follow symbolic links out of a folder of images")
    group.add_argument(
        "--batch-size", type=_number(int), metavar="N", help="images that go through the network together"
    )
    group.add_argument("--threads", type=_number(int), metavar="N", help="threads that compute the features")


def _build_parser() -> argparse.ArgumentParser:
    show_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = _Parser(
        prog=PROGRAM,
        description="VGG16 features once, classifiers as often as you like.",
        epilog=f"'{PROGRAM} COMMAND --help' lists a command's flags.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    features = commands.add_parser(
        "features", help="stage one: push all images through VGG16 once", formatter_class=show_defaults
    )
    _add_feature_flags(features)
    features.set_defaults(run=_run_features)

    train = commands.add_parser(
        "train", help="stage two: train a classifier on the cached features", formatter_class=show_defaults
    )
    _add_feature_flags(train)
    _add_training_flags(train)
    train.set_defaults(run=_run_train)

    sweep = commands.add_parser(
        "sweep",
        help="stage two, many times: choose among many candidates, then train the best",
        formatter_class=show_defaults,
    )
    _add_feature_flags(sweep, many_taps=True)
    _add_training_flags(sweep)
    _add_sweep_flags(sweep)
    sweep.set_defaults(run=_run_sweep)

    report = commands.add_parser(
        "report", help="rebuild leaderboard and page from the runs that are there", formatter_class=show_defaults
    )
    report.add_argument("--dataset", metavar="NAME", help="only the runs of this data set (default: all)")
    report.add_argument(
        "--data-dir", type=Path, default=Path("data"), metavar="DIR", help="data sets, for their images"
    )
    report.add_argument("--output-dir", type=Path, default=Path("output"), metavar="DIR", help="where the runs are")
    report.set_defaults(run=_run_report)

    demo = commands.add_parser(
        "demo", help="both stages on scikit-learn's digits, in about a minute", formatter_class=show_defaults
    )
    _add_feature_flags(demo)
    _add_training_flags(demo)
    demo.set_defaults(run=_run_demo, dataset="digits")

    predict = commands.add_parser(
        "predict", help="classify images of your own with a fitted model", formatter_class=show_defaults
    )
    _add_predict_flags(predict)
    predict.set_defaults(run=_run_predict)

    export = commands.add_parser(
        "export", help="write a model in the format for sharing (skops)", formatter_class=show_defaults
    )
    export.add_argument("--model", type=Path, required=True, metavar="FILE.joblib", help="a model that train wrote")
    export.set_defaults(run=_run_export)

    inspect = commands.add_parser(
        "inspect", help="what a feature file holds, and whether it verifies", formatter_class=show_defaults
    )
    inspect.add_argument("file", type=Path, metavar="FILE.h5")
    inspect.add_argument("--verify", action="store_true", help="exit with status 2 on any fault")
    _add_feature_flags(inspect)
    inspect.set_defaults(run=_run_inspect)
    return parser


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--classifier", default="logistic", metavar="NAME", help=", ".join(classifiers.REGISTRY))
    group.add_argument("--models-dir", type=Path, default=Path("models"), metavar="DIR", help="fitted classifiers")
    group.add_argument("--output-dir", type=Path, default=Path("output"), metavar="DIR", help="reports and figures")
    group.add_argument("--seed", type=_number(int), default=0, metavar="N", help="of the split and the shuffling")
    group.add_argument("--force", action="store_true", help="compute a run again that is there")
    own = parser.add_argument_group("options of the classifiers")
    for name, owners in classifiers.all_options().items():
        _, option = owners[0]
        texts = []
        for classifier, its in owners:
            default = ",".join(map(str, its.default)) if isinstance(its.default, tuple) else its.default
            texts.append(f"{classifier}: {its.help}" + (f" (default: {default})" if default is not None else ""))
        alike = len({text.partition(": ")[2] for text in texts}) == 1
        own.add_argument(
            option.flag,
            dest=f"option_{name}",
            type=_numbers if option.kind is tuple else _number(option.kind),
            default=argparse.SUPPRESS,
            metavar="N,N…" if option.kind is tuple else "X" if option.kind is float else "N",
            help=f"{', '.join(classifier for classifier, _ in owners)}: {texts[0].partition(': ')[2]}"
            if alike
            else "; ".join(texts),
        )


def _add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="values of an option, as in C=1e-4..1,log,9 or C=0.001,0.01; may be given for several options",
    )
    group.add_argument("--file", type=Path, metavar="FILE.toml", help="experiments to run; see experiments.toml")
    group.add_argument("--yes", action="store_true", help="fit a very large grid without asking")
    group.add_argument(
        "--no-halving", action="store_true", help="fit every candidate on all rows, however many there are"
    )


def _add_predict_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE|FOLDER", help="what to classify")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="a model that train wrote")
    parser.add_argument("--top-k", type=_number(int), default=5, metavar="K", help="classes shown for each image")
    parser.add_argument("--format", metavar="NAME", help="table, csv or json; else what the output's name implies")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the predictions there")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write a contact sheet of thumbnails there")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where weights are, or go")
    parser.add_argument("--weights", metavar="FILE", help="where the model's own weights are now, if they were a file")
    parser.add_argument("--follow-links", action="store_true", help="follow symbolic links out of a folder")
    parser.add_argument("--strict", action="store_true", help="make images that cannot be used an error")
    parser.add_argument("--batch-size", type=_number(int), metavar="N", help="images that go together")


def _feature_options(arguments: argparse.Namespace) -> Any:
    from pipeline.features.extract import FeatureOptions

    names = ("dataset", "data_dir", "features_dir", "image_size", "weights", "precision", "taps", "limit",
             "fit", "strict", "follow_links")  # fmt: skip
    return FeatureOptions(**{name: getattr(arguments, name) for name in names})


def _train_options(arguments: argparse.Namespace) -> Any:
    from pipeline.selection.options import TrainOptions

    prefix = "option_"
    given = {name.removeprefix(prefix): value for name, value in vars(arguments).items() if name.startswith(prefix)}
    names = ("classifier", "models_dir", "output_dir", "seed", "force")
    return TrainOptions(options=given, **{name: getattr(arguments, name) for name in names})


def _run_features(arguments: argparse.Namespace) -> None:
    from pipeline.features import extract

    extracted = extract.extract(_feature_options(arguments), batch_size=arguments.batch_size, threads=arguments.threads)
    sys.stdout.write(f"{extracted.summary}\n")


def _run_train(arguments: argparse.Namespace) -> None:
    from pipeline.commands import train
    from pipeline.output import report

    place = train.train(_feature_options(arguments), _train_options(arguments))
    _show(arguments, report.summary(place))


def _show(arguments: argparse.Namespace, text: str) -> None:
    """Bring leaderboard and page up to date, and print a run's results with where they are."""
    from pipeline.output import leaderboard

    if not leaderboard.is_current(arguments.output_dir):
        from pipeline.output import page  # late: a run that is found needs none of what makes the page

        page.rebuild(arguments.output_dir, arguments.data_dir)
    sys.stdout.write(f"{text}all runs:\n  {arguments.output_dir / leaderboard.PAGE_NAME}\n")


def _run_sweep(arguments: argparse.Namespace) -> None:
    from pipeline.commands import sweep
    from pipeline.output import report
    from pipeline.selection import grid
    from pipeline.selection.options import SweepOptions

    choices, arguments.taps = tuple(arguments.taps or ()), "all"
    options = SweepOptions(
        training=_train_options(arguments),
        taps=choices,
        grids=tuple(grid.parse_grid(text) for text in arguments.grid),
        file=arguments.file,
        sure=arguments.yes,
        halving=not arguments.no_halving,
    )
    result = sweep.sweep(_feature_options(arguments), options)
    _show(arguments, f"{sweep.summary(result)}\n{report.summary(result.winner)}")


def _run_report(arguments: argparse.Namespace) -> None:
    from pipeline.output import page

    rebuilt = page.rebuild(arguments.output_dir, arguments.data_dir, dataset=arguments.dataset)
    sys.stdout.write(page.closing(rebuilt))


def _run_demo(arguments: argparse.Namespace) -> None:
    from pipeline.commands import demo
    from pipeline.output import report

    options, training = _feature_options(arguments), _train_options(arguments)
    extracted, place = demo.demo(options, training, batch_size=arguments.batch_size, threads=arguments.threads)
    sys.stdout.write(f"{extracted.summary}\n")
    _show(arguments, report.summary(place))


def _run_inspect(arguments: argparse.Namespace) -> None:
    from pipeline.commands import inspect as inspection

    sys.stdout.write(inspection.inspect(arguments.file, _feature_options(arguments), must_verify=arguments.verify))


def _run_predict(arguments: argparse.Namespace) -> None:
    from pipeline.commands import predict

    names = (
        "images", "model", "top_k", "format", "output", "sheet", "data_dir", "weights", "follow_links", "strict",
        "batch_size",
    )  # fmt: skip
    options = predict.PredictOptions(**{name: getattr(arguments, name) for name in names})
    sys.stdout.write(predict.predict(options))


def _run_export(arguments: argparse.Namespace) -> None:
    from pipeline.models import persistence

    sys.stdout.write(persistence.export(arguments.model))


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
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack a letter of a class's name
    device.prefer_avx512()
    signal.signal(signal.SIGTERM, _interrupt)  # like SIGINT: stop cleanly, and say how to go on
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        arguments = _build_parser().parse_args(argv)
        arguments.run(arguments)
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
