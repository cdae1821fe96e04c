"""Python 3.14's views of a running program: print_call_graph, and asyncio ps from outside."""

from __future__ import annotations

import asyncio
import io
import os
import sys

import pytest

import plait

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="Python 3.14 has these first")


async def child(release: asyncio.Event) -> None:
    await release.wait()


async def parent(release: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(child(release), name="first kid")
        group.create_task(child(release), name="second kid")


def test_tasks_are_seen_from_within() -> None:
    async def main() -> None:
        release = asyncio.Event()
        task = asyncio.create_task(parent(release), name="their parent")
        while len(asyncio.all_tasks()) < 4:
            await asyncio.sleep(0)
        text = io.StringIO()
        kid = next(t for t in asyncio.all_tasks() if t.get_name() == "first kid")
        asyncio.print_call_graph(kid, file=text)
        assert "first kid" in text.getvalue()
        assert "their parent" in text.getvalue()
        release.set()
        await task

    plait.run(main())


@pytest.mark.isolated
@pytest.mark.parametrize("command", ["ps", "pstree"])
def test_tasks_are_seen_from_outside(command: str) -> None:
    async def main() -> None:
        release = asyncio.Event()
        task = asyncio.create_task(parent(release), name="their parent")
        while len(asyncio.all_tasks()) < 4:
            await asyncio.sleep(0)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncio", command, str(os.getpid())),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out = (await process.communicate())[0].decode()
        release.set()
        await task
        if "permission" in out.lower():
            pytest.skip(f"reading another process is not permitted: {out.strip()}")
        assert process.returncode == 0, out
        for name in ("their parent", "first kid", "second kid", "TaskGroup"):
            assert name in out

    plait.run(main())
