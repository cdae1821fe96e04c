"""map: order, windows, endless generators, early ends, progress; and chunks' own encoding."""

from __future__ import annotations

import gc
import itertools
import operator
import pathlib
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest

import plait
from plait import _map

TIMEOUT = 100.0


@pytest.fixture(scope="module")
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool


def negate(x: Any) -> Any:
    return -x


class Thing:
    """Something that can be weakly referred to."""


def fresh(_: int) -> Thing:
    return Thing()


def fail_at_5(x: int) -> int:
    if x == 5:
        raise ValueError("five")
    return x


def big(_: int) -> bytes:
    return b"x" * 100_000


@pytest.mark.parametrize(
    "items",
    [
        list(range(-50, 2500)),
        [2**63 - 1, -(2**63), 0],
        [2**64, 1, 2],
        [1.5, float("inf"), -0.0, 3.0],
        [1, 2.5, True, 7],
        [True, False],
        [1j, 2j],
        [],
        range(-50, 2500),
        range(10, -3001, -3),
        range(2**62, 2**62 + 2500),
        range(2**70, 2**70 + 3),
        range(5, 5),
        tuple(range(2500)),
    ],
    ids=lambda items: f"{len(items)}-{type(items[0]).__name__ if items else ''}",
)
@pytest.mark.parametrize("chunksize", [1, 2, 1000])
@pytest.mark.parametrize("unordered", [False, True])
def test_values(pool: plait.ProcessPool, items: list[Any], chunksize: int, unordered: bool) -> None:
    found = list(pool.map(negate, items, chunksize=chunksize, unordered=unordered))
    right = [-x for x in items]
    if unordered and chunksize < len(items):
        assert sorted(found, key=repr) == sorted(right, key=repr)
    else:
        assert found == right
        assert [type(x) for x in found] == [type(x) for x in right]


TEXTS = ["", "plain", "sch\u00f6n", "\u65e5\u672c" * 50, "x" * 600, "\ud800", b"", b"\x00" * 600]


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        [0.5],
        [1, None],
        [],
        [[1], [2]],
        list(range(70_000)),
        *[[text] * 3 for text in TEXTS],
        [None, True, False, 2**63, -(2**63), 2**64, 0.5, float("-inf"), "a", b"b"],
        [(1, "a"), (), (None, (1,))],
        [tuple(range(300))] * 3,
        [1, [2]],
        (),
        (1, 2.5, "a", b"b", None, True),
        ((1,),),
        tuple(range(300)),
        range(0),
        range(1, 10, 3),
        range(2**63, 2**65, 2**62),
        *TEXTS,
    ],
    ids=lambda value: repr(value)[:30].encode("ascii", "replace").decode(),
)
def test_plain_values_travel(pool: plait.ProcessPool, value: Any) -> None:
    result = pool.submit(tasks.echo, value).result(TIMEOUT)
    assert result == value
    assert type(result) is type(value)
    if isinstance(value, list | tuple):
        assert [type(x) for x in result] == [type(x) for x in value]


def test_a_list_given_twice_arrives_as_one(pool: plait.ProcessPool) -> None:
    shared, other = [1, 2], [1, 2]
    assert pool.submit(operator.is_, shared, shared).result(TIMEOUT) is True
    assert pool.submit(operator.is_, shared, other).result(TIMEOUT) is False


def test_a_range_without_bound(pool: plait.ProcessPool) -> None:
    results = pool.map(negate, range(10**30), chunksize=7)
    assert list(itertools.islice(results, 1000)) == [-x for x in range(1000)]
    results.close()  # type: ignore[attr-defined]


def test_a_chunk_fails_with_the_traceback_of_its_task(pool: plait.ProcessPool) -> None:
    for items in (range(10), list(range(10))):
        with pytest.raises(ValueError, match="five") as caught:
            list(pool.map(fail_at_5, items, chunksize=10))
        text = str(caught.value.__cause__)
        assert "in fail_at_5" in text
        assert "run_each" not in text


