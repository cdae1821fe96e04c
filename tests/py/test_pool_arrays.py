"""Arrays through a pool's shared memory: no copies where none are needed, and no leaks."""

from __future__ import annotations

import copyreg
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest

import plait

np = pytest.importorskip("numpy")

TIMEOUT = 100.0
SIZE = 1 << 18


@pytest.fixture
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool


def used(pool: plait.ProcessPool) -> int:
    gc.collect()
    # An allocation collects what workers have given back.
    pool.submit(tasks.total, np.zeros(SIZE)).result(TIMEOUT)
    pool.submit(tasks.total, np.zeros(SIZE)).result(TIMEOUT)
    return int(pool._figures()["arena_used"])


@pytest.mark.parametrize("n", [1, 100, 2047, 2048, 2049, SIZE])
@pytest.mark.parametrize("order", ["C", "F"])
def test_round_trip(pool: plait.ProcessPool, n: int, order: Any) -> None:
    array = np.arange(n * 2, dtype=np.float64).reshape(2, n, order=order)
    result = pool.submit(tasks.echo, array).result(TIMEOUT)
    assert np.array_equal(result, array)
    assert result.flags.writeable
    result[:] = 0
    assert array[-1, -1] == n * 2 - 1


def test_strided_and_readonly(pool: plait.ProcessPool) -> None:
    array = np.arange(SIZE, dtype=np.int32)
    assert np.array_equal(pool.submit(tasks.echo, array[::3]).result(TIMEOUT), array[::3])
    array.flags.writeable = False
    result = pool.submit(tasks.echo, array).result(TIMEOUT)
    assert np.array_equal(result, array)


def kinds() -> Iterator[Any]:
    """Arrays that go without pickle, and their neighbours that must not."""
    for char in "?bBhHiIlLqQefdgFDG":
        yield np.arange(6, dtype=np.float32).astype(char).reshape(2, 3)
    yield np.array(3.0)
    yield np.float64(3)
    yield np.zeros((0, 3))
    yield np.ones((1,) * 8)
    yield np.ones((1,) * 9)
    yield np.arange(4).astype(">i4")
    yield np.arange(12).reshape(3, 4)[:, ::2]
    yield np.arange(3, dtype="m8[s]")
    yield np.array(["one", "two"])
    yield np.array([1, "two", None], dtype=object)
    yield np.zeros(3, dtype=[("x", "i4"), ("y", "f8")])
    yield np.zeros(3, dtype=np.dtype("f8", metadata={"unit": "m"}))
    yield np.arange(6.0).view(np.recarray)
    yield np.ma.masked_array([1, 2, 3], mask=[0, 1, 0])


def test_arrays_arrive_as_pickles_of_them_do(pool: plait.ProcessPool) -> None:
    for array in kinds():
        expected = pickle.loads(pickle.dumps(array, 5))
        result = pool.submit(tasks.echo, array).result(TIMEOUT)
        assert type(result) is type(expected)
        assert result.dtype == expected.dtype
        assert result.dtype.metadata == expected.dtype.metadata
        assert result.shape == expected.shape
        assert result.dtype == object or result.tobytes() == expected.tobytes()
        assert result.flags.writeable == expected.flags.writeable


def test_nothing_that_an_array_lies_on_can_be_resized(pool: plait.ProcessPool) -> None:
    for array in (np.arange(3), np.zeros((0, 3)), np.array(1.5), np.arange(SIZE)):
        result = pool.submit(tasks.echo, array).result(TIMEOUT)
        assert not isinstance(result.base, bytearray)
        assert np.array_equal(result, array)
    assert not pool.submit(lies_on_bytearray, np.arange(3)).result(TIMEOUT)


def lies_on_bytearray(array: Any) -> bool:
    return isinstance(array.base, bytearray)


def test_arrays_among_other_arguments(pool: plait.ProcessPool) -> None:
    a, b, large = np.arange(3), np.ones((2, 2)), np.arange(SIZE)
    args: Any
    for args in ((1, a, "x", b), (a, [1, 2]), ((1, 2), large, None, a), (a, {"b": b}), ([a], a)):
        got, _ = pool.submit(tasks.both, *args).result(TIMEOUT)
        assert repr(got) == repr(args)
    got, kwargs = pool.submit(tasks.both, a, named=b).result(TIMEOUT)
    assert repr((got, kwargs)) == repr(((a,), {"named": b}))
    seventeen = [np.array(i) for i in range(17)]
    got, _ = pool.submit(tasks.both, *seventeen).result(TIMEOUT)
    assert list(got) == seventeen


def test_what_is_given_twice_arrives_as_one(pool: plait.ProcessPool) -> None:
    array = np.arange(SIZE)
    assert pool.submit(tasks.are_one, array, array).result(TIMEOUT)
    assert pool.submit(tasks.are_one, array, array.copy()).result(TIMEOUT) is False


