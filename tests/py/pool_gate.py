"""Holds tasks in workers until a test lets them go."""

from __future__ import annotations

import pathlib
from typing import Any

import pool_tasks as tasks
from until import until

import plait


class Gate:
    """Holds tasks in workers until it is opened."""

    def __init__(self, where: pathlib.Path) -> None:
        self.where = where
        self.count = 0

    def hold(self, pool: plait.ProcessPool, n: int = 1) -> list[Any]:
        """Submit n tasks that wait; return once they run."""
        names = []
        futures = []
        for _ in range(n):
            self.count += 1
            names.append(self.where / f"here{self.count}")
            futures.append(
                pool.submit(tasks.announce_and_wait, str(names[-1]), str(self.where / "open"))
            )
        for future, name in zip(futures, names, strict=True):
            until(lambda future=future: future.running() or future.done())
            until(name.exists)
        return futures

    def open(self) -> None:
        (self.where / "open").touch()
