"""Fitting by passes over the rows, stopped early on validation, many fits side by side."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.neural_network._stochastic_optimizers import BaseOptimizer  # of MLPClassifier
from threadpoolctl import threadpool_limits

from pipeline.features.rows import cores
from pipeline.models import classifiers, history, jobs
from pipeline.models.history import History, Step
from pipeline.models.jobs import Fitted, Job, Watch

IMPROVEMENT = 1e-3  # of the validation loss that patience is renewed for: averaged models creep on for ever
BRIEF_IMPROVEMENT = 1e-2  # the same where the end is wanted roughly
BATCHES_ROWS = 2048  # rows that are standardised together for a classifier that learns in small batches
# Epochs after which half of the rivals go on, then again after twice as many: successive halving, Jamieson & Talwalkar
# 2016, https://arxiv.org/abs/1502.07943.
FIRST_RUNG = 4
# Epochs in which the step size of Adam falls to zero along a cosine (Loshchilov & Hutter 2017,
# https://arxiv.org/abs/1608.03983), and updates that these have at least; half as many where the end is wanted roughly.
# A constant step took more epochs to a validation accuracy 1 point lower (CIFAR-10 at 32 px, 512 columns).
ANNEALED_EPOCHS, ANNEALED_UPDATES = 12, 500


class _Adam(BaseOptimizer):  # type: ignore[misc]
    """Adam with the constants of scikit-learn's, in place and piece by piece, so that all stays in the cache.

    An update of nine million weights takes 0.4 of the time that theirs takes in the same pieces. Source: Kingma &
    Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1.
    """

    SIZE = 1 << 16  # weights
    DECAY, DECAY_OF_SQUARES, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self) -> None:
        super().__init__()
        self._updates, self._moments = 0, list[NDArray[Any]]()

    def update_params(self, params: Sequence[NDArray[Any]], gradients: Sequence[NDArray[Any]]) -> None:
        """Update weights, in place, as scikit-learn asks its own optimizers to."""
        self._moments = self._moments or [np.zeros((2, each.size), each.dtype) for each in params]
        self._updates += 1
        unbiased = math.sqrt(1 - self.DECAY_OF_SQUARES**self._updates) / (1 - self.DECAY**self._updates)
        for weights, gradient, moments in zip(params, gradients, self._moments, strict=True):
            flat, slope = weights.reshape(-1), gradient.reshape(-1)
            for start in range(0, flat.size, self.SIZE):
                piece = slice(start, start + self.SIZE)
                self._update(flat[piece], slope[piece], moments[:, piece], self.learning_rate_init * unbiased)

    def _update(self, weights: NDArray[Any], slope: NDArray[Any], moments: NDArray[Any], rate: float) -> None:
        mean, square = moments
        step = slope * (1 - self.DECAY)
        mean *= self.DECAY
        mean += step
        np.square(slope, out=step)
        step *= 1 - self.DECAY_OF_SQUARES
        square *= self.DECAY_OF_SQUARES
        square += step
        np.sqrt(square, out=step)
        step += self.EPSILON
        np.divide(mean, step, out=step)
        step *= rate
        weights -= step


class _Learner:
    """A fit on its way: scored after its epochs, ended when validation no longer improves, and whose best is kept.

    MLPClassifier's own early stopping splits off rows of its own and keeps no validation loss.
    """

    def __init__(
        self,
        name: str,
        job: Job,
        stop: threading.Event,
        *,
        brief: bool = False,
        watch: Callable[[Step], object] = lambda step: None,
    ) -> None:
        self._name, self._classifier, self._job, self._stop = name, classifiers.get(name), job, stop
        self._brief, self._watch = brief, watch
        self._train = job.rows.train
        self._weights = jobs.row_weights(job.params, self._train.labels)
        self._generator = np.random.RandomState(job.seed)
        self.estimator = self._classifier.make(job.params, job.seed, self._train.features.shape)
        self._epochs, self._annealed, self._adam = 0, np.inf, _Adam()
        if self._classifier.annealed:
            updates = len(self._train.labels) / self.estimator.batch_size
            self._annealed = max(ANNEALED_EPOCHS, math.ceil(ANNEALED_UPDATES / updates)) // (2 if brief else 1)
        self._most = min(job.params["max_epochs"], self._annealed)
        # On few rows, to score validation after each epoch would take longer than to learn.
        self._between = -(-len(job.rows.held_out) // len(job.rows.fit)) if brief else 1
        self._sample = job.rows.data.taken(job.rows.fit[: self._classifier.max_scored_rows])
        self._better, self.lowest = 0, np.inf  # the last epoch that counts as an improvement, and its loss
        self.least = np.inf
        self.best: Any = None
        self.history = History("epoch")
        self.ended = self.behind = False
        self.reason: str | None = None

    def epoch(self) -> None:
        """Learn from every row once, in random order."""
        features, labels, params = self._train.features, self._train.labels, self._job.params
        if self._classifier.annealed:
            share = 0.5 * (1 + math.cos(math.pi * self._epochs / self._most))
            self._adam.learning_rate_init = share * params["learning_rate_init"]
            self.estimator._optimizer = self._adam
        self._epochs += 1
        pieces = features.shuffled(self._generator, BATCHES_ROWS)
        # Two blocks in turn, one of them learnt from while the other is filled: to come by new memory for each piece
        # would take as long as to fill it.
        blocks = itertools.cycle(np.empty((len(pieces[0]), features.shape[1]), np.float32) for _ in range(2))
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(features.read, pieces[0], self._job.rows.scale, next(blocks))
            for rows, following in itertools.zip_longest(pieces, pieces[1:]):
                if self._stop.is_set():
                    return
                block = coming.result()
                if following is not None:
                    coming = ahead.submit(features.read, following, self._job.rows.scale, next(blocks))
                weighed = {} if params.get("class_weight") is None else {"sample_weight": self._weights[rows]}
                self.estimator.partial_fit(block, labels[rows], classes=np.arange(labels.max() + 1), **weighed)

    def learn(self) -> None:
        """Go on by an epoch, or by the few after which validation is scored."""
        with jobs.overflow_as_user_error(self._name, self._job.params):
            try:
                for _ in range(min(self._between, self._most - self._epochs)):
                    self.epoch()
            except ValueError as error:
                if self.best is None or not jobs.is_overflow(error):
                    raise
                self.ended, self.reason = True, f"it diverged in epoch {self._epochs}"
            else:
                self._score()

    def goes_on(self, until: int) -> bool:
        """Whether there is another epoch to learn, up to that one."""
        return len(self.history.steps) < until and not self.ended and not self._stop.is_set()

    def _score(self) -> None:
        """Score what was learnt, and see whether it is the best, or the end."""
        params, steps, rows = self._job.params, self.history.steps, self._job.rows
        model = self.estimator if self._classifier.probabilities else jobs.with_temperature(self.estimator, rows)
        # A brief fit leaves its training scores to the end.
        train = (np.nan, np.nan) if self._brief else history.scores(model, self._sample, rows.scale)
        validation = rows.validation
        probabilities = history.predict(model, validation.features, rows.scale)
        steps.append(Step(self._epochs, *train, *history.scores_of(probabilities, validation.labels)))
        # Where classes are weighed, learning the rare ones makes the plain loss rise from the beginning.
        now = jobs.criterion_of(params, history.row_losses(probabilities, validation.labels), validation.labels)
        if self.best is None or now < self.least:
            self.history.kept, self.best, self.least = self._epochs, _as_it_is(model), now
        if now < self.lowest * (1 - (BRIEF_IMPROVEMENT if self._brief else IMPROVEMENT)):
            self._better, self.lowest = len(steps), now
        elif len(steps) - self._better >= (1 if self._brief else params["patience"]):
            self.ended = True
        if not self.ended and self._epochs == self._most:
            self.ended = True
            if self._most < self._annealed:
                self.reason = f"the validation loss was still falling at max_epochs={params['max_epochs']}"
        self._watch(steps[-1])

    def give_up(self) -> None:
        """End, others being ahead."""
        if not self.ended:
            self.ended, self.behind, self.reason = True, True, jobs.GIVEN_UP.format(self.history.steps[-1].step)

    def fitted(self) -> Fitted:
        """What came of it."""
        kept = next(each for each in self.history.steps if each.step == self.history.kept)
        train = (kept.train_loss, kept.train_accuracy)
        return Fitted(
            {**self._job.params, "epochs": int(kept.step)},
            self.history,
            train if self.behind else history.scores(self.best, self._train, self._job.rows.scale),
            (kept.validation_loss, kept.validation_accuracy),
            self.reason,
            self.best,
            self.least,
        )


def _as_it_is(estimator: Any) -> Any:
    """A copy, without what only the next update needs."""
    found = copy(estimator)
    vars(found).pop("_optimizer", None)
    return deepcopy(found)


def fit(name: str, todo: Sequence[Job], rivals: bool, brief: bool, watch: Watch) -> list[Fitted]:
    """A thread for each core, each with one job at a time: small products gain little by more."""
    with _workers(len(todo)) as (pool, stop):
        learners = [
            _Learner(name, job, stop, brief=brief, watch=partial(watch, number)) for number, job in enumerate(todo)
        ]
        contest, until = list(learners), FIRST_RUNG
        while going := [each for each in contest if not each.ended]:
            last = not rivals or len(contest) == 1
            with threadpool_limits(max(1, cores() // len(going)), user_api="blas"):
                _take_turns(pool, going, 1 << 30 if last else until)
            best = sorted(contest, key=lambda each: each.least)
            contest = best if last else best[: -(-len(best) // 2)]
            for each in best[len(contest) :]:
                each.give_up()
            until *= 2
    return [each.fitted() for each in learners]


def learn(name: str, job: Job, tick: Callable[[], object]) -> Any:
    """An estimator after as many epochs as the parameters say; ``tick`` is called after each."""
    with _workers(1) as (pool, stop), jobs.overflow_as_user_error(name, job.params):
        learner = _Learner(name, job, stop)
        for _ in range(job.params["epochs"]):
            pool.submit(learner.epoch).result()
            tick()
    estimator = _as_it_is(learner.estimator)
    if "random_state" in estimator.get_params():
        # As for whoever fits it again: a generator's state is nobody's parameter, and their rows may not come shuffled.
        estimator.set_params(random_state=job.seed, shuffle=True)
    return estimator


def _take_turns(pool: ThreadPoolExecutor, learners: Sequence[_Learner], until: int) -> None:
    """Let learners go on epoch by epoch, so that no core is idle where they are more than there are cores."""
    running = {pool.submit(each.learn): each for each in learners}
    while running:
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            each = running.pop(done)
            done.result()
            if each.goes_on(until):
                running[pool.submit(each.learn)] = each


@contextmanager
def _workers(most: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads that share the cores, and what stops them; scikit-learn is set up in them as it is here.

    In a thread of its own MLPClassifier never takes an interrupt for the end of its training, as it would.
    """
    stop = threading.Event()
    here = sklearn.get_config()
    with ThreadPoolExecutor(min(cores(), most), initializer=lambda: sklearn.set_config(**here)) as pool:
        try:
            yield pool, stop
        finally:
            stop.set()
