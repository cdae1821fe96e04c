"""psycopg and asyncpg against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from eco_support import Pki, Postgres

psycopg = pytest.importorskip("psycopg")
asyncpg = pytest.importorskip("asyncpg")
psycopg_pool = pytest.importorskip("psycopg_pool")


def conninfo(pg: Postgres, **more: str) -> str:
    settings = {"host": pg.host, "port": str(pg.port), "user": pg.user, "dbname": "postgres"}
    settings.update(more)
    return " ".join(f"{k}={v}" for k, v in settings.items())


async def connect(pg: Postgres, **kwargs: Any) -> Any:
    kwargs.setdefault("ssl", False)
    kwargs.setdefault("host", pg.host)
    return await asyncpg.connect(port=pg.port, user=pg.user, database="postgres", **kwargs)


# ---- psycopg: the C library's descriptor under add_reader and add_writer ----


def test_psycopg_queries(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo(postgres)) as conn:
            async with conn.cursor() as cur:
                await cur.execute("create temp table t (id int, body bytea)")
                body = bytes(range(256)) * 8192  # 2 MiB: the socket fills up on the way
                await cur.execute("insert into t values (%s, %s)", (1, body))
                await cur.execute("select id, body from t")
                assert await cur.fetchone() == (1, body)
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await cur.execute("select 1/0")
            await conn.rollback()
            cur = await conn.execute("select generate_series(1, 100000)")
            assert sum(row[0] for row in await cur.fetchall()) == 5000050000

    run(main)


def test_psycopg_copy_and_server_cursor(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo(postgres)) as conn:
            await conn.execute("create temp table c (n int, text text)")
            async with conn.cursor() as cur:
                async with cur.copy("copy c from stdin") as copy:
                    for i in range(50_000):
                        await copy.write_row((i, f"row {i} " + "x" * 50))
                total = 0
                async with cur.copy("copy c to stdout") as copy:
                    async for block in copy:
                        total += bytes(block).count(b"\n")
                assert total == 50_000
            async with conn.cursor(name="on_the_server") as cur:
                await cur.execute("select n from c order by n")
                seen = [row[0] async for row in cur]
            assert seen == list(range(50_000))

    run(main)


def test_psycopg_pipeline(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo(postgres)) as conn:
            async with conn.pipeline():
                cursors = [await conn.execute("select %s::int", (i,)) for i in range(500)]
            assert [(await c.fetchone())[0] for c in cursors] == list(range(500))

    run(main)


def test_psycopg_cancelled_task_cancels_its_query(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        async with (
            await psycopg.AsyncConnection.connect(
                conninfo(postgres, application_name="victim"), autocommit=True
            ) as conn,
            await psycopg.AsyncConnection.connect(conninfo(postgres), autocommit=True) as other,
        ):
            count = "select count(*) from pg_stat_activity where state = 'active' "
            count += "and application_name = 'victim' and query like '%pg_sleep%'"

            async def running() -> int:
                return int((await (await other.execute(count)).fetchone())[0])

            task = asyncio.create_task(conn.execute("select pg_sleep(600)"))
            while not await running():
                pass
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while await running():
                pass
            assert (await (await conn.execute("select 7")).fetchone())[0] == 7

    run(main)


def test_psycopg_notifications(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        connect = psycopg.AsyncConnection.connect
        async with (
            await connect(conninfo(postgres), autocommit=True) as listener,
            await connect(conninfo(postgres), autocommit=True) as speaker,
        ):
            await listener.execute("listen words")

            async def hear() -> list[str]:
                return [n.payload async for n in listener.notifies(timeout=30, stop_after=50)]

            task = asyncio.create_task(hear())
            for i in range(50):
                await speaker.execute("select pg_notify('words', %s)", (f"{i}",))
            got = await task
            # stop_after ends after the batch that reaches it.
            assert got == [str(i) for i in range(50)]

    run(main)


def test_psycopg_pool_under_load(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        async with psycopg_pool.AsyncConnectionPool(
            conninfo(postgres), min_size=2, max_size=8, open=False
        ) as pool:

            async def work(i: int) -> int:
                async with pool.connection() as conn:
                    cur = await conn.execute("select %s::int * 2", (i,))
                    return int((await cur.fetchone())[0])

            assert await asyncio.gather(*(work(i) for i in range(400))) == [
                2 * i for i in range(400)
            ]

    run(main)


def test_psycopg_tls(run: Any, postgres: Postgres, pki: Pki) -> None:
    async def main() -> None:
        info = conninfo(postgres, sslmode="verify-full", sslrootcert=pki.ca_file)
        async with await psycopg.AsyncConnection.connect(info) as conn:
            cur = await conn.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            assert await cur.fetchone() == (True,)
            cur = await conn.execute("select repeat('y', 1000000)")
            assert (await cur.fetchone())[0] == "y" * 1_000_000

    run(main)


# ---- asyncpg: a protocol on the loop's transport ----


def test_asyncpg_queries(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        conn = await connect(postgres)
        try:
            body = bytes(range(256)) * 8192
            assert await conn.fetchval("select $1::bytea", body) == body
            assert await conn.fetchval("select $1::int + 1", 41) == 42
            rows = await conn.fetch("select generate_series(1, 100000) as n")
            assert sum(r["n"] for r in rows) == 5000050000
            with pytest.raises(asyncpg.DivisionByZeroError):
                await conn.fetch("select 1/0")
            async with conn.transaction():
                seen = 0
                async for row in conn.cursor("select generate_series(1, 5000) as n"):
                    seen += row["n"]
                assert seen == 12502500
        finally:
            await conn.close()

    run(main)


def test_asyncpg_unix_socket(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        conn = await connect(postgres, host=postgres.directory)
        assert await conn.fetchval("select inet_client_addr()") is None
        await conn.close()

    run(main)


def test_asyncpg_tls_starts_on_a_plain_connection(run: Any, postgres: Postgres, pki: Pki) -> None:
    async def main() -> None:
        # Its own: HTTP clients name their protocols in those that they are given, and
        # PostgreSQL from 17 on accepts none but its own.
        context = ssl.create_default_context(cafile=pki.ca_file)
        conn = await connect(postgres, host="localhost", ssl=context)
        query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
        assert await conn.fetchval(query) is True
        assert await conn.fetchval("select repeat('z', 3000000)") == "z" * 3_000_000
        await conn.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(postgres, host="localhost", ssl=ssl.create_default_context())

    run(main)


def test_asyncpg_copy(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        conn = await connect(postgres)
        await conn.execute("create temp table c (n int, body text)")
        rows = [(i, f"row {i} " + "x" * 80) for i in range(50_000)]
        await conn.copy_records_to_table("c", records=rows)
        parts: list[bytes] = []

        async def take(data: bytes) -> None:
            parts.append(data)
            await asyncio.sleep(0)  # slower than the server sends

        await conn.copy_from_query("select * from c order by n", output=take)
        lines = b"".join(parts).decode().splitlines()
        assert lines == [f"{n}\t{body}" for n, body in rows]
        await conn.close()

    run(main)


def test_asyncpg_timeout_and_cancellation(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        conn = await connect(postgres)
        with pytest.raises(TimeoutError):
            await conn.fetch("select pg_sleep(600)", timeout=0.1)
        task = asyncio.create_task(conn.fetch("select pg_sleep(600)"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await conn.fetchval("select 5") == 5
        await conn.close()

    run(main)


def test_asyncpg_notifications(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        listener, speaker = await connect(postgres), await connect(postgres)
        got: asyncio.Queue[str] = asyncio.Queue()
        await listener.add_listener("signs", lambda *args: got.put_nowait(args[3]))
        for i in range(50):
            await speaker.execute("select pg_notify('signs', $1)", str(i))
        assert [await got.get() for _ in range(50)] == [str(i) for i in range(50)]
        await listener.close()
        await speaker.close()

    run(main)


def test_asyncpg_pool_under_load(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        async with asyncpg.create_pool(
            host=postgres.host,
            port=postgres.port,
            user=postgres.user,
            database="postgres",
            ssl=False,
            min_size=2,
            max_size=8,
        ) as pool:
            results = await asyncio.gather(
                *(pool.fetchval("select $1::int * 2", i) for i in range(400))
            )
            assert results == [2 * i for i in range(400)]

    run(main)


def test_asyncpg_backend_dies(run: Any, postgres: Postgres) -> None:
    async def main() -> None:
        conn, admin = await connect(postgres), await connect(postgres)
        lost = asyncio.Event()
        conn.add_termination_listener(lambda _conn: lost.set())
        task = asyncio.create_task(conn.fetch("select pg_sleep(600)"))
        pid = conn.get_server_pid()
        query = "select count(*) from pg_stat_activity where pid = $1 and state = 'active'"
        while not await admin.fetchval(query, pid):
            pass
        assert await admin.fetchval("select pg_terminate_backend($1)", pid)
        with pytest.raises(asyncpg.PostgresError):
            await task
        await lost.wait()
        assert conn.is_closed()
        await admin.close()

    run(main)
