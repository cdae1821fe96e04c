"""redis-py's asyncio client against a real Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

redis = pytest.importorskip("redis.asyncio")

if TYPE_CHECKING:
    from eco_support import Pki, Redis


def connect(server: Redis, **kwargs: Any) -> Any:
    return redis.Redis(host="127.0.0.1", port=server.port, **kwargs)


def test_commands_and_binary_values(run: Any, redis_server: Redis) -> None:
    async def main() -> None:
        big = bytes(range(256)) * 16384  # 4 MiB: many reads, many writes
        async with connect(redis_server) as r:
            await r.flushdb()
            assert await r.set("k", b"v") is True
            assert await r.get("k") == b"v"
            assert await r.get("absent") is None
            await r.set("big", big)
            assert await r.get("big") == big
            await r.hset("h", mapping={"a": 1, "b": 2})
            assert await r.hgetall("h") == {b"a": b"1", b"b": b"2"}
            with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
                await r.incr("h")

    run(main)


def test_unix_socket(run: Any, redis_server: Redis) -> None:
    async def main() -> None:
        async with redis.Redis(unix_socket_path=redis_server.unix_socket) as r:
            assert await r.echo("over a path") == b"over a path"

    run(main)


def test_tls(run: Any, redis_server: Redis, pki: Pki) -> None:
    if redis_server.tls_port is None:
        pytest.skip("this redis-server was built without TLS")

    async def main() -> None:
        big = b"x" * (1 << 20)
        async with redis.Redis(
            host="localhost", port=redis_server.tls_port, ssl=True, ssl_ca_certs=pki.ca_file
        ) as r:
            await r.set("tls", big)
            assert await r.get("tls") == big
        async with redis.Redis(host="localhost", port=redis_server.tls_port, ssl=True) as r:
            with pytest.raises(redis.ConnectionError, match=r"(?i)certificate verify failed"):
                await r.ping()

    run(main)


def test_pipeline_and_transaction(run: Any, redis_server: Redis) -> None:
    async def main() -> None:
        async with connect(redis_server, decode_responses=True) as r:
            await r.flushdb()
            async with r.pipeline(transaction=False) as pipe:
                for i in range(2000):
                    pipe.set(f"p{i}", i)
                    pipe.get(f"p{i}")
                answers = await pipe.execute()
            assert answers[1::2] == [str(i) for i in range(2000)]

            async def add_one(pipe: Any) -> None:
                value = int(await pipe.get("n"))
                await asyncio.sleep(0)  # lets the other tasks spoil this one's try
                pipe.multi()
                pipe.set("n", value + 1)

            await r.set("n", 0)
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(r.transaction(add_one, "n"))
            assert await r.get("n") == "10"

    run(main)


def test_many_clients_share_a_pool(run: Any, redis_server: Redis) -> None:
    async def main() -> None:
        pool = redis.BlockingConnectionPool(
            host="127.0.0.1", port=redis_server.port, max_connections=20, timeout=30
        )
        async with redis.Redis.from_pool(pool) as r:
            await r.delete("counter")

            async def client(i: int) -> int:
                last = 0
                for _ in range(20):
                    last = await r.incr("counter")
                    assert await r.echo(f"{i}") == str(i).encode()
                return int(last)

            results = await asyncio.gather(*(client(i) for i in range(100)))
            assert max(results) == 2000

    run(main)


def test_publish_and_subscribe(run: Any, redis_server: Redis) -> None:
    async def main() -> None:
        async with connect(redis_server) as r, r.pubsub() as sub:
            await sub.subscribe("news")
            assert (await sub.get_message(timeout=10))["type"] == "subscribe"
            got = []

            async def listen() -> None:
                async for message in sub.listen():
                    got.append(message["data"])
                    if message["data"] == b"last":
                        return

            listener = asyncio.create_task(listen())
            for i in range(500):
                await r.publish("news", f"{i}")
            await r.publish("news", "last")
            await listener
            assert got == [str(i).encode() for i in range(500)] + [b"last"]
            assert await sub.get_message(timeout=0.01, ignore_subscribe_messages=True) is None

    run(main)


def test_cancelled_wait_leaves_a_usable_client(run: Any, redis_server: Redis) -> None:
    async def main() -> None:
        async with connect(redis_server) as r:
            await r.delete("list")
            waiting = asyncio.create_task(r.blpop("list", timeout=0))
            while not await r.client_list(_type="normal") or not any(
                c["cmd"] == "blpop" for c in await r.client_list(_type="normal")
            ):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await r.rpush("list", "one")
            assert await r.blpop("list", timeout=5) == (b"list", b"one")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await r.blpop("list", timeout=0)
            assert await r.ping()

    run(main)


def test_socket_timeout(run: Any, redis_server: Redis) -> None:
    async def main() -> None:
        async with connect(redis_server, socket_timeout=0.05, retry=None) as r:
            with pytest.raises(redis.TimeoutError):
                await r.execute_command("BLPOP", "nothing-there", 0)
        async with connect(redis_server) as r:
            assert await r.ping()

    run(main)


def test_killed_connection_is_replaced(run: Any, redis_server: Redis) -> None:
    async def main() -> None:
        async with connect(redis_server) as admin, connect(redis_server) as r:
            victim = await r.client_id()
            await admin.client_kill_filter(_id=victim)
            try:
                await r.ping()
            except redis.ConnectionError:  # told of the loss by the first use, or healed it
                pass
            assert await r.ping()
            assert await r.client_id() != victim

    run(main)


def test_nobody_listens(run: Any) -> None:
    from eco_support import free_port

    async def main() -> None:
        async with redis.Redis(host="127.0.0.1", port=free_port(), retry=None) as r:
            with pytest.raises(redis.ConnectionError, match=r"127\.0\.0\.1"):
                await r.ping()

    run(main)
