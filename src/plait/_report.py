"""What a scope tells about what ran in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._handle import Handle

__all__ = ["ScopeReport", "Sum", "TaskReport"]


@dataclass(frozen=True)
class TaskReport:
    """One started thing.

    Attributes:
        name: its name.
        where: "loop", "thread", "process" or "inline".
        place: the thread's name, where that is known.
        outcome: "waiting", "running", "done", "failed", "cancelled" or "unstopped".
        seconds: from the begin of the first attempt to the end, or until now.
        attempts: how often it was begun.
    """

    name: str
    where: str
    place: str
    outcome: str
    seconds: float
    attempts: int


@dataclass(frozen=True)
class Sum:
    """All started things with one name, strand and outcome.

    Attributes:
        name: their name.
        where: their strand.
        outcome: how they ended.
        count: how many they are.
        seconds: their times, added.
        longest: the longest of these.
    """

    name: str
    where: str
    outcome: str
    count: int
    seconds: float
    longest: float


class Sums:
    """Sums that grow."""

    def __init__(self) -> None:
        self.by_key: dict[tuple[str, str, str], list[float]] = {}
        self.untold = 0  # handles that completed() has not given out

    def copy(self) -> Sums:
        """Another one with the same content."""
        twin = Sums()
        twin.by_key = {key: list(value) for key, value in self.by_key.items()}
        return twin

    def add(self, handles: Iterable[Handle[Any]]) -> None:
        """Count some handles."""
        for handle in handles:
            key = (handle.name, handle.where, handle.state)
            seconds = handle.seconds
            entry = self.by_key.get(key)
            if entry is None:
                self.by_key[key] = [1, seconds, seconds]
            else:
                entry[0] += 1
                entry[1] += seconds
                entry[2] = max(entry[2], seconds)


@dataclass(frozen=True)
class ScopeReport:
    """What ran in a scope; `str` makes a table of it.

    Attributes:
        name: the scope's name.
        seconds: how long it was open, or has been.
        tasks: the started things that are still known one by one, in the order of their ends.
        sums: all that were ever started, by name, strand and outcome.
    """

    name: str
    seconds: float
    tasks: tuple[TaskReport, ...]
    sums: tuple[Sum, ...]

    @classmethod
    def make(cls, name: str, seconds: float, handles: list[Handle[Any]], sums: Sums) -> ScopeReport:
        """Make one of handles, and of the sums of handles that are gone."""
        tasks = []
        for handle in handles:
            extra = handle._extra
            tasks.append(
                TaskReport(
                    handle.name,
                    handle.where,
                    extra.place if extra is not None else "",
                    handle.state,
                    handle.seconds,
                    extra.attempts if extra is not None else 1,
                )
            )
        total = sums.copy()
        total.add(handles)
        rows = (
            Sum(*key, int(count), seconds_, longest)
            for key, (count, seconds_, longest) in sorted(total.by_key.items())
        )
        return cls(name, seconds, tuple(tasks), tuple(rows))

    def __str__(self) -> str:
        lines = [f"{self.name}: open for {self.seconds:.3f} s"]
        if self.sums:
            width = max(4, *(len(row.name) for row in self.sums))
            lines.append(f"{'name':<{width}}  where    outcome      count   mean ms    max ms")
            for row in self.sums:
                lines.append(
                    f"{row.name:<{width}}  {row.where:<7}  {row.outcome:<9}  {row.count:>7}"
                    f"  {row.seconds / row.count * 1e3:>8.3f}  {row.longest * 1e3:>8.3f}"
                )
        return "\n".join(lines)
