"""Placement by measurement: where a function runs, decided by what its calls have cost.

The hot half is in C (``task.c``): whether a call runs at once in the caller's thread. Here is
what follows when it does not: the choice between a thread and a process, the pools, what
was measured there, files of figures, and `explain`.

A measured call gives three times: wall, CPU, and the time in which it could have run and had
no processor. What is left of the wall time it has waited: for the network, a lock, or the
interpreter's lock (GIL). A function that mostly waits belongs into a thread, one that
computes into a process. The step from one to the other needs two measurements that say so,
and twice as many after each change of mind, so figures near the border do not flap.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import pickle
import sys
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, overload

from . import _core
from ._core import Call as Call
from ._core import OverBudget as OverBudget
from ._core import Task as Task
from ._core import call as call
from ._measure import CANNOT_GO, SAMPLE, Measured, examined, measured, size_of

__all__ = ["call", "place", "task", "use_pool"]

P = ParamSpec("P")
R = TypeVar("R")
AnyTask: TypeAlias = "Task[..., Any]"

BUDGET = 0.001
"""Seconds that a call may hold up its thread, where nothing else was said."""

_COMPUTES = 0.3  # a share of CPU in the time that a call could run: above, it computes
_WAITS = 0.15  # below, it waits; between the two it stays where it is
_TURNS_MAX = 64


# ---- what is known -------------------------------------------------------------------


@dataclass
class Strand:
    """Figures of one shape on one strand: moving means, nanoseconds."""

    calls: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    queued: float = 0.0

    def add(self, m: Measured) -> None:
        self.calls += 1
        share = 1.0 if self.calls == 1 else 0.25
        self.wall += (m.wall - self.wall) * share
        self.cpu += (m.cpu - self.cpu) * share
        self.queued += (m.queued - self.queued) * share

    @property
    def waited(self) -> float:
        return max(0.0, self.wall - self.cpu - self.queued)


@dataclass
class Away:
    """Where calls of one shape go when they do not run inline."""

    strand: str
    turns: int = 0  # changes of mind
    votes: int = 0  # measurements in a row that speak for the other strand
    refused: str = ""  # why calls of this shape cannot be sent to a process
    strands: dict[str, Strand] = field(
        default_factory=lambda: {"thread": Strand(), "process": Strand()}
    )

    def vote(self, m: Measured, budget: float) -> None:
        """Count one measurement; move when enough of them agree."""
        runnable = max(1, m.wall - m.queued)
        share = m.cpu / runnable
        if self.strand == "thread":
            other = share >= _COMPUTES and m.cpu >= budget * 1e9 and not self.refused
        else:
            other = share < _WAITS
        self.votes = self.votes + 1 if other else 0
        if self.votes >= min(2 << self.turns, _TURNS_MAX):
            self.strand = "process" if self.strand == "thread" else "thread"
            self.turns += 1
            self.votes = 0


class State:
    """What Python knows of a task; C keeps the rest."""

    def __init__(self, task: AnyTask, fn: Callable[..., Any], pool: Executor | None) -> None:
        self.task = weakref.ref(task)
        self.name = _name(fn)
        self.pool = pool
        self.away: dict[int, Away] = {}
        self.strands: dict[str, str] = {}  # by label, as a file told
        self.refused: str | None = None  # why the function cannot be sent; "" it can
        self.sent = -1  # bytes of the arguments when they were last looked at
        self.received = -1
        self.submitted = 0

    def sendable(self, fn: Callable[..., Any]) -> bool:
        """Find out, once, whether a worker can be given the function."""
        if self.refused is None:
            try:
                pickle.dumps(self.target(fn), 5)
                self.refused = ""
            except Exception as error:
                from ._sending import find_cloudpickle

                self.refused = "" if find_cloudpickle() is not None else _say(error)
        return not self.refused

    def target(self, fn: Callable[..., Any]) -> Any:
        """What is sent: under the function's name may be what the decorator made of it."""
        task = self.task()
        owner: Any = sys.modules.get(getattr(fn, "__module__", None) or "")
        for part in getattr(fn, "__qualname__", "<none>").split("."):
            owner = getattr(owner, part, None)
        return task if task is not None and owner is task else fn

    def away_of(self, task: AnyTask, fn: Callable[..., Any], index: int) -> Away:
        known = self.away.get(index)
        if known is None:
            # Pure functions that are away have proved to compute; of others nothing is known,
            # and any function can run in a thread.
            strand = "process" if task.pure and self.sendable(fn) else "thread"
            if self.strands:
                strand = self.strands.get(task._records()[index][0], strand)
            known = self.away[index] = Away(strand)
        return known

    def choose(self, task: AnyTask, fn: Callable[..., Any], index: int) -> str:
        known = self.away_of(task, fn, index)
        if known.strand == "process" and (known.refused or not self.sendable(fn)):
            return "thread"
        return known.strand

    def in_thread(
        self, task: AnyTask, fn: Callable[..., Any], index: int
    ) -> Callable[..., Measured]:
        """How a call in a thread is measured."""
        known = self.away_of(task, fn, index)
        movable = known.strand == "thread" and not known.refused and self.refused in (None, "")
        return examined if movable else measured

    def note(self, fn: Callable[..., Any], index: int, strand: str, m: Measured) -> None:
        task = self.task()
        if task is None:
            return
        known = self.away_of(task, fn, index)
        known.strands[strand].add(m)
        if m.size == CANNOT_GO and strand == "thread":
            known.refused = known.refused or f"its result cannot be pickled: {type(m.value)!r}"
        known.vote(m, task.budget)
        if m.size >= 0:
            self.received = m.size
        task._note_away(index, m.cpu, max(m.cpu, m.wall - m.queued))


