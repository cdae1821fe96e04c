"""Placement of functions whose costs change in every way: what holds whatever they do."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import auto_tasks
import pytest
from auto_costs import Costs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import plait
from plait import _auto, _core
from plait._measure import Measured

MS = 1_000_000
BUDGET = MS
PROFILE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Far below, just below, at, just above and far above the budget, and around the half of it,
# below which a call elsewhere speaks for coming back.
costs = st.sampled_from(
    [0, 1000, MS // 2 - 1, MS // 2, MS // 2 + 1, MS - 1, MS, MS + 1, 2 * MS, 50 * MS]
)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Calls as (argument, cost): steady stretches, jumps, swings, costs by argument."""
    calls: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["steady", "swing", "any", "by argument"]))
        length = draw(st.integers(1, 60))
        few = draw(st.lists(costs, min_size=2, max_size=4))
        for i in range(length):
            shape = i % len(few) if kind in ("by argument", "any") else 1
            cost = {"steady": few[0], "swing": few[i % 2]}.get(kind, few[shape % len(few)])
            calls.append((shape, draw(costs) if kind == "any" else cost))
    return calls


def calls_for(strikes: int, pure: bool) -> int:
    """How many calls of a shape there must be for so many that were inline and too long."""
    need = 1 if pure else 3
    calls = 0 if pure else need  # a shape of a pure function begins inline
    for i in range(strikes):
        calls += 1  # too long, inline
        if i > 0:
            need *= 2
        if i + 1 < strikes:
            calls += need  # short ones in a row, elsewhere
    return calls


@PROFILE
@given(histories(), st.booleans())
@example([(1, cost) for cost in [0, 50 * MS] * 150], True)
@example([(1, cost) for cost in [0, 0, 0, 50 * MS] * 80], False)
def test_whatever_costs_do_nothing_flaps(calls: list[tuple[int, int]], pure: bool) -> None:
    model = Costs(pure)
    seen: dict[int, int] = {}
    too_long: dict[int, int] = {}
    for shape, cost in calls:
        model.cost = cost
        seen[shape] = seen.get(shape, 0) + 1
        if model.call(shape):
            too_long[shape] = too_long.get(shape, 0) + 1
            _, away = model.task._record((shape,), {})
            assert away, "the next call must not hold the loop up again"
    for shape, count in too_long.items():
        assert calls_for(count, pure) <= seen[shape]
    for record in model.task._records():
        named = dict(zip(_auto.Record._fields, record, strict=True))
        assert named["need"] <= 1024
        assert named["calls"] + named["away"] >= seen[int(named["label"].removeprefix("int "))]


@PROFILE
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, MS // 10, MS, 10 * MS]),  # CPU
            st.sampled_from([0, MS // 10, MS, 100 * MS]),  # waiting
            st.sampled_from([0, 100 * MS]),  # for a processor
            st.integers(1, 40),  # so many times
        ),
        max_size=30,
    ),
    st.sampled_from(["thread", "process"]),
)
def test_whatever_is_measured_strands_do_not_flap(
    stretches: list[tuple[int, int, int, int]], first: str
) -> None:
    away = _auto.Away(first)
    calls = 0
    for cpu, waited, queued, times in stretches:
        for _ in range(times):
            calls += 1
            away.vote(Measured(None, cpu + waited + queued, cpu, queued, -1), 0.001)
    assert sum(min(2 << turn, 64) for turn in range(away.turns)) <= calls
    assert away.strand == ("thread", "process")[(first == "process") ^ (away.turns % 2)]


@PROFILE
@given(histories(), st.booleans())
def test_figures_survive_saving_and_loading(calls: list[tuple[int, int]], pure: bool) -> None:
    def measured_here(n: int) -> int:
        return n

    task = plait.task(pure=pure)(measured_here)
    for turn, (shape, cost) in enumerate(calls):
        index, away = task._record((shape,), {})
        if away:
            m = Measured(shape, cost + turn, cost, 0, -1)
            _auto.state_of(task).note(measured_here, index, ("thread", "process")[turn % 2], m)
        else:
            task._note_here(index, cost)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        plait.auto.save(path)
        told = {record[0]: record for record in task._records()}
        places = {n: plait.auto.place(task, (n,)) for n, _ in calls}
        fresh = plait.task(pure=pure)(measured_here)
        plait.auto.load(path)
    try:
        assert {n: plait.auto.place(fresh, (n,)) for n in places} == places
        assert {record[0]: record for record in fresh._records()} == told
    finally:
        _auto.seeds.clear()


@pytest.fixture(scope="module")
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        plait.auto.use_pool(pool)
        yield pool
        plait.auto.use_pool(None)


@settings(PROFILE, max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.0005, 0.0009, 0.001, 0.0011, 0.004])),
        min_size=1,
        max_size=25,
    )
)
def test_results_are_right_wherever_calls_run(
    pool: plait.ProcessPool, calls: list[tuple[int, float]]
) -> None:
    """Real calls around the budget, some inline, some interrupted, some in processes."""
    task = auto_tasks.jumpy

    async def main() -> list[Any]:
        return list(await asyncio.gather(*(as_task(task(*call)) for call in calls)))

    assert plait.run(main()) == calls
    for _, group in itertools.groupby(sorted(calls)):
        for n, seconds in group:
            assert task.sync(n, seconds) == (n, seconds)


async def as_task(call: Any) -> Any:
    return await call


@PROFILE
@given(st.lists(st.integers(0, 300), min_size=1, max_size=400), st.booleans())
def test_any_number_of_shapes(numbers: list[int], pure: bool) -> None:
    """Beyond the bound of shapes all others share one record, and calls stay right."""
    model = Costs(pure)
    for n in numbers:
        model.cost = n * 10_000
        model.call(n)
    assert len(model.task._records()) <= 256
    assert isinstance(model.task, _core.Task)
