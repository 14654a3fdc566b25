"""Work on a Dask cluster: a bounded number of tasks at a time, on workers that have shown who they are.

Dask carries tasks and results, notices who is gone and gives their tasks to others. Seen to here is what it does not
promise: that a worker computes with the same versions as this process, that what travels arrives as it was sent, and
that whatever becomes of scheduler and workers ends in a result or in a message.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import logging
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from distributed import Client, Future, KilledWorker, get_worker, wait

from pipeline.common.errors import UserError
from pipeline.common.progress import format_bytes

log = logging.getLogger("pipeline")

SILENCE = 60.0  # seconds without an answer after which a scheduler is given up, or a result is computed again
AHEAD = 2  # tasks in flight for each worker: one that it computes, and one that is there when that is done
MOST_LOSSES = 10  # workers that may vanish with one and the same task before it is taken for the cause
HELD = 2  # preparations that a worker process keeps: of this run, and of one beside it
SHOWN = 8  # workers whose rates are shown one by one

Task = TypeVar("Task")


class Sealed(NamedTuple):
    """A value on its way: its pickle, and the sha256 of that, in hex."""

    content: bytes
    digest: str


def seal(value: Any) -> Sealed:
    """Pack a value, to be opened by `unseal` on the other side."""
    content = pickle.dumps(value, protocol=5)
    return Sealed(content, hashlib.sha256(content).hexdigest())


def unseal(sealed: Sealed) -> Any:
    """Open what was packed by `seal`; raises UserError when it is not what was packed."""
    found = hashlib.sha256(sealed.content).hexdigest()
    if found != sealed.digest:
        raise UserError(f"what was sent with the sha256 {sealed.digest[:12]}… arrived with {found[:12]}…")
    return pickle.loads(sealed.content)  # noqa: S301 - Dask, which brought it, has pickles all through


class Lacking(UserError):
    """A worker does not have by itself what it is to work with: it can be sent."""


# --- on a worker ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What a worker says: of a task, or of whether it is prepared."""

    worker: str  # its address
    result: Sealed | None = None  # of a task
    refusal: str | None = None  # why it cannot compute
    lacks: bool = False  # whether it could, if it were sent more
    label: str = ""  # machine, processor and threads, of a worker that is prepared
    seconds: float = 0.0  # that a task took


_prepared: dict[str, tuple[Any, str]] = {}  # by the digests of what was sent: what came of it, and a label
atexit.register(_prepared.clear)  # files that it holds open are closed while there is what closes them
_turn = threading.Lock()  # a process computes one task at a time, with all the threads it has


def threads() -> int:
    """Threads that this worker was given."""
    return int(get_worker().state.nthreads)


def _teller(packages: tuple[str, ...]) -> Callable[[], dict[str, str]]:
    """Make a function that tells versions.

    Being local to this one it travels as it is, so that it runs where this package is another or is not installed.
    """

    def tell() -> dict[str, str]:
        import platform
        from importlib import import_module, metadata

        found = {"Python": platform.python_version()}
        for package in packages:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "none"
        try:
            found["vgg16-features"] = import_module("pipeline").__version__
        except (ImportError, AttributeError):
            found["vgg16-features"] = "none"
        return found

    return tell


def _prepare(prepare: Callable[[Any], tuple[Any, str]], digest: str, sealed: Sealed) -> Reply:
    """Make this process ready for the tasks of a digest: at most once, whoever asks and however often."""
    address = get_worker().address
    with _turn:
        try:
            if digest not in _prepared:
                while len(_prepared) >= HELD:
                    del _prepared[next(iter(_prepared))]
                _prepared[digest] = prepare(unseal(sealed))
        except UserError as error:
            return Reply(address, refusal=str(error), lacks=isinstance(error, Lacking))
        return Reply(address, label=_prepared[digest][1])


def _work(work: Callable[..., Any], digest: str, sealed: Sealed) -> Reply:
    """Do a task; neither result nor refusal says that this process was not prepared for it."""
    address = get_worker().address
    with _turn:
        if digest not in _prepared:
            return Reply(address)
        (state, label), began = _prepared[digest], time.monotonic()
        try:
            result = seal(work(state, *unseal(sealed)))
        except UserError as error:
            return Reply(address, refusal=str(error))
        return Reply(address, result, label=label, seconds=time.monotonic() - began)


# --- working ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Flight(Generic[Task]):
    """A task on its way: what it is, what is sent, how many workers were lost with it, and which may do it now."""

    task: Task
    sealed: Sealed
    losses: int = 0
    workers: frozenset[str] = frozenset()