def _name(fn: Callable[..., Any]) -> str:
    module = getattr(fn, "__module__", None) or "?"
    return f"{module}.{getattr(fn, '__qualname__', None) or repr(fn)}"


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def state_of(task: AnyTask) -> State:
    state: State = task.__dict__["_plait"]
    return state


# ---- the strands ---------------------------------------------------------------------

_given: Executor | None = None
"""The process pool that use_pool was given."""


def _pool(strand: str, state: State) -> Executor:
    """The pool of a strand; the first call that needs one starts it."""
    from . import _strands

    if strand == "thread":
        return _strands.threads()
    given = state.pool if state.pool is not None else _given
    return given if given is not None else _strands.processes()


def use_pool(pool: Executor | None) -> None:
    """Give the process pool that calls go to from now on, where a task has none of its own.

    Args:
        pool: A process pool, which its owner shuts down; None for one of plait's own, made on
            first use.

    Raises:
        TypeError: `pool` is no executor.
    """
    if pool is not None and not isinstance(pool, Executor):
        raise TypeError(f"pool must be an Executor or None, not {pool!r}")
    global _given
    _given = pool


def _after_fork_in_child() -> None:
    global _given
    _given = None


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Elsewhere:
    """A call that runs on another strand; what a `Call` asks and awaits."""

    __slots__ = ("_args", "_fn", "_index", "_kwargs", "_noted", "_state", "future", "where")

    def __init__(
        self,
        state: State,
        fn: Callable[..., Any],
        index: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._state = state
        self._fn = fn
        self._index = index
        self._args = args
        self._kwargs = kwargs
        self._noted = False
        self.where = ""
        self.future: Any = None

    def start(self, task: AnyTask, strand: str) -> None:
        """Hand it to a pool; to a thread when it turns out that it cannot be sent."""
        state = self._state
        if strand == "process":
            if state.submitted % SAMPLE == 0:
                state.sent = size_of((self._args, self._kwargs))
            state.submitted += 1
            pool = _pool("process", state)
            try:
                far = functools.partial(measured, state.target(self._fn))
                self.future = pool.submit(far, *self._args, **self._kwargs)
                self.where = "process"
                return
            except Exception as error:
                if not is_pickling(error):
                    raise
                state.away_of(task, self._fn, self._index).refused = _say(error)
        far = functools.partial(state.in_thread(task, self._fn, self._index), self._fn)
        self.future = _pool("thread", state).submit(far, *self._args, **self._kwargs)
        self.where = "thread"

    def _settle(self, m: Measured) -> Any:
        if not self._noted:
            self._noted = True
            self._state.note(self._fn, self._index, self.where, m)
        return m.value

    def _again(self, error: Exception) -> bool:
        """Whether it runs again in a thread, since what it returned could not be sent."""
        task = self._state.task()
        if self.where != "process" or task is None or not is_pickling(error):
            return False
        self._state.away_of(task, self._fn, self._index).refused = _say(error)
        if not task.pure:
            return False
        self.start(task, "thread")
        return True

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        while True:
            future = self.future
            if not hasattr(future, "__await__"):  # of a pool that is not plait's
                future = asyncio.wrap_future(future)
            try:
                m = yield from future.__await__()
            except (asyncio.CancelledError, GeneratorExit):
                self.future.cancel()
                raise
            except Exception as error:
                if self._again(error):
                    continue
                raise
            return self._settle(m)

    def result(self, timeout: float | None = None) -> Any:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            try:
                m = self.future.result(left)
            except TimeoutError:
                raise
            except Exception as error:
                if self._again(error):
                    continue
                raise
            return self._settle(m)

    def done(self) -> bool:
        return bool(self.future.done())

    def cancel(self) -> bool:
        return bool(self.future.cancel())

    def __repr__(self) -> str:
        return f"{self.where}, {'done' if self.done() else 'running'}"


def is_pickling(error: BaseException) -> bool:
    """Whether it tells that something cannot be sent; pickle has no one type for that."""
    if isinstance(error, pickle.PicklingError):
        return True
    return isinstance(error, TypeError | AttributeError) and any(
        words in str(error) for words in ("pickle", "Can't get local object", "Can't get attribute")
    )


def _elsewhere(
    task: AnyTask,
    fn: Callable[..., Any],
    index: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wait: bool,
) -> Any:
    """Run a call that does not belong into the caller's thread; called by C."""
    state = state_of(task)
    strand = state.choose(task, fn, index)
    if wait and strand == "thread":
        # The caller waits in any case, so its own thread will do.
        m = state.in_thread(task, fn, index)(fn, *args, **kwargs)
        state.note(fn, index, "thread", m)
        return m.value
    call = _Elsewhere(state, fn, index, args, kwargs)
    call.start(task, strand)
    return call.result() if wait else call


# ---- making tasks --------------------------------------------------------------------

registry: weakref.WeakValueDictionary[str, AnyTask] = weakref.WeakValueDictionary()
seeds: dict[str, dict[str, Any]] = {}
_known: dict[Any, AnyTask] = {}  # of functions that are no tasks, the one used last at the end
_KNOWN_MAX = 1024


def _make(fn: Callable[..., Any], pure: bool, budget: float, pool: Executor | None) -> AnyTask:
    task = Task(fn, _elsewhere, budget, pure)
    functools.update_wrapper(task, fn)
    state = State(task, fn, pool)
    task.__dict__["_plait"] = state
    registry[state.name] = task
    if state.name in seeds:
        sow(task, seeds[state.name])
    return task


@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *, pure: bool = False, budget: float = BUDGET, pool: Executor | None = None
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    pure: bool = False,
    budget: float = BUDGET,
    pool: Executor | None = None,
) -> Any:
    """Make a function choose its strand by what its calls have cost.

    Calling a task gives a `Call`: ``await`` it. A call that is known to be short has run when
    it returns, and awaiting it costs no turn of the loop. Others run in a thread when they
    mostly wait, and in a worker process when they compute. `Task.sync` waits instead.
    Within a task, on every strand, calling a task is a plain call that returns the value.

    A task may end up in another process, so it must say what it found by its result alone.

    Args:
        fn: An ordinary function.
        pure: Whether it may be stopped anywhere and started again. Then even calls that
            nothing is known about start at once, and are stopped when the budget is used up
            and started again in a worker. The interrupt is the exception `OverBudget`, which
            passes through the function and its with-blocks; whatever the function does with
            it, that run's result is dropped. Otherwise unknown calls begin in a thread.
        budget: Seconds that a call may hold up the thread that made it. Beyond the main
            thread, and everywhere before Python 3.13, an interrupt may come
            `sys.getswitchinterval` later.
        pool: The process pool to use; one of plait's own by default, made on first use.

    Raises:
        TypeError: `fn` is no ordinary function.
        ValueError: `budget` is not above 0 and at most 3600 seconds.

    Example:
        >>> @plait.task(pure=True, budget=0.001)
        ... def checksum(data: bytes) -> int:
        ...     return zlib.crc32(data)
        >>> await checksum(b"short")

    Thread-safety: tasks may be called from any thread.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(f"budget must be a number of seconds, not {budget!r}")
    if pool is not None and not isinstance(pool, Executor):
        raise TypeError(f"pool must be an Executor or None, not {pool!r}")

    def decorate(fn: Callable[..., Any]) -> AnyTask:
        if isinstance(fn, Task):
            raise TypeError(f"{fn!r} is a task already")
        if not callable(fn):
            raise TypeError(f"a task is made of a function, not of {fn!r}")
        if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(f"{fn!r} is asynchronous: it runs on the loop, and needs no task")
        if inspect.isgeneratorfunction(fn):
            raise TypeError(f"{fn!r} is a generator function: calling it computes nothing")
        return _make(fn, pure, budget, pool)

    return decorate if fn is None else decorate(fn)


def figures_of(fn: Callable[..., Any]) -> AnyTask:
    """The task that keeps the figures of any callable: its own, or one made for it.

    All functions made by the same code share one, so that a lambda made anew for every call
    is known, too.
    """
    if isinstance(fn, Task):
        return fn
    inner: Any = fn
    while isinstance(inner, functools.partial) or inspect.ismethod(inner):
        inner = inner.func if isinstance(inner, functools.partial) else inner.__func__
    if isinstance(inner, Task):
        return inner
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {fn!r}")
    key = getattr(inner, "__code__", inner)
    try:
        known = _known.get(key)
    except TypeError:  # it cannot be hashed: nothing can be learnt
        return _make(inner, False, BUDGET, None)
    if known is None:
        known = _make(inner, False, BUDGET, None)
        while len(_known) >= _KNOWN_MAX:
            with contextlib.suppress(KeyError, StopIteration):  # another thread may help
                del _known[next(iter(_known))]
            _core._call_forget()
        _known[key] = known
    return known


def _task_for(fn: Callable[..., Any]) -> AnyTask:
    """What `call` asks of a callable that it has not met, or met long ago."""
    if isinstance(fn, Task):
        return fn
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{fn!r} is asynchronous: await it")
    return figures_of(fn)


_core._call_by(_task_for)


def place(
    fn: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Say where a call would run now, without running it.

    Args:
        fn: A task, or any function.
        args: Its arguments.
        kwargs: Its named arguments.

    Returns:
        str: "loop" (a coroutine function), "inline", "thread" or "process".
    """
    if inspect.iscoroutinefunction(fn):
        return "loop"
    task = figures_of(fn)
    index, away = task._record(tuple(args), dict(kwargs or {}))
    if not away:
        return "inline"
    return state_of(task).choose(task, fn.fn if isinstance(fn, Task) else fn, index)


