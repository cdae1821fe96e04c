"""Arrow's buffers through a pool's shared memory: one copy on the way out, none back."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest

import plait

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed for this Python")

TIMEOUT = 100.0
N = 100_000
"""Of a column: so large that each of its buffers has a block of its own."""


@pytest.fixture(scope="module")
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool


@functools.cache
def arrays() -> dict[str, Any]:
    return {
        "whole numbers": pa.array(range(N)),
        "with nulls": pa.array([None if i % 7 == 0 else i for i in range(N)]),
        "floats": pa.array([i / 3 for i in range(N)]),
        "texts": pa.array([f"text {i}" for i in range(N)]),
        "lists": pa.array([[i] * (i % 5) for i in range(N)]),
        "dictionary": pa.array(["a", "b", "c", "d"] * (N // 4)).dictionary_encode(),
        "slice": pa.array(range(2 * N)).slice(N // 2, N),
        "small": pa.array([1, 2, None]),
        "empty": pa.array([], pa.int64()),
    }


def addresses(value: Any) -> list[int]:
    """Where the large buffers of an array or table lie."""
    columns = value.columns if hasattr(value, "columns") else [value]
    chunks = [c for column in columns for c in getattr(column, "chunks", [column])]
    found = [buffer for chunk in chunks for buffer in chunk.buffers() if buffer is not None]
    return [buffer.address for buffer in found if buffer.size >= 1 << 16]


def in_pool_memory(places: list[int]) -> list[bool]:
    """Whether addresses of this process lie in a memory that pools share."""
    ranges = []
    with open("/proc/self/maps", encoding="ascii") as file:
        for line in file:
            if "memfd:plait" in line:
                ranges.append([int(end, 16) for end in line.split()[0].split("-")])
    return [any(low <= place < high for low, high in ranges) for place in places]


def arrived(value: Any) -> tuple[list[bool], Any]:
    return in_pool_memory(addresses(value)), value


@pytest.mark.parametrize("name", arrays())
def test_round_trip(pool: plait.ProcessPool, name: str) -> None:
    value = arrays()[name]
    result = pool.submit(tasks.echo, value).result(TIMEOUT)
    assert type(result) is type(value)
    assert result.equals(value)
    result.validate(full=True)


def test_a_table_is_mapped_on_both_sides(pool: plait.ProcessPool) -> None:
    table = pa.table({name: a for name, a in arrays().items() if len(a) == N})
    mine = addresses(table)
    assert len(mine) >= 6
    assert not any(in_pool_memory(mine))
    there, result = pool.submit(arrived, table).result(TIMEOUT)
    assert result.equals(table)
    result.validate(full=True)
    assert len(there) == len(mine)
    assert all(there), "the worker's table is a copy"
    here = in_pool_memory(addresses(result))
    assert len(here) == len(mine)
    assert all(here), "the result is a copy"


def used(pool: plait.ProcessPool) -> int:
    """Bytes of the parent's part in use, once what workers gave back has been seen."""
    gc.collect()
    for _ in range(3):  # an allocation looks
        pool.submit(len, b"x" * 20_000).result(TIMEOUT)
    return int(pool._figures()["arena_used"])


def test_what_comes_back_unchanged_is_not_copied(pool: plait.ProcessPool) -> None:
    array = pa.array(range(N * 10))
    before = used(pool)
    result = pool.submit(tasks.echo, array).result(TIMEOUT)
    # The block that was sent is the result's: a copy would lie in the worker's part.
    assert used(pool) >= before + array.nbytes
    assert result.equals(array)


def test_shared_tables_and_their_parts(pool: plait.ProcessPool) -> None:
    table = pa.table({"x": pa.array(range(N)), "y": pa.array([str(i) for i in range(N)])})
    shared = pool.share(table)
    assert shared.equals(table)
    placed = pool._figures()["arena_used"]
    futures = [pool.submit(arrived, shared) for _ in range(10)]
    futures += [pool.submit(arrived, shared.column("x").chunk(0)) for _ in range(10)]
    for future in futures:
        there, _ = future.result(TIMEOUT)
        assert there
        assert all(there)
    assert pool._figures()["arena_used"] <= placed + 3 * table.nbytes


def test_blocks_return_when_tables_die(pool: plait.ProcessPool) -> None:
    base = used(pool)
    result: Any = None
    for _ in range(20):
        result = pool.submit(tasks.echo, pa.array(range(N))).result(TIMEOUT)
    part = result.slice(10, 5)
    del result
    assert part.to_pylist() == list(range(10, 15))
    del part
    assert used(pool) <= base
