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
import json
import os
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures import Future as ThreadFuture
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

from . import _core
from ._core import Call as Call
from ._core import OverBudget as OverBudget
from ._core import Task as Task
from ._measure import SAMPLE, Measured, measured, size_of

__all__ = ["Explanation", "ShapeFigures", "call", "explain", "load", "place", "save", "task"]

P = ParamSpec("P")
R = TypeVar("R")

BUDGET = 0.001
"""Seconds that a call may hold up its thread, where nothing else was said."""

_COMPUTES = 0.3  # a share of CPU in the time that a call could run: above, it computes
_WAITS = 0.15  # below, it waits; between the two it stays where it is
_TURNS_MAX = 64
_FILE_VERSION = 1


# ---- what is known -------------------------------------------------------------------


@dataclass
class _Strand:
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
class _Away:
    """Where calls of one shape go when they do not run inline."""

    strand: str
    turns: int = 0  # changes of mind
    votes: int = 0  # measurements in a row that speak for the other strand
    refused: str = ""  # why calls of this shape cannot be sent to a process
    strands: dict[str, _Strand] = field(
        default_factory=lambda: {"thread": _Strand(), "process": _Strand()}
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


class _State:
    """What Python knows of a task; C keeps the rest."""

    def __init__(self, task: Task, fn: Callable[..., Any], pool: Executor | None) -> None:
        self.task = weakref.ref(task)
        self.name = _name(fn)
        self.pool = pool
        self.away: dict[int, _Away] = {}
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
                from ._pool import _cloudpickle

                self.refused = "" if _cloudpickle() is not None else _say(error)
        return not self.refused

    def target(self, fn: Callable[..., Any]) -> Any:
        """What is sent: under the function's name may be what the decorator made of it."""
        task = self.task()
        owner: Any = sys.modules.get(getattr(fn, "__module__", None) or "")
        for part in getattr(fn, "__qualname__", "<none>").split("."):
            owner = getattr(owner, part, None)
        return task if task is not None and owner is task else fn

    def away_of(self, task: Task, fn: Callable[..., Any], index: int) -> _Away:
        known = self.away.get(index)
        if known is None:
            # Pure functions that are away have proved to compute; of others nothing is known,
            # and any function can run in a thread.
            strand = "process" if task.pure and self.sendable(fn) else "thread"
            if self.strands:
                strand = self.strands.get(task._records()[index][0], strand)
            known = self.away[index] = _Away(strand)
        return known

    def choose(self, task: Task, fn: Callable[..., Any], index: int) -> str:
        known = self.away_of(task, fn, index)
        if known.strand == "process" and (known.refused or not self.sendable(fn)):
            return "thread"
        return known.strand

    def note(self, fn: Callable[..., Any], index: int, strand: str, m: Measured) -> None:
        task = self.task()
        if task is None:
            return
        known = self.away_of(task, fn, index)
        known.strands[strand].add(m)
        known.vote(m, task.budget)
        if m.size >= 0:
            self.received = m.size
        task._note_away(index, m.cpu, max(m.cpu, m.wall - m.queued))


def _name(fn: Callable[..., Any]) -> str:
    module = getattr(fn, "__module__", None) or "?"
    return f"{module}.{getattr(fn, '__qualname__', None) or repr(fn)}"


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _state(task: Task) -> _State:
    state: _State = task.__dict__["_plait"]
    return state


# ---- the strands ---------------------------------------------------------------------

_pools: dict[str, Executor] = {}
_pools_lock = threading.Lock()


def _pool(strand: str, state: _State) -> Executor:
    """The pool of a strand; the first call that needs one starts it."""
    if strand == "process" and state.pool is not None:
        return state.pool
    with _pools_lock:
        pool = _pools.get(strand)
        if pool is None:
            if strand == "process":
                from ._pool import ProcessPool

                pool = ProcessPool()
            else:
                workers = min(32, (os.cpu_count() or 1) + 4)
                pool = ThreadPoolExecutor(workers, thread_name_prefix="plait-auto")
            _pools[strand] = pool
    return pool


def _after_fork_in_child() -> None:
    global _pools_lock
    _pools_lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Elsewhere:
    """A call that runs on another strand; what a `Call` asks and awaits."""

    __slots__ = ("_args", "_fn", "_index", "_kwargs", "_noted", "_state", "future", "where")

    def __init__(
        self,
        state: _State,
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

    def start(self, task: Task, strand: str) -> None:
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
                if not _is_pickling(error):
                    raise
                state.away_of(task, self._fn, self._index).refused = _say(error)
        far = functools.partial(measured, self._fn)
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
        if self.where != "process" or task is None or not _is_pickling(error):
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
            if isinstance(future, ThreadFuture) and not hasattr(future, "__await__"):
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


def _is_pickling(error: BaseException) -> bool:
    return isinstance(error, pickle.PicklingError) or (
        isinstance(error, TypeError | AttributeError) and "pickle" in str(error)
    )


def _elsewhere(
    task: Task,
    fn: Callable[..., Any],
    index: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wait: bool,
) -> Any:
    """Run a call that does not belong into the caller's thread; called by C."""
    state = _state(task)
    strand = state.choose(task, fn, index)
    if wait and strand == "thread":
        # The caller waits in any case, so its own thread will do.
        m = measured(fn, *args, **kwargs)
        state.note(fn, index, "thread", m)
        return m.value
    call = _Elsewhere(state, fn, index, args, kwargs)
    call.start(task, strand)
    return call.result() if wait else call


# ---- making tasks --------------------------------------------------------------------

_registry: weakref.WeakValueDictionary[str, Task] = weakref.WeakValueDictionary()
_seeds: dict[str, dict[str, Any]] = {}
_known: dict[Any, Task] = {}  # of functions that are no tasks, the one used last at the end
_KNOWN_MAX = 1024


def _make(fn: Callable[..., Any], pure: bool, budget: float, pool: Executor | None) -> Task:
    task = Task(fn, _elsewhere, budget, pure)
    functools.update_wrapper(task, fn)
    state = _State(task, fn, pool)
    task.__dict__["_plait"] = state
    _registry[state.name] = task
    if state.name in _seeds:
        _sow(task, _seeds[state.name])
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
            thread an interrupt may come `sys.getswitchinterval` later.
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

    def decorate(fn: Callable[..., Any]) -> Task:
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


def _figures_of(fn: Callable[..., Any]) -> Task:
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
        _known[key] = known
    return known


def call(fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Call[R]:
    """Call a function where it belongs by what its calls have cost.

    Figures are kept for any callable; a function that is called often is better made a
    `task`. See there for where calls run.

    Args:
        fn: An ordinary function or other callable.
        *args: Passed on.
        **kwargs: Passed on.

    Returns:
        Call: to await, or to ask for its ``result()``.

    Raises:
        TypeError: `fn` is not callable, or asynchronous.
    """
    if isinstance(fn, Task):
        return fn(*args, **kwargs)
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{fn!r} is asynchronous: await it")
    return _figures_of(fn)._call(fn, *args, **kwargs)


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
    task = _figures_of(fn)
    index, away = task._record(tuple(args), dict(kwargs or {}))
    if not away:
        return "inline"
    return _state(task).choose(task, fn.fn if isinstance(fn, Task) else fn, index)


# ---- explaining ----------------------------------------------------------------------


@dataclass(frozen=True)
class StrandFigures:
    """What calls of one shape cost on one strand other than the caller's. Milliseconds.

    Attributes:
        calls: How many were measured.
        wall: From start to end.
        cpu: Computing.
        queued: Ready to run, but without a processor.
        waited: The rest: for I/O, for locks, and in threads for the interpreter's lock.
    """

    calls: int
    wall: float
    cpu: float
    queued: float
    waited: float


@dataclass(frozen=True)
class ShapeFigures:
    """What is known about calls with arguments of one shape.

    Attributes:
        shape: The shape in words: types, and the class of their size.
        where: Where the next such call runs: "inline", "thread" or "process".
        why: The reason, in words and figures.
        inline: Calls that ran inline to their end.
        mean: Their mean time, in milliseconds; of all of them.
        recent: The same of the last few.
        longest: The longest of them.
        over_budget: Calls that were interrupted, or for tasks that are not pure, that took
            longer than the budget.
        to_return: How many short calls in a row, measured elsewhere, bring it back inline.
        thread: Figures of the calls in threads; None when there were none.
        process: The same for processes.
        gil_wait: Milliseconds of a call in a thread that went into waiting for the
            interpreter's lock, as far as one can tell: what it waited longer than in a
            process, where nobody holds that lock; None unless both were measured.
    """

    shape: str
    where: str
    why: str
    inline: int
    mean: float
    recent: float
    longest: float
    over_budget: int
    to_return: int
    thread: StrandFigures | None
    process: StrandFigures | None
    gil_wait: float | None


@dataclass(frozen=True)
class Explanation:
    """Where a function runs, and why. ``str()`` of it is for reading.

    Attributes:
        name: The function.
        pure: Whether its calls may be interrupted and started again.
        budget: Seconds that a call may hold up its caller's thread.
        picklable: Whether it can be sent to a process; None when that was never asked.
        refused: Why it cannot.
        sent: Bytes of the arguments of a call that were looked at last; None: never.
        received: The same for a result.
        shapes: What is known, by shape of the arguments; the most called come first.
    """

    name: str
    pure: bool
    budget: float
    picklable: bool | None
    refused: str
    sent: int | None
    received: int | None
    shapes: tuple[ShapeFigures, ...]

    def __str__(self) -> str:
        kind = "pure, " if self.pure else ""
        lines = [f"{self.name}: {kind}budget {_ms(self.budget * 1e3)}"]
        if not self.shapes:
            lines.append("  not called yet: " + _first(self.pure))
        for shape in self.shapes:
            lines.append(f"  ({shape.shape}): {shape.where}, {shape.why}")
        if self.picklable is False:
            lines.append(f"  cannot be sent to a process: {self.refused}")
        if self.sent is not None or self.received is not None:
            lines.append(f"  bytes sent {_bytes(self.sent)}, received {_bytes(self.received)}")
        return "\n".join(lines)


def explain(fn: Callable[..., Any]) -> Explanation:
    """Tell where a function runs, how often it did, and why.

    Args:
        fn: A task, or a function that was given to `call` or placed by "auto".

    Raises:
        TypeError: `fn` is not callable.
    """
    task = _figures_of(fn)
    state = _state(task)
    found = [
        _shape(task, state, index, _Record(*record))
        for index, record in enumerate(task._records())
    ]
    found.sort(key=lambda shape: -(shape.inline + shape.over_budget + _count(shape)))
    return Explanation(
        name=state.name,
        pure=task.pure,
        budget=task.budget,
        picklable=None if state.refused is None else not state.refused,
        refused=state.refused or "",
        sent=state.sent if state.sent >= 0 else None,
        received=state.received if state.received >= 0 else None,
        shapes=tuple(found),
    )


class _Record(NamedTuple):
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


def _first(pure: bool) -> str:
    if pure:
        return "its first call starts inline, and moves to a process when the budget is used up"
    return "its first calls run in a thread, where they hold up nobody"


def _count(shape: ShapeFigures) -> int:
    return sum(strand.calls for strand in (shape.thread, shape.process) if strand)


def _strand(figures: _Strand) -> StrandFigures | None:
    if not figures.calls:
        return None
    return StrandFigures(
        figures.calls,
        figures.wall / 1e6,
        figures.cpu / 1e6,
        figures.queued / 1e6,
        figures.waited / 1e6,
    )


def _shape(task: Task, state: _State, index: int, r: _Record) -> ShapeFigures:
    away = state.away.get(index)
    thread = _strand(away.strands["thread"]) if away else None
    process = _strand(away.strands["process"]) if away else None
    where = "inline"
    if r.where:
        where = away.strand if away else ("process" if task.pure else "thread")
        if where == "process" and (state.refused or (away and away.refused)):
            where = "thread"
    gil_wait = max(0.0, thread.waited - process.waited) if thread and process else None
    shape = ShapeFigures(
        shape=r.label,
        where=where,
        why="",
        inline=r.calls,
        mean=r.total / max(1, r.calls) / 1e6,
        recent=r.recent / 1e6,
        longest=r.longest / 1e6,
        over_budget=r.strikes,
        to_return=r.need,
        thread=thread,
        process=process,
        gil_wait=gil_wait,
    )
    return replace(shape, why=_why(task, shape, away))


def _why(task: Task, s: ShapeFigures, away: _Away | None) -> str:
    told: list[str] = []
    if s.where == "inline":
        if s.inline:
            told.append(
                f"since it is short: {s.inline:,} calls took {_ms(s.mean)} each, "
                f"the longest {_ms(s.longest)}"
            )
        else:
            told.append("to find out what it costs" if task.pure else "as a file told")
        if s.over_budget:
            told.append(f"{s.over_budget:,} were longer than the budget")
    else:
        if s.over_budget:
            what = "were stopped at the budget" if task.pure else "took longer than the budget"
            told.append(f"since {s.over_budget:,} call(s) inline {what}")
        elif task.pure:
            told.append("like the other new shapes of this function")
        else:
            told.append("since it has not yet proved to be short")
        for name, figures in (("in a process", s.process), ("in a thread", s.thread)):
            if figures:
                told.append(
                    f"{figures.calls:,} {name} took {_ms(figures.wall)}: computing "
                    f"{_ms(figures.cpu)}, waiting {_ms(figures.waited)}, "
                    f"queued for a processor {_ms(figures.queued)}"
                )
        if s.gil_wait is not None:
            told.append(f"about {_ms(s.gil_wait)} of a thread's waiting was for the GIL")
        if away and away.refused:
            told.append(f"not in a process, as {away.refused}")
        told.append(f"{s.to_return:,} short call(s) in a row bring it back inline")
    return "; ".join(told)


def _ms(ms: float) -> str:
    if ms < 0.001:
        return f"{ms * 1e6:.0f} ns"
    return f"{ms * 1e3:.3g} us" if ms < 1 else f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1e3:.3g} s"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


# ---- files ---------------------------------------------------------------------------

def save(path: str | os.PathLike[str]) -> None:
    """Write what is known about every task to a file, to be loaded by the next run.

    The file is JSON, and is replaced at once or not at all.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be written.
    """
    tasks = {}
    for name, task in sorted(_registry.items()):
        state = _state(task)
        shapes = {}
        for index, values in enumerate(task._records()):
            record = _Record(*values)
            shape: dict[str, Any] = record._asdict()
            del shape["label"]
            away = state.away.get(index)
            if away is not None:
                shape["strand"] = away.strand
            shapes[record.label] = shape
        if shapes:
            tasks[name] = {"budget": task.budget, "shapes": shapes}
    text = json.dumps({"plait": "figures", "version": _FILE_VERSION, "tasks": tasks}, indent=1)
    temporary = f"{os.fspath(path)}.{os.getpid()}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def load(path: str | os.PathLike[str]) -> int:
    """Take over what another run has learnt.

    Tasks that are not there yet get their figures when they are made. Figures that were taken
    with another budget are left out.

    Args:
        path: A file that `save` has written.

    Returns:
        int: For how many functions it had figures.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file, or was damaged; then nothing was taken over.
    """
    with open(path, encoding="utf-8") as file:
        try:
            data = json.load(file)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("plait") != "figures":
        raise ValueError(f"{os.fspath(path)} holds no figures of plait")
    if data.get("version") != _FILE_VERSION:
        raise ValueError(
            f"{os.fspath(path)} has version {data.get('version')!r}, and {_FILE_VERSION} is known"
        )
    tasks = data.get("tasks")
    if not isinstance(tasks, dict):
        raise ValueError(f"{os.fspath(path)}: tasks must be an object, not {tasks!r}")
    checked = {name: _checked(f"{os.fspath(path)}: {name}", value) for name, value in tasks.items()}
    _seeds.update(checked)
    for name, task in list(_registry.items()):
        if name in checked:
            _sow(task, checked[name])
    return len(checked)


def _checked(where: str, value: Any) -> dict[str, Any]:
    """The figures of one function, or ValueError."""
    if not isinstance(value, dict) or not isinstance(value.get("shapes"), dict):
        raise ValueError(f"{where}: shapes must be an object")
    budget = value.get("budget")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
        raise ValueError(f"{where}: budget must be a number above 0, not {budget!r}")
    for label, shape in value["shapes"].items():
        if not isinstance(shape, dict):
            raise ValueError(f"{where}: the shape {label!r} must be an object")
        for name in _Record._fields[1:]:
            number = shape.get(name)
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 62:
                raise ValueError(f"{where}: {label!r}: {name} must be a count, not {number!r}")
        if shape["where"] > 1 or not 1 <= shape["need"] <= 1024:
            raise ValueError(f"{where}: {label!r}: where or need is out of range")
        if shape.get("strand", "thread") not in ("thread", "process"):
            raise ValueError(f"{where}: {label!r}: strand must be thread or process")
    return value


def _sow(task: Task, known: dict[str, Any]) -> None:
    if known["budget"] != task.budget:
        return
    shapes: dict[str, dict[str, Any]] = known["shapes"]
    state = _state(task)
    state.strands = {label: s["strand"] for label, s in shapes.items() if "strand" in s}
    task._seed(
        {label: tuple(s[name] for name in _Record._fields[1:]) for label, s in shapes.items()}
    )