class Record(NamedTuple):
    """A record of C, as it gives it."""

    label: str
    where: int
    need: int
    calls: int
    strikes: int
    away: int
    total: int
    longest: int
    recent: int
    away_cpu: int
    away_wall: int


def sow(task: AnyTask, known: dict[str, Any]) -> None:
    if known["budget"] != task.budget:
        return
    shapes: dict[str, dict[str, Any]] = known["shapes"]
    state = state_of(task)
    state.strands = {label: s["strand"] for label, s in shapes.items() if "strand" in s}
    task._seed(
        {label: tuple(s[name] for name in Record._fields[1:]) for label, s in shapes.items()}
    )


def observe(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    strand: str,
    measured: Measured,
) -> None:
    """Count a call that somebody else has run and measured, where `place` had said.

    Args:
        fn: The function, as `place` was given it.
        args: Its arguments.
        kwargs: Its named arguments.
        strand: "inline", "thread" or "process".
        measured: Its cost, as `_measure.measured` gives it.

    Raises:
        ValueError: `strand` is none of these.
    """
    if strand not in ("inline", "thread", "process"):
        raise ValueError(f"strand must be inline, thread or process, not {strand!r}")
    task = figures_of(fn)
    index, _ = task._record(tuple(args), dict(kwargs))
    if strand == "inline":
        task._note_here(index, max(measured.cpu, measured.wall - measured.queued))
    else:
        own = fn.fn if isinstance(fn, Task) else fn
        state_of(task).note(own, index, strand, measured)
