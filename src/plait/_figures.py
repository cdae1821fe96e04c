"""What is known about tasks: told by `explain`, kept in files by `save` and `load`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ._auto import (
    AnyTask,
    Away,
    Record,
    State,
    Strand,
    figures_of,
    registry,
    seeds,
    sow,
    state_of,
)

__all__ = ["Explanation", "ShapeFigures", "StrandFigures", "explain", "load", "save"]

FILE_VERSION = 1


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
    task = figures_of(fn)
    state = state_of(task)
    found = [
        _shape(task, state, index, Record(*record)) for index, record in enumerate(task._records())
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


def _first(pure: bool) -> str:
    if pure:
        return "its first call starts inline, and moves to a process when the budget is used up"
    return "its first calls run in a thread, where they hold up nobody"


def _count(shape: ShapeFigures) -> int:
    return sum(strand.calls for strand in (shape.thread, shape.process) if strand)


def _strand(figures: Strand) -> StrandFigures | None:
    if not figures.calls:
        return None
    return StrandFigures(
        figures.calls,
        figures.wall / 1e6,
        figures.cpu / 1e6,
        figures.queued / 1e6,
        figures.waited / 1e6,
    )


def _shape(task: AnyTask, state: State, index: int, r: Record) -> ShapeFigures:
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


def _calls(count: int, what: str = "call") -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _why(task: AnyTask, s: ShapeFigures, away: Away | None) -> str:
    told: list[str] = []
    if s.where == "inline":
        if s.inline:
            each = f" each, the longest {_ms(s.longest)}" if s.inline > 1 else ""
            told.append(f"since it is short: {_calls(s.inline)} took {_ms(s.mean)}{each}")
        else:
            told.append("to find out what it costs" if task.pure else "as a file told")
        if s.over_budget:
            were = "was" if s.over_budget == 1 else "were"
            told.append(f"{s.over_budget:,} {were} longer than the budget")
    else:
        if s.over_budget:
            stopped = "was stopped" if s.over_budget == 1 else "were stopped"
            what = f"{stopped} at the budget" if task.pure else "took longer than the budget"
            told.append(f"since {_calls(s.over_budget)} inline {what}")
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
        bring = "brings" if s.to_return == 1 else "in a row bring"
        told.append(f"{_calls(s.to_return, 'short call')} {bring} it back inline")
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
    for name, task in sorted(registry.items()):
        state = state_of(task)
        shapes = {}
        for index, values in enumerate(task._records()):
            record = Record(*values)
            shape: dict[str, Any] = record._asdict()
            del shape["label"]
            away = state.away.get(index)
            if away is not None:
                shape["strand"] = away.strand
            shapes[record.label] = shape
        if shapes:
            tasks[name] = {"budget": task.budget, "shapes": shapes}
    text = json.dumps({"plait": "figures", "version": FILE_VERSION, "tasks": tasks}, indent=1)
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
    if data.get("version") != FILE_VERSION:
        raise ValueError(
            f"{os.fspath(path)} has version {data.get('version')!r}, and {FILE_VERSION} is known"
        )
    tasks = data.get("tasks")
    if not isinstance(tasks, dict):
        raise ValueError(f"{os.fspath(path)}: tasks must be an object, not {tasks!r}")
    checked = {name: _checked(f"{os.fspath(path)}: {name}", value) for name, value in tasks.items()}
    seeds.update(checked)
    for name, task in list(registry.items()):
        if name in checked:
            sow(task, checked[name])
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
        for name in Record._fields[1:]:
            number = shape.get(name)
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 62:
                raise ValueError(f"{where}: {label!r}: {name} must be a count, not {number!r}")
        if shape["where"] > 1 or not 1 <= shape["need"] <= 1024:
            raise ValueError(f"{where}: {label!r}: where or need is out of range")
        if shape.get("strand", "thread") not in ("thread", "process"):
            raise ValueError(f"{where}: {label!r}: strand must be thread or process")
    return value