def test_results_of_chunks_are_not_kept(pool: plait.ProcessPool) -> None:
    results = pool.map(fresh, range(20), chunksize=10)
    held = weakref.ref(next(results))
    gc.collect()
    assert held() is None
    results.close()  # type: ignore[attr-defined]
    results.close()  # type: ignore[attr-defined]
    assert list(results) == []


def test_items_of_any_lists() -> None:
    mine = [1, 2]
    found = plait._core.Items(iter([[], mine, [], [3], [4, 5]]))
    assert iter(found) is found
    assert list(found) == [1, 2, 3, 4, 5]
    assert mine == [1, 2]
    assert list(found) == []
    with pytest.raises(TypeError, match="a chunk must be a list, not int"):
        list(plait._core.Items(iter([1])))  # type: ignore[list-item]
    with pytest.raises(TypeError, match="chunks must be an iterator, not list"):
        plait._core.Items([[1]])  # type: ignore[arg-type]


def test_items_in_a_cycle_are_collected() -> None:
    cycle: list[Any] = []
    found = plait._core.Items(iter([[1, cycle]]))
    cycle.append(found)
    assert next(found) == 1
    gone = weakref.ref(found)
    del found, cycle
    gc.collect()
    assert gone() is None


def test_rows(pool: plait.ProcessPool) -> None:
    for chunksize in (1, 3):
        found = pool.map(pow, range(10), itertools.repeat(2), chunksize=chunksize)
        assert list(found) == [x * x for x in range(10)]


@pytest.mark.parametrize("unordered", [False, True])
@pytest.mark.parametrize("chunksize", [1, 50])
def test_an_endless_generator_runs_in_constant_memory(
    pool: plait.ProcessPool, unordered: bool, chunksize: int
) -> None:
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        for x in itertools.count():
            drawn = x
            yield x

    results = pool.map(tasks.plus_one, endless(), chunksize=chunksize, unordered=unordered)
    taken = 0
    for _ in itertools.islice(results, 20_000):
        taken += 1
        assert drawn <= taken + _map.WINDOW + 3 * chunksize
    results.close()  # type: ignore[attr-defined]
    assert taken == 20_000


@pytest.mark.parametrize("unordered", [False, True])
def test_the_window_is_kept(pool: plait.ProcessPool, unordered: bool) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for x in range(20):
            drawn.append(x)
            yield x

    results = pool.map(tasks.plus_one, items(), buffersize=3, unordered=unordered)
    assert len(drawn) == 3
    next(results)
    assert len(drawn) == 4
    assert len(list(results)) == 19


@pytest.mark.parametrize("unordered", [False, True])
def test_an_error_ends_it(pool: plait.ProcessPool, unordered: bool) -> None:
    results = pool.map(fail_at_5, range(100), unordered=unordered, buffersize=2)
    with pytest.raises(ValueError, match="five"):
        list(results)
    assert list(results) == []
    chunks = pool.map(fail_at_5, range(100), unordered=unordered, chunksize=4)
    with pytest.raises(ValueError, match="five"):
        list(chunks)


@pytest.mark.parametrize("unordered", [False, True])
def test_closing_cancels_the_rest(tmp_path: pathlib.Path, unordered: bool) -> None:
    gate = tmp_path / "gate"
    with plait.ProcessPool(1) as pool:
        names = [str(tmp_path / "open"), *[str(gate)] * 50]
        pathlib.Path(names[0]).touch()
        results = pool.map(tasks.wait_for_file, names, unordered=unordered)
        next(results)
        results.close()  # type: ignore[attr-defined]
        gate.touch()
        pool.submit(tasks.noop).result(TIMEOUT)
        figures = pool._figures()
        assert figures["finished"] <= 4  # the first, one or two that had begun, and the no-op


def test_unread_results_are_freed(pool: plait.ProcessPool) -> None:
    results = pool.map(big, range(50))
    next(results)
    held = weakref.ref(results)
    del results
    gc.collect()
    assert held() is None
    pool.submit(tasks.noop).result(TIMEOUT)
    while pool._figures()["outstanding"]:
        pool.submit(tasks.noop).result(TIMEOUT)