class Workers:
    """The workers of a cluster that may work for this run; whoever joins meanwhile is asked, too.

    Parameters
    ----------
    client, where : Client, str
        The cluster, and what messages call it.
    packages : tuple of str
        Whose versions must be those of this process, besides this package's and Python's.
    prepare, setup : callable, object
        The one is run once by each worker's process, on the other: it gives what tasks work with, and what to call the
        worker. A UserError that it raises refuses the worker.
    whole : callable, optional
        Makes what is sent instead of ``setup`` to one for which that is `Lacking`.
    """

    def __init__(
        self,
        client: Client,
        where: str,
        packages: tuple[str, ...],
        prepare: Callable[[Any], tuple[Any, str]],
        setup: Any,
        whole: Callable[[], Any] | None = None,
    ) -> None:
        self._client, self._where, self._prepare, self._setup = client, where, prepare, seal(setup)
        self._make_whole = whole
        self._whole: Sealed | None = None  # made when the first worker needs it
        self._scheduler = client.scheduler
        self._teller = _teller(packages)
        self._wanted = self._teller()
        self._known: set[str] = set()
        self._ready: set[str] = set()
        self._joining: dict[Future, tuple[str, Callable[[str, Any], None]]] = {}
        self._refused: dict[str, str] = {}
        self._waits = False
        self._done: dict[str, tuple[int, float]] = {}  # of each worker: units and seconds

    def run(
        self, work: Callable[..., Any], tasks: Iterable[tuple[Task, tuple[Any, ...]]], size: Callable[[Task], int],
        unit: str, note: Callable[[str], object],
    ) -> Iterator[tuple[Task, Any, str, float]]:  # fmt: skip
        """Do tasks, each by whoever is free, and give each as it is done: result, label of the worker, seconds it took.

        Parameters
        ----------
        work : callable
            Run on a worker, on what it was prepared with and the arguments of a task. A UserError that it raises
            refuses the worker, and another does the task.
        tasks : iterable of (task, arguments)
            Made as they are sent, so only a few for each worker are ever in memory.
        size, unit, note
            Of how many units a task is, what they are called, and who is told how many each worker does in a second.

        Raises
        ------
        UserError
            When the scheduler is gone, no worker there can do the work, or workers die of one and the same task.
        """
        todo = (_Flight(task, seal(arguments)) for task, arguments in tasks)
        again = deque[_Flight[Task]]()  # what was lost, else the next to do, while there is any
        running: dict[Future, _Flight[Task]] = {}
        try:
            while True:
                again.extend(itertools.islice(todo, not again))
                alive = self._look()
                self._meet(alive)
                for future in [future for future, flight in running.items() if not flight.workers & alive]:
                    again.append(self._lost(running.pop(future)))
                while again and len(running) < AHEAD * len(self._ready):
                    flight = replace(again.popleft(), workers=frozenset(self._ready))
                    running[self._submit(_work, work, self._setup.digest, flight.sealed, to=flight.workers)] = flight
                    again.extend(itertools.islice(todo, not again))
                if not running and not again:
                    return
                for future in self._finished([*running, *self._joining]):
                    if future in self._joining:
                        self._joined(future)
                        continue
                    flight = running.pop(future)
                    try:
                        reply: Reply = future.result(timeout=SILENCE)  # what is a bug there is raised here
                    except (OSError, CancelledError, KilledWorker):
                        again.append(self._lost(flight))
                        continue
                    if (result := self._proven(reply)) is None:
                        again.append(flight)
                    else:
                        self._count(reply, size(flight.task), unit, note)
                        yield flight.task, result[0], reply.label, reply.seconds
        finally:  # what nobody waits for any more Dask drops, or lets end for nothing
            running.clear()
            self._known -= {address for address, _ in self._joining.values()}
            self._joining.clear()

    def _submit(self, *call: Any, to: Collection[str], priority: int = 0) -> Future:
        return self._client.submit(*call, workers=sorted(to), pure=False, priority=priority)

    def _look(self) -> set[str]:
        """Addresses of the workers that the scheduler has now."""
        try:
            found = self._client.sync(self._scheduler.identity, n_workers=-1, callback_timeout=SILENCE)
        except (OSError, RuntimeError, CancelledError) as error:
            raise UserError(
                f"The Dask scheduler at {self._where} does not answer any more ({type(error).__name__}). What is "
                f"finished is kept: run the same command again, with --cluster or without it, to go on from there."
            ) from error
        workers = found["workers"]
        for address in workers.keys() - self._known:
            limit = workers[address].get("memory_limit")
            if limit and limit < 4 << 30:
                log.warning(
                    "warning: Dask kills the worker %s at 95 %% of %s, and TensorFlow alone takes more than 1 GB. "
                    "Start it with --memory-limit 0, which sets no limit",
                    address, format_bytes(limit),
                )  # fmt: skip
        return set(workers)

    def _meet(self, alive: set[str]) -> None:
        """Ask who is new, and forget who is gone."""
        for future, (address, _) in list(self._joining.items()):
            if address not in alive:
                del self._joining[future]
        self._known &= alive
        self._ready &= alive
        for address in sorted(alive - self._known - self._refused.keys()):
            self._known.add(address)
            self._ask(address, self._heard, self._teller)
        if alive and alive <= self._refused.keys():
            by_reason = itertools.groupby(sorted(alive, key=self._refused.__getitem__), self._refused.__getitem__)
            listed = "; ".join(f"{', '.join(sorted(who))}: {why.rstrip('.')}" for why, who in by_reason)
            raise UserError(
                f"No worker of the cluster {self._where} can do the work. {listed}. What is finished is kept: correct "
                f"that and run the same command again."
            )
        if not alive and not self._waits:
            log.info(
                "waiting for workers: the cluster %s has none. On each machine start one, in an environment that has "
                "this package, with 'python -m dask worker %s --memory-limit 0'",
                self._where, self._scheduler.address,
            )  # fmt: skip
        self._waits = not alive

    def _ask(self, address: str, then: Callable[[str, Any], None], *call: Any) -> None:
        self._joining[self._submit(*call, to=[address], priority=10)] = address, then

    def _joined(self, future: Future) -> None:
        address, then = self._joining.pop(future)
        try:
            answer = future.result(timeout=SILENCE)
        except (TimeoutError, CancelledError):
            self._known.discard(address)  # it is asked again, if it is still there
        except Exception as error:  # noqa: BLE001 - whatever goes wrong there, it is that worker that cannot compute
            self._refuse(address, f"{type(error).__name__}: {error}")
        else:
            then(address, answer)

    def _heard(self, address: str, versions: Mapping[str, str]) -> None:
        """A worker has told its versions; Python's must agree in its first two numbers."""
        differ = []
        for name, own in self._wanted.items():
            there, numbers = versions.get(name, "none"), 2 if name == "Python" else None
            if there.split(".")[:numbers] != own.split(".")[:numbers]:
                differ.append(f"{name} is {there} there and {own} here")
        if differ:
            self._refuse(address, f"{'; '.join(differ)}. Install there what is here")
        else:
            self._ask(address, self._admit, _prepare, self._prepare, self._setup.digest, self._setup)

    def _admit(self, address: str, reply: Reply) -> None:
        if reply.lacks and self._make_whole is not None:
            log.info("sending the worker %s what it lacks: %s", address, reply.refusal)
            self._whole = self._whole or seal(self._make_whole())
            self._ask(address, self._admit, _prepare, self._prepare, self._setup.digest, self._whole)
        elif reply.refusal is not None:
            self._refuse(address, reply.refusal)
        else:
            self._ready.add(address)
            log.info("the worker %s joins: %s", address, reply.label)

    def _refuse(self, address: str, why: str) -> None:
        log.warning("warning: the worker %s is refused, and others do its work: %s", address, why)
        self._refused[address] = why
        self._ready.discard(address)

    @staticmethod
    def _finished(futures: list[Future]) -> list[Future]:
        """Wait for the first to end, or for a moment."""
        if not futures:
            time.sleep(0.5)
            return []
        with suppress(TimeoutError, CancelledError):
            wait(futures, timeout=1, return_when="FIRST_COMPLETED")
        return [future for future in futures if future.status != "pending"]

    def _proven(self, reply: Reply) -> tuple[Any] | None:
        """The result of a task, if it can be used."""
        if reply.worker in self._refused:
            return None
        if reply.refusal is not None:
            self._refuse(reply.worker, reply.refusal)
        elif reply.result is None:  # another process has its address now
            self._ready.discard(reply.worker)
            self._known.discard(reply.worker)
        else:
            try:
                return (unseal(reply.result),)
            except UserError as error:
                self._refuse(reply.worker, f"its result is not what it computed: {error}")
        return None

    def _lost(self, flight: _Flight[Task]) -> _Flight[Task]:
        if flight.losses == MOST_LOSSES:
            raise UserError(
                f"Workers of the cluster {self._where} vanished {MOST_LOSSES + 1} times with one and the same task, "
                f"{flight.task}. Look at their logs: most often it is their memory, and a smaller --batch-size needs "
                f"less. What is finished is kept: run the same command again to go on from there."
            )
        return replace(flight, losses=flight.losses + 1)

    def _count(self, reply: Reply, units: int, unit: str, note: Callable[[str], object]) -> None:
        """Show the work done over all workers, and how fast each of them is."""
        done, seconds = self._done.get(reply.worker, (0, 0.0))
        self._done[reply.worker] = done + units, seconds + reply.seconds
        rates = [done / max(spent, 1e-9) for worker, (done, spent) in self._done.items() if worker in self._ready]
        rates.sort(reverse=True)
        listed = " + ".join(f"{rate:.3g}" for rate in rates[:SHOWN])
        more = f" + {len(rates) - SHOWN} more" if len(rates) > SHOWN else ""
        count = len(self._ready)
        note(f"{count} worker{'s' * (count != 1)}: {listed}{more} {unit}/s")