def test_a_reducer_of_the_programs_own_is_heeded(
    pool: plait.ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pool.submit(tasks.echo, np.arange(3)).result(TIMEOUT).shape == (3,)  # types are known
    monkeypatch.setitem(copyreg.dispatch_table, np.ndarray, lambda array: (int, (42,)))
    assert pool.submit(tasks.echo, np.arange(3)).result(TIMEOUT) == 42


@pytest.mark.parametrize("writeable", [True, False])
def test_what_comes_back_unchanged_is_not_copied(pool: plait.ProcessPool, writeable: bool) -> None:
    array = np.arange(SIZE, dtype=np.float64)
    array.flags.writeable = writeable
    before = used(pool)
    result = pool.submit(tasks.echo, array).result(TIMEOUT)
    # The block that was sent is the result's: a copy would lie in the worker's part.
    assert used(pool) >= before + array.nbytes
    assert result.flags.writeable == writeable
    assert np.array_equal(result, array)


def test_fresh_results_are_mapped_and_independent(pool: plait.ProcessPool) -> None:
    arrays = [np.full(SIZE, i, dtype=np.float64) for i in range(8)]
    futures = [pool.submit(tasks.twice_the_array, a) for a in arrays]
    results = [f.result(TIMEOUT) for f in futures]
    for i, result in enumerate(results):
        assert (result == 2 * i).all()
        result += 1
    for i, result in enumerate(results):
        assert (result == 2 * i + 1).all()


def test_what_the_worker_keeps_is_not_given_away() -> None:
    with plait.ProcessPool(1) as pool:
        array = np.full(SIZE, 5.0)
        result = pool.submit(tasks.keep, array).result(TIMEOUT)
        result[:] = 9
        assert pool.submit(tasks.kept_first).result(TIMEOUT) == 5.0
        # and later tasks do not get the memory that it still looks at
        for _ in range(5):
            pool.submit(tasks.scribble, np.zeros(SIZE)).result(TIMEOUT)
        assert pool.submit(tasks.kept_first).result(TIMEOUT) == 5.0


def test_the_callers_array_stays_its_own(pool: plait.ProcessPool) -> None:
    array = np.zeros(SIZE)
    result = pool.submit(tasks.scribble, array).result(TIMEOUT)
    assert (array == 0).all()
    assert (result == 7).all()


def test_blocks_come_back(pool: plait.ProcessPool) -> None:
    base = used(pool)
    for _ in range(50):
        pool.submit(tasks.echo, np.ones(SIZE)).result(TIMEOUT)
        pool.submit(tasks.total, np.ones(SIZE)).result(TIMEOUT)
    assert used(pool) <= base + 2 * SIZE * 8
    futures = [pool.submit(tasks.echo, np.ones(SIZE)) for _ in range(20)]
    del futures
    pool.submit(tasks.noop).result(TIMEOUT)


def test_results_outlive_worker_and_pool() -> None:
    with plait.ProcessPool(2) as pool:
        results = [
            pool.submit(tasks.twice_the_array, np.full(SIZE, i, dtype=np.float64)).result(TIMEOUT)
            for i in range(6)
        ]
        for _ in range(12):  # more deaths than there are seats without such results
            with pytest.raises(plait.WorkerDied):
                pool.submit(tasks.exit_with, 1).result(TIMEOUT)
            results.append(
                pool.submit(tasks.twice_the_array, np.full(SIZE, len(results), dtype=float)).result(
                    TIMEOUT
                )
            )
        for i, result in enumerate(results):
            assert (result == 2 * i).all()
    for i, result in enumerate(results):
        assert (result == 2 * i).all()
        result[:] = 1


def test_a_dead_workers_blocks_are_reclaimed(pool: plait.ProcessPool) -> None:
    base = used(pool)
    for _ in range(8):
        future = pool.submit(both_and_die, np.ones(SIZE), 1)
        assert isinstance(future.exception(TIMEOUT), plait.WorkerDied)
    assert used(pool) <= base + 2 * SIZE * 8


def both_and_die(array: Any, code: int) -> None:
    tasks.exit_with(code)


def test_the_bound_is_told() -> None:
    with plait.ProcessPool(1, shared_memory=4 << 20) as pool:
        error = pool.submit(tasks.total, np.zeros(1 << 20)).exception(TIMEOUT)
        assert isinstance(error, MemoryError)
        assert "shared memory" in str(error)
        error = pool.submit(np.zeros, 1 << 20).exception(TIMEOUT)
        assert isinstance(error, MemoryError)
        assert pool.submit(tasks.total, np.ones(1000)).result(TIMEOUT) == 1000
