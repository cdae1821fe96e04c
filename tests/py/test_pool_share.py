"""Buffers that are placed once and handed to many tasks, and plain bytes out of band."""

from __future__ import annotations

import array
import gc
import os
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest

import plait

TIMEOUT = 100.0
SIZE = 1 << 18


@pytest.fixture
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool


def first(view: Any) -> Any:
    return view[0]


def length(view: Any) -> int:
    return len(view)


def store(view: Any, at: int, value: int) -> None:
    view[at] = value


def keep_it(view: Any) -> None:
    tasks.kept.append(view)


def drop_it() -> None:
    tasks.kept.clear()


def take_and_die(view: Any) -> None:
    os._exit(view[0] & 1)


def used(pool: plait.ProcessPool) -> int:
    """Bytes in use once what workers gave back has been seen, which an allocation does."""
    gc.collect()
    for _ in range(3):
        pool.submit(length, b"x" * 20_000).result(TIMEOUT)
        pool.share(b"")
    return int(pool._figures()["arena_used"])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 1_000_000])
def test_plain_buffers_travel(pool: plait.ProcessPool, kind: Any, size: int) -> None:
    value = kind(os.urandom(size))
    assert pool.submit(length, value).result(TIMEOUT) == size
    result = pool.submit(tasks.echo, value).result(TIMEOUT)
    assert type(result) is kind
    assert result == value
    if kind is not memoryview:  # inside of a tuple it is pickle's, which knows no views
        args, kwargs = pool.submit(tasks.both, value, key=value).result(TIMEOUT)
        assert args == (value,)
        assert kwargs == {"key": value}


@pytest.mark.parametrize("code", ["B", "i", "d"])
def test_a_memoryview_keeps_its_format(pool: plait.ProcessPool, code: str) -> None:
    value = memoryview(array.array(code, range(100)))
    result = pool.submit(tasks.echo, value).result(TIMEOUT)
    assert result.format == code
    assert result.tolist() == value.tolist()


def test_a_strided_memoryview_is_refused(pool: plait.ProcessPool) -> None:
    error = pool.submit(tasks.echo, memoryview(b"abcdef")[::2]).exception(TIMEOUT)
    assert isinstance(error, BufferError)


def test_shared_bytes_are_placed_once(pool: plait.ProcessPool) -> None:
    base = used(pool)
    view = pool.share(b"ab" * SIZE)
    assert view.readonly
    placed = pool._figures()["arena_used"] - base
    assert placed >= 2 * SIZE
    futures = [pool.submit(length, view) for _ in range(200)]
    assert {f.result(TIMEOUT) for f in futures} == {2 * SIZE}
    assert used(pool) - base <= placed
    part = view[10:SIZE]
    assert pool.submit(bytes, part).result(TIMEOUT) == bytes(part)
    del view, part, futures
    assert used(pool) == base


@pytest.mark.parametrize("how", [((True,), {}), ((), {"writable": True})])
def test_writes_are_seen_by_all(pool: plait.ProcessPool, how: Any) -> None:
    positional, named = how
    view = pool.share(bytes(SIZE), *positional, **named)
    assert not view.readonly
    for i in range(20):
        pool.submit(store, view, i, i + 1).result(TIMEOUT)
    assert list(view[:20]) == list(range(1, 21))
    view[0] = 77
    assert pool.submit(first, view).result(TIMEOUT) == 77


def test_read_only_is_for_all(pool: plait.ProcessPool) -> None:
    for view in (pool.share(bytearray(SIZE)), pool.share(bytearray(SIZE), writable=False)):
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1
        error = pool.submit(store, view, 0, 1).exception(TIMEOUT)
        assert isinstance(error, TypeError)
        assert view[0] == 0


def test_the_source_stays_the_callers(pool: plait.ProcessPool) -> None:
    source = bytearray(SIZE)
    view = pool.share(source, writable=True)
    pool.submit(store, view, 0, 7).result(TIMEOUT)
    source[1] = 9
    assert (source[0], view[0], view[1]) == (0, 7, 0)
    source.clear()  # nothing holds its memory


def test_writes_to_parts_reach_the_whole(pool: plait.ProcessPool) -> None:
    np = pytest.importorskip("numpy")
    shared = pool.share(np.zeros((4, SIZE)), writable=True)
    futures = [pool.submit(tasks.fill, shared[i], i + 1) for i in range(4)]
    for future in futures:
        future.result(TIMEOUT)
    assert [row.sum() for row in shared] == [SIZE * (i + 1) for i in range(4)]


def test_what_is_shared_from_a_shared_one_is_placed_anew(pool: plait.ProcessPool) -> None:
    first = pool.share(bytes(SIZE), writable=True)
    second = pool.share(first)
    first[0] = 5
    assert second[0] == 0


def test_arguments_of_share(pool: plait.ProcessPool) -> None:
    with pytest.raises(TypeError):
        pool.share()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.share(b"x", write=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.share(buffer=b"x")  # type: ignore[call-arg]


def test_a_result_is_a_copy_of_what_is_shared(pool: plait.ProcessPool) -> None:
    np = pytest.importorskip("numpy")
    shared = pool.share(np.zeros(SIZE), True)
    result = pool.submit(tasks.echo, shared).result(TIMEOUT)
    result[:] = 1
    assert (shared == 0).all()


def test_read_only_arrays(pool: plait.ProcessPool) -> None:
    np = pytest.importorskip("numpy")
    base = used(pool)
    source = np.arange(SIZE * 2, dtype=np.float64).reshape(2, SIZE)
    shared = pool.share(source)
    assert type(shared) is np.ndarray
    assert not shared.flags.writeable
    assert np.array_equal(shared, source)
    source[:] = 0
    assert shared[1, -1] == SIZE * 2 - 1
    error = pool.submit(tasks.scribble, shared).exception(TIMEOUT)
    assert isinstance(error, ValueError)
    assert pool.submit(tasks.total, shared[1]).result(TIMEOUT) == shared[1].sum()
    del shared, error
    assert used(pool) == base


def test_deaths_cost_the_shared_nothing(pool: plait.ProcessPool) -> None:
    base = used(pool)
    view = pool.share(b"\1" * SIZE)
    for _ in range(6):
        assert isinstance(pool.submit(take_and_die, view).exception(TIMEOUT), plait.WorkerDied)
        assert pool.submit(first, view).result(TIMEOUT) == 1
    del view
    assert used(pool) == base


def test_a_worker_may_keep_it() -> None:
    with plait.ProcessPool(1) as pool:
        base = used(pool)
        view = pool.share(b"\5" * SIZE)
        pool.submit(keep_it, view).result(TIMEOUT)
        del view
        assert used(pool) >= base + SIZE
        assert pool.submit(tasks.echo, b"").result(TIMEOUT) == b""
        pool.submit(drop_it).result(TIMEOUT)
        assert used(pool) == base


def test_it_outlives_the_pool() -> None:
    with plait.ProcessPool(1) as pool:
        view = pool.share(b"\5" * SIZE)
    assert view[-1] == 5
    with pytest.raises(RuntimeError):
        pool.share(b"x")


@pytest.mark.parametrize("value", [5, "text", [1, 2], None])
def test_what_has_no_buffer_is_refused(pool: plait.ProcessPool, value: object) -> None:
    with pytest.raises(TypeError, match="buffer"):
        pool.share(value)


def test_the_bound_holds() -> None:
    with (
        plait.ProcessPool(1, shared_memory=1 << 20) as pool,
        pytest.raises(MemoryError, match="shared memory"),
    ):
        pool.share(bytes(2 << 20))
