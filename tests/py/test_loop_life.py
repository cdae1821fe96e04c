"""The life of loops: leaks, garbage, forks, interpreters, executors, and how runs begin."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
from loop_support import Echo
from sanitizer import SANITIZED

import plait


def rss() -> int:
    """Resident memory of this process, in bytes; 0 where a sanitizer keeps what is freed."""
    if SANITIZED:
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def fds() -> int:
    """How many descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


def run_child(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter, for at most 100 seconds."""
    return subprocess.run(
        [sys.executable, *args, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
        check=False,
    )


# ---- leaks ----


@pytest.mark.slow
def test_a_thousand_loops_leave_nothing() -> None:
    def one() -> None:
        loop = plait.new_event_loop()
        loop.call_later(60, print)
        loop.call_soon(print)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        for _ in range(50):
            one()
        gc.collect()
        before = fds(), len(gc.get_objects()), rss()
        for _ in range(1000):
            one()
        gc.collect()
        after = fds(), len(gc.get_objects()), rss()
    assert after[0] == before[0]
    assert after[1] - before[1] < 50
    assert after[2] - before[2] < 4 << 20


async def churn(server_port: int, count: int) -> None:
    """Open, use and reset connections, 50 at a time."""
    loop = asyncio.get_running_loop()
    linger = struct.pack("ii", 1, 0)
    for start in range(0, count, 50):
        socks = []
        for _ in range(50):
            sock = socket.socket()
            sock.setblocking(False)
            socks.append(sock)
        await asyncio.gather(*(loop.sock_connect(s, ("127.0.0.1", server_port)) for s in socks))
        await asyncio.gather(*(loop.sock_sendall(s, b"x" * 100) for s in socks))
        answers = await asyncio.gather(*(loop.sock_recv(s, 200) for s in socks))
        assert answers == [b"x" * 100] * 50
        for i, sock in enumerate(socks):
            if (start + i) % 3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.close()


@pytest.mark.parametrize("kind", ["protocol", "streams"])
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(5_000, marks=pytest.mark.slow),
        pytest.param(100_000, marks=[pytest.mark.stress, pytest.mark.timeout(300)]),
    ],
)
def test_connections_leave_nothing(loop: plait.Loop, kind: str, count: int) -> None:
    alive = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal alive
        alive += 1
        try:
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            alive -= 1
            writer.close()

    async def main() -> list[tuple[int, int, int]]:
        if kind == "protocol":
            server = await loop.create_server(Echo, "127.0.0.1", 0)
        else:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        marks = []
        for n in (1000, count):
            await churn(port, n)
            while Echo.alive or alive:
                await asyncio.sleep(0)
            for _ in range(3):
                await asyncio.sleep(0)
            gc.collect()
            marks.append((fds(), len(gc.get_objects()), rss()))
        server.close()
        return marks

    before, after = loop.run_until_complete(main())
    assert after[0] <= before[0]
    assert after[1] - before[1] < 100
    assert after[2] - before[2] < 8 << 20


@pytest.mark.isolated
def test_threads_storm_the_loop() -> None:
    script = Path(__file__).parent.parent / "isolated" / "loop_storm.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["executor 2", "pools 4"]


# ---- garbage ----


def test_a_loop_dropped_without_close_is_collected() -> None:
    gc.collect()
    before = fds()
    loop = plait.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport, protocol = loop.run_until_complete(loop.connect_accepted_socket(Echo, ours))
    loop.add_reader(theirs, print, loop)
    loop.call_soon(print, loop)
    loop.call_later(60, print, loop)
    loop.call_soon_threadsafe(print, loop)
    future = loop.create_future()
    future.add_done_callback(functools.partial(print, loop))
    gone = [weakref.ref(x) for x in (loop, transport, protocol, future, server)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del loop, server, transport, protocol, future, ours
        gc.collect()
        gc.collect()
    assert [one() for one in gone] == [None] * 5
    theirs.close()
    assert fds() == before
    Echo.alive = 0


def test_a_dropped_loop_warns() -> None:
    loop = plait.new_event_loop()
    with pytest.warns(ResourceWarning, match="unclosed event loop"):  # noqa: PT031
        del loop
        gc.collect()


def test_a_loop_that_was_not_made_leaves_nothing_to_tell(loop: plait.Loop) -> None:
    before = fds()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for make in (
            lambda: plait.Loop("epoll"),  # type: ignore[misc]
            lambda: plait.Loop(backends="epoll"),  # type: ignore[call-arg]
            lambda: plait.Loop(backend="iocp"),
        ):
            with pytest.raises((TypeError, ValueError)):
                make()
            gc.collect()
    assert told == []
    assert fds() == before


def test_cycles_of_transports_protocols_and_futures_are_collected(loop: plait.Loop) -> None:
    async def main() -> list[weakref.ref[Any]]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        transport, protocol = await loop.connect_accepted_socket(Echo, ours)
        future = loop.create_future()
        protocol.future, future.owner = future, protocol  # type: ignore[attr-defined]
        future.add_done_callback(lambda _future: (transport, protocol))
        handle = loop.call_later(60, lambda: (transport, protocol, future))
        handle.cancel()
        transport.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        theirs.close()
        return [weakref.ref(x) for x in (transport, protocol)]

    gc.collect()
    gone = loop.run_until_complete(main())
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_an_abandoned_connection_is_kept_while_the_loop_lives(loop: plait.Loop) -> None:
    """The poller owns it: nobody else needs to."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop.run_until_complete(loop.connect_accepted_socket(Echo, ours))
    del ours
    gc.collect()
    theirs.setblocking(False)
    theirs.send(b"there?")
    answer = asyncio.wait_for(loop.sock_recv(theirs, 100), 60)
    assert loop.run_until_complete(answer) == b"there?"
    theirs.close()
    loop.run_until_complete(asyncio.wait_for(Echo.reached(0), 60))


# ---- forks ----


def test_a_fork_while_the_loop_runs(loop: plait.Loop) -> None:
    """The child is refused the loop, makes its own, and the parent's is untouched."""

    async def main() -> tuple[int, bytes]:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, b"before")
        assert await loop.sock_recv(sock, 100) == b"before"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                loop._thread_id = None
                try:
                    loop.run_forever()
                except RuntimeError as error:
                    code = 10 if "fork" in str(error) else 2
                if code == 10 and plait.run(child()) == "child":
                    code = 0
                server.close()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    loop.close()
            finally:
                os._exit(code)
        _, status = await loop.run_in_executor(None, os.waitpid, pid, 0)
        await loop.sock_sendall(sock, b"after")
        answer = await loop.sock_recv(sock, 100)
        sock.close()
        server.close()
        return os.waitstatus_to_exitcode(status), answer

    async def child() -> str:
        await asyncio.sleep(0)
        return "child"

    assert loop.run_until_complete(main()) == (0, b"after")


