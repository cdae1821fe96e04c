"""What the machine itself allows: the column beside the pools."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .measure import Row, seconds_each
from .tasks import noop

NAME = "limit"


def program() -> Path | None:
    """The built C part, if there is one."""
    named = os.environ.get("PLAIT_BENCH_BIN")
    root = Path(__file__).resolve().parents[2]
    places = [Path(named)] if named else list(root.glob("build/*/bench"))
    for place in places:
        if (place / "pool_limits").exists():
            return place / "pool_limits"
    return None


def call_pickled() -> None:
    """What the cheapest of channels would still leave to do."""
    fn, args, kwargs = pickle.loads(pickle.dumps((noop, (), {}), 5))
    pickle.loads(pickle.dumps(fn(*args, **kwargs), 5))


def measure(budget: float) -> Iterator[Row]:
    """The rows."""
    found = program()
    if found is not None:
        done = subprocess.run(
            [str(found)], stdout=subprocess.PIPE, text=True, check=True, timeout=20
        )
        yield from json.loads(done.stdout).items()
    yield "pickle a task and call it", 1 / seconds_each(call_pickled, budget)
