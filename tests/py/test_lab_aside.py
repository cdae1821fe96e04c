"""The lab's section on races and on vectorising: measured, and told as measured."""

from __future__ import annotations

import sys

import pytest

from plait.lab import races, vectorise
from plait.lab.races import Race
from plait.lab.vectorise import Way

NAMES = [
    "threads",
    "threads, with a lock",
    "coroutines, no await between",
    "coroutines, an await between",
    "coroutines, await and lock",
    "processes, a global",
    "processes, shared memory",
    "processes, shared memory and a lock",
]


def test_races_measured() -> None:
    interval = sys.getswitchinterval()
    found = {race.name: race for race in races.measure(steps=3000)}
    assert sys.getswitchinterval() == interval
    assert list(found) == NAMES
    for name, race in found.items():
        assert 0 <= race.counted <= race.wanted, name
        assert race.step_ns > 0, name
    for name in ("threads, with a lock", "processes, shared memory and a lock"):
        assert found[name].lost == 0
    assert found["coroutines, no await between"].lost == 0
    assert found["coroutines, await and lock"].lost == 0
    # Four read the same value before the first of them writes.
    paused = found["coroutines, an await between"]
    assert paused.counted == paused.wanted // races.STRANDS
    assert found["processes, a global"].counted == 0


@pytest.mark.parametrize("gil", [True, False])
@pytest.mark.parametrize("lost", [0, 250])
def test_races_explained(gil: bool, lost: int) -> None:
    text = " ".join(races.explain([Race(n, 1000, 1000 - lost, 50.0) for n in NAMES], gil=gil))
    assert ("250 of 1,000 steps (25.0%)" in text) == bool(lost)
    assert ("lost nothing this time" in text) == (not lost)
    assert ("The GIL lets one thread" in text) == gil
    assert races.explain([], gil=gil) == []


def test_vectorising_measured() -> None:
    ways = vectorise.measure(numbers=2000, rounds=1)
    assert [way.name for way in ways][:3] == ["a loop", "2 threads", "2 processes"]
    assert all(way.right for way in ways)
    assert all(way.ms > 0 for way in ways)


def test_vectorising_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ways = vectorise.measure(numbers=200, rounds=1)
    assert len(ways) == 3
    assert "not installed" in " ".join(vectorise.explain(ways, gil=True, processors=2))


@pytest.mark.parametrize("fast", [True, False])
def test_vectorising_explained(fast: bool) -> None:
    ways = [
        Way("a loop", 100.0, True),
        Way("2 threads", 50.0 if fast else 100.0, True),
        Way("2 processes", 50.0 if fast else 110.0, True),
        Way("NumPy, with the list made an array", 10.0, True),
        Way("NumPy", 1.0 if fast else 90.0, fast),
        Way("NumPy in 2 processes", 0.9 if fast else 95.0, True),
    ]
    text = " ".join(vectorise.explain(ways, gil=True, processors=2))
    assert ("NumPy makes it 100 times as fast" in text) == fast
    assert ("one lock, one of them computes" in text) == (not fast)
    assert ("sending the numbers costs what is gained" in text) == (not fast)
    assert ("Wrong results came from: NumPy." in text) == (not fast)
    assert vectorise.explain([], gil=True, processors=2) == []