@pytest.mark.parametrize("unordered", [False, True])
def test_timeout(tmp_path: pathlib.Path, unordered: bool) -> None:
    gate = tmp_path / "gate"
    with plait.ProcessPool(1) as pool:
        results = pool.map(tasks.wait_for_file, [str(gate)] * 2, timeout=0.05, unordered=unordered)
        with pytest.raises(TimeoutError):
            next(results)
        gate.touch()


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1, not 0"),
        ({"chunksize": 1.5}, TypeError, "chunksize must be an integer, not 1.5"),
        ({"chunksize": None}, TypeError, "chunksize must be an integer, not None"),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0, not 0"),
        ({"buffersize": "3"}, TypeError, "buffersize must be an integer or None, not '3'"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
    ],
)
def test_bad_arguments(
    pool: plait.ProcessPool, kwargs: Any, error: type[Exception], text: str
) -> None:
    drawn: list[int] = []
    with pytest.raises(error, match=text):
        pool.map(negate, (drawn.append(x) for x in range(3)), **kwargs)
    assert drawn == []
    with pytest.raises(TypeError, match="fn must be callable"):
        pool.map(5, [1])  # type: ignore[arg-type]


BARS = {"rich": _map.RichBar, "tqdm": _map.TqdmBar}
NAMES = {"rich": ["rich", "rich.progress", "rich.console"], "tqdm": ["tqdm"]}


def only(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """Let none but one of the packages be imported."""
    for other, modules in NAMES.items():
        if other == name:
            pytest.importorskip(other)
            continue
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("name", ["rich", "tqdm"])
@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("unordered", [False, True])
def test_progress_by_what_is_installed(
    pool: plait.ProcessPool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    chunksize: int,
    unordered: bool,
) -> None:
    only(monkeypatch, name)
    assert type(_map.make_bar(1)) is BARS[name]
    found = pool.map(negate, range(10), chunksize=chunksize, unordered=unordered, progress=True)
    assert sorted(found) == [-x for x in range(9, -1, -1)]
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err
    assert name == "rich" or "10/10" in err


@pytest.mark.parametrize("name", ["rich", "tqdm", None])
def test_progress_without_a_known_length(
    pool: plait.ProcessPool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str | None,
) -> None:
    only(monkeypatch, name)
    found = pool.map(negate, (x for x in range(10)), chunksize=3, progress=True)
    assert list(found) == [-x for x in range(10)]
    out, err = capsys.readouterr()
    assert out == ""
    assert ("map" if name == "rich" else "10") in err
    assert "of" not in err


@pytest.mark.parametrize("name", ["rich", "tqdm", None])
def test_progress_ends_with_the_iteration(
    pool: plait.ProcessPool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str | None,
) -> None:
    only(monkeypatch, name)
    for _ in range(2):  # rich has one live display at a time: the first must have ended
        results = pool.map(fail_at_5, range(10), progress=True)
        with pytest.raises(ValueError, match="five"):
            list(results)
        results = pool.map(negate, range(10), progress=True)
        next(results)
        results.close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out == ""


def test_progress_of_two_maps_at_once(
    pool: plait.ProcessPool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "rich")
    both = zip(
        pool.map(negate, range(10), progress=True),
        pool.map(negate, range(10), progress=True),
        strict=True,
    )
    assert [a for a, _ in both] == [-x for x in range(10)]
    assert capsys.readouterr().out == ""


def test_progress_on_stderr(
    pool: plait.ProcessPool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only(monkeypatch, None)
    assert list(pool.map(negate, range(10), chunksize=4, progress=True)) == [-x for x in range(10)]
    assert "map: 10 of 10 done" in capsys.readouterr().err


def test_plain_progress_speaks_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    bar = _map.PlainBar(None, lambda: now)
    for i in range(31):
        now = i / 10
        bar.advance(1)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("map: 11 done")