@pytest.mark.isolated
def test_a_child_that_goes_on_is_told_why_it_cannot() -> None:
    code = """
    import asyncio, os, warnings
    import plait
    warnings.simplefilter("ignore")
    async def main():
        pid = os.fork()
        await asyncio.sleep(0)
        if pid == 0:
            os._exit(5)
        _, status = await asyncio.get_running_loop().run_in_executor(None, os.waitpid, pid, 0)
        return os.waitstatus_to_exitcode(status)
    parent = os.getpid()
    loop = plait.new_event_loop()
    try:
        print(loop.run_until_complete(main()))
    except RuntimeError as error:
        assert os.getpid() != parent
        assert "cannot run the event loop" in str(error), error
        assert "fork" in str(error), error
        os._exit(7)
    loop.close()
    """
    done = run_child(code)
    # From 3.14 on the child's tasks miss their running loop first, and say so.
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


# ---- interpreters ----


@pytest.mark.isolated
def test_a_sub_interpreter_works_or_refuses(sub_interpreters: None) -> None:
    code = """
    import sys
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    import plait
    interp = interpreters.create()
    result = interpreters.run_string(interp, '''if True:
        try:
            import asyncio, plait
        except ImportError as error:
            print("refused", error)
        else:
            async def main():
                told = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_later(0.001, told.set_result, "ran")
                return await told
            print(plait.run(main()))
    ''')
    assert result is None, result
    interpreters.destroy(interp)
    async def main():
        await asyncio.sleep(0)
    import asyncio
    plait.run(main())
    print("parent")
    """
    done = run_child(code)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.split("\n")[:2]
    assert first == "ran" or first.startswith("refused"), done.stdout
    assert last == "parent"


