"""A function whose cost a test sets, for the tests of placement."""

from __future__ import annotations

from typing import Any

from plait import _core


class Costs:
    """A function whose cost the test sets; the budget is judged from what C is told."""

    def __init__(self, pure: bool) -> None:
        self.cost = 0
        self.away = 0
        self.task = _core.Task(self.run, self.elsewhere, 0.001, pure)

    def run(self, shape: int) -> int:
        return shape

    def elsewhere(self, task: Any, fn: Any, index: int, args: Any, kwargs: Any, wait: bool) -> int:
        self.away += 1
        task._note_away(index, self.cost, self.cost)
        return fn(*args, **kwargs)  # type: ignore[no-any-return]

    def call(self, shape: int) -> bool:
        """One call; whether it was inline and too long."""
        before = self.away
        assert self.task.sync(shape) == shape
        if self.away > before or self.cost <= 1_000_000:
            return False
        index, _ = self.task._record((shape,), {})
        self.task._note_here(index, self.cost)  # as a measured inline call of that cost
        return True