@pytest.mark.isolated
def test_the_interpreter_ends_with_a_loop_open() -> None:
    code = """
    import asyncio, plait, socket
    loop = plait.new_event_loop()
    loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0))
    loop.call_soon(print, "never")
    loop.call_later(60, print, "never")
    keep = loop.create_future()
    print("end")
    """
    done = run_child(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# ---- executors and asynchronous generators ----


def _square(x: int) -> int:
    return x * x


def _fail(x: int) -> int:
    raise LookupError(x)


@pytest.mark.parametrize("kind", ["default", "threads", "processes"])
def test_executors(loop: plait.Loop, kind: str) -> None:
    async def main() -> None:
        executor: concurrent.futures.Executor | None = None
        if kind == "threads":
            executor = concurrent.futures.ThreadPoolExecutor(4)
        elif kind == "processes":
            context = multiprocessing.get_context("spawn")
            executor = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
        calls = [loop.run_in_executor(executor, _square, i) for i in range(50)]
        assert await asyncio.gather(*calls) == [i * i for i in range(50)]
        with pytest.raises(LookupError):
            await loop.run_in_executor(executor, _fail, 1)
        if executor is not None:
            executor.shutdown()
        else:
            await loop.shutdown_default_executor()

    loop.run_until_complete(main())


def test_asynchronous_generators_are_shut_down() -> None:
    told = []

    async def numbers(name: str) -> Any:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            told.append(name)

    async def main() -> None:
        async for _ in numbers("left"):
            break
        gc.collect()
        while not told:  # a task of its own closes the generator that was left
            await asyncio.sleep(0)
        kept = numbers("kept")
        assert await kept.__anext__() == 1
        asyncio.get_running_loop().kept = kept  # type: ignore[attr-defined]

    plait.run(main())
    assert sorted(told) == ["kept", "left"]


# ---- how runs begin ----


async def _name_of_loop() -> str:
    loop = asyncio.get_running_loop()
    return f"{type(loop).__module__}.{type(loop).__qualname__}"


def test_the_ways_to_run() -> None:
    assert plait.run(_name_of_loop()) == "plait.Loop"
    with asyncio.Runner(loop_factory=plait.new_event_loop) as runner:
        assert runner.run(_name_of_loop()) == "plait.Loop"
        assert runner.run(_name_of_loop()) == "plait.Loop"
    if sys.version_info >= (3, 12):
        assert asyncio.run(_name_of_loop(), loop_factory=plait.new_event_loop) == "plait.Loop"


@pytest.mark.isolated
def test_install() -> None:
    code = """
    import asyncio, plait
    plait.install()
    async def main():
        return type(asyncio.get_running_loop())
    assert asyncio.run(main()) is plait.Loop
    loop = asyncio.new_event_loop()
    assert type(loop) is plait.Loop
    loop.close()
    """
    done = run_child(code, "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")


def test_run_refuses_what_it_cannot_run() -> None:
    async def inner() -> None:
        coroutine = asyncio.sleep(0)
        try:
            with pytest.raises(RuntimeError, match="running event loop"):
                plait.run(coroutine)
        finally:
            coroutine.close()

    plait.run(inner())
    with pytest.raises((TypeError, ValueError), match=r"coroutine|awaitable"):
        plait.run(5)  # type: ignore[arg-type]

    async def fails() -> None:
        raise LookupError("out")

    with pytest.raises(LookupError, match="out"):
        plait.run(fails())


def test_run_in_debug_mode() -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert plait.run(main(), debug=True)
    assert not plait.run(main(), debug=False)


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("auto", "epoll"):
        loop = plait.Loop(backend=backend)
        assert loop.backend == loop.statistics()["backend"] == "epoll"
        loop.close()
    with pytest.raises(ValueError, match=r"backend must be one of .*'kqueue'"):
        plait.Loop(backend="kqueue")
    monkeypatch.setenv("PLAIT_BACKEND", "select")
    with pytest.raises(ValueError, match=r"PLAIT_BACKEND must be one of .*'select'"):
        plait.Loop()


def test_many_tasks_and_all_tasks(loop: plait.Loop) -> None:
    async def main() -> None:
        event = asyncio.Event()
        tasks = [loop.create_task(event.wait(), name=f"t{i}") for i in range(1000)]
        assert asyncio.current_task() is not None
        assert len(asyncio.all_tasks()) == 1001
        assert {t.get_name() for t in tasks} <= {t.get_name() for t in asyncio.all_tasks()}
        event.set()
        assert await asyncio.gather(*tasks) == [True] * 1000
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            inner = group.create_task(asyncio.sleep(0, "x"))
        assert inner.result() == "x"

    loop.run_until_complete(main())


def test_a_task_has_one_loop(loop: Any) -> None:
    async def nothing() -> None:
        pass

    coroutine = nothing()
    with pytest.raises(TypeError, match="loop"):
        loop.create_task(coroutine, loop=loop)
    coroutine.close()


def test_a_task_factory(loop: plait.Loop) -> None:
    made = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> Any:
        made.append(kwargs.get("name"))
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    assert loop.run_until_complete(loop.create_task(asyncio.sleep(0, 5))) == 5
    with pytest.raises(TypeError):
        loop.set_task_factory(1)  # type: ignore[arg-type]
    loop.set_task_factory(None)
    assert len(made) == 1


def test_a_loop_made_in_one_thread_runs_in_another() -> None:
    loop = plait.new_event_loop()
    got = []

    def work() -> None:
        got.append(loop.run_until_complete(asyncio.sleep(0, "x")))
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert got == ["x"]


def test_a_descriptor_left_behind_in_the_loop_does_not_stop_it(loop: plait.Loop) -> None:
    # A reader whose socket was closed without remove_reader keeps its place in the table, and
    # the next accepted connection gets the same number.
    heard: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _loop, context: heard.append(context))

    async def main() -> None:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        left, right = socket.socketpair()
        with right, socket.create_connection(address) as client:
            left.setblocking(False)
            loop.add_reader(left, lambda: None)
            number = left.fileno()
            left.close()
            while not heard and loop._owner_of_fd(number) is None:
                await asyncio.sleep(0)
            client.close()
        loop._remove_reader(number)
        server.close()

    loop.run_until_complete(asyncio.wait_for(main(), 60))
    for context in heard:
        assert isinstance(context["exception"], OSError), context
