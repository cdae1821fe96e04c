"""Child processes: many short ones, races with their end, and nobody's SIGCHLD."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import plait

PIPE = asyncio.subprocess.PIPE
TRUE = "/bin/true"


@pytest.mark.slow
def test_two_thousand_short_children(loop: plait.Loop, no_leaks: None) -> None:
    pids: set[int] = set()

    async def main() -> None:
        room = asyncio.Semaphore(8)

        async def one(number: int) -> int:
            async with room:
                child = await asyncio.create_subprocess_exec(
                    "/bin/sh", "-c", f"echo {number}; exit {number % 7}", stdout=PIPE
                )
                out, _ = await child.communicate()
                assert out == b"%d\n" % number
                assert child.returncode == number % 7
                pids.add(child.pid)
                return number

        assert sum(await asyncio.gather(*map(one, range(2000)))) == sum(range(2000))

    loop.run_until_complete(asyncio.wait_for(main(), 280))
    loop.close()
    for pid in pids:  # none is left to be reaped
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


@pytest.mark.parametrize("how", ["kill", "terminate", "send_signal"])
def test_kill_races_with_the_end(loop: plait.Loop, how: str) -> None:
    """A signal to a child that ends at that moment reaches it or nobody, and raises nothing."""

    async def main() -> None:
        codes = set()
        for turn in range(40):
            child = await asyncio.create_subprocess_exec(TRUE)
            for _ in range(turn % 4):
                await asyncio.sleep(0)
            with contextlib.suppress(ProcessLookupError):
                if how == "send_signal":
                    child.send_signal(signal.SIGUSR1)
                else:
                    getattr(child, how)()
            codes.add(await child.wait())
            # Afterwards the number is another process's, or nobody's.
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        assert codes <= {0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1}

    loop.run_until_complete(asyncio.wait_for(main(), 100))


def test_kill_before_wait_and_many_waiters(loop: plait.Loop) -> None:
    async def main() -> None:
        child = await asyncio.create_subprocess_exec("sleep", "600")
        waiters = [asyncio.create_task(child.wait()) for _ in range(5)]
        gone = asyncio.create_task(child.wait())
        await asyncio.sleep(0)
        gone.cancel()
        child.kill()
        assert await asyncio.gather(*waiters) == [-signal.SIGKILL] * 5
        assert gone.cancelled()
        assert await child.wait() == -signal.SIGKILL

    loop.run_until_complete(asyncio.wait_for(main(), 100))


def test_signal_handlers_of_children_are_the_programs(loop: plait.Loop) -> None:
    """Children are watched without SIGCHLD: neither is it taken, nor needed."""
    heard: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: heard.append(number))
    try:
        mine = signal.getsignal(signal.SIGCHLD)

        async def main() -> None:
            child = await asyncio.create_subprocess_exec(TRUE)
            assert signal.getsignal(signal.SIGCHLD) is mine
            assert await child.wait() == 0

        loop.run_until_complete(asyncio.wait_for(main(), 100))
        assert signal.getsignal(signal.SIGCHLD) is mine
        # Even one that is blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        loop.run_until_complete(asyncio.wait_for(main(), 100))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, before)


def test_children_of_a_loop_in_another_thread() -> None:
    async def main() -> tuple[bytes, int | None]:
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        out, _ = await child.communicate(b"through the cat")
        return out, child.returncode

    got = []
    threads = [threading.Thread(target=lambda: got.append(plait.run(main()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert got == [(b"through the cat", 0)] * 3


@pytest.mark.filterwarnings("ignore:.*preexec_fn:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_arguments_of_popen(
    any_loop_factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    code = (
        "import os, sys; print(os.getcwd(), os.environ['NAME'], os.getpgid(0) == os.getpid(), "
        "os.nice(0), os.read(int(sys.argv[1]), 9), oct(os.umask(0)), sys.stdin.readable())"
    )
    read, write = os.pipe()
    os.write(write, b"inherited")
    log = tmp_path / "log"
    niceness = os.nice(0)

    async def main() -> tuple[bytes, bytes, int | None]:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", code, str(read)),
            stdin=subprocess.DEVNULL,
            stdout=PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env={"NAME": "value"},
            pass_fds=(read,),
            preexec_fn=lambda: log.write_text(str(os.nice(3))) and None,
            umask=0o27,
            restore_signals=True,
            close_fds=True,
            limit=1000,
            process_group=0,
        )
        out, err = await child.communicate()
        return out, err, child.returncode

    with asyncio.Runner(loop_factory=any_loop_factory) as runner:
        out, err, returned = runner.run(main())
    os.close(read)
    os.close(write)
    assert (err, returned) == (None, 0), out
    nice = min(niceness + 3, 19)
    assert out.decode().split("\n")[0] == (f"{tmp_path} value True {nice} b'inherited' 0o27 True")
    assert log.read_text() == str(nice)


def test_more_arguments_of_popen(any_loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    root = os.geteuid() == 0
    changed = {"user": 65534, "group": 65534, "extra_groups": [1, 2]} if root else {}
    user, group = (65534, 65534) if root else (os.geteuid(), os.getegid())
    with open(os.devnull) as null:
        os.set_inheritable(null.fileno(), True)
        script = (
            "read -r end_of_input; "  # its pipes are looked at while it lives
            f'[ -e /proc/self/fd/{null.fileno()} ] && echo "$0 $(id -u) $(id -g) $(id -G)" && '
            "[ $(cut -d' ' -f6 /proc/$$/stat) = $$ ] && echo session"
        )

        async def main() -> tuple[bytes, int | None]:
            child = await asyncio.create_subprocess_exec(
                *("another-name", "-c", script),
                executable="/bin/sh",
                stdin=PIPE,
                stdout=PIPE,
                pipesize=8192,
                start_new_session=True,
                close_fds=False,
                **changed,  # type: ignore[arg-type]
            )
            assert child.stdin is not None
            stdin = child.stdin.transport.get_extra_info("pipe")
            # A pair of sockets where the interpreter takes one.
            if not isinstance(stdin, socket.socket) and stat.S_ISFIFO(
                os.fstat(stdin.fileno()).st_mode
            ):
                assert fcntl.fcntl(stdin, fcntl.F_GETPIPE_SZ) == 8192
            out, _ = await child.communicate(b"")
            return out, child.returncode

        with asyncio.Runner(loop_factory=any_loop_factory) as runner:
            out, returned = runner.run(main())
    assert returned == 0, out
    line, session = out.decode().splitlines()
    assert session == "session"
    name, *ids = line.split()
    assert name == "another-name"
    assert ids[:2] == [str(user), str(group)]
    if root:
        assert sorted(ids[2:]) == ["1", "2", "65534"]


def test_what_asyncio_refuses_of_popen(loop: plait.Loop) -> None:
    async def main() -> None:
        for wrong in ({"universal_newlines": True}, {"shell": True}, {"bufsize": 1}):
            with pytest.raises(ValueError, match="must be"):
                await asyncio.create_subprocess_exec(TRUE, **wrong)  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/no/such/program")
        with pytest.raises(PermissionError):
            await asyncio.create_subprocess_exec("/")
        child = await asyncio.create_subprocess_shell("exit 3")
        assert await child.wait() == 3

    loop.run_until_complete(main())


def test_a_child_outlives_its_cancelled_task(loop: plait.Loop) -> None:
    async def main() -> None:
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        waiting = asyncio.create_task(child.communicate())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        child.kill()
        assert await child.wait() == -signal.SIGKILL

    loop.run_until_complete(asyncio.wait_for(main(), 100))


def test_a_large_conversation(loop: plait.Loop) -> None:
    async def main() -> None:
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        data = os.urandom(1 << 16) * 200
        out, _ = await child.communicate(data)
        assert out == data

    loop.run_until_complete(asyncio.wait_for(main(), 100))


def test_somebody_else_reaps_the_child(loop: plait.Loop) -> None:
    async def main() -> None:
        child = await asyncio.create_subprocess_exec("sleep", "600")
        os.kill(child.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # 3.11 waits in a thread
            os.waitpid(child.pid, 0)
        # 255 is what asyncio documents for a status that it cannot know.
        assert await child.wait() in (255, -signal.SIGKILL)

    loop.run_until_complete(asyncio.wait_for(main(), 100))


def test_the_subprocess_interfaces_hold(loop: plait.Loop) -> None:
    """The low-level calls, with a protocol of the program's own."""

    class Tells(asyncio.SubprocessProtocol):
        def __init__(self) -> None:
            self.data: dict[int, bytes] = {}
            self.told: list[str] = []
            self.lost = asyncio.get_running_loop().create_future()

        def pipe_data_received(self, fd: int, data: bytes) -> None:
            self.data[fd] = self.data.get(fd, b"") + data

        def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
            self.told.append(f"pipe {fd} {exc}")

        def process_exited(self) -> None:
            self.told.append("exited")

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    async def main() -> None:
        command = "read x; echo $x; echo e >&2; exit 4"
        for transport, protocol in (
            await loop.subprocess_exec(Tells, "/bin/sh", "-c", command),
            await loop.subprocess_shell(Tells, command),
        ):
            assert isinstance(transport, asyncio.SubprocessTransport)
            stdin = transport.get_pipe_transport(0)
            assert isinstance(stdin, asyncio.WriteTransport)
            assert isinstance(transport.get_pipe_transport(1), asyncio.ReadTransport)
            stdin.write(b"word\n")
            assert await protocol.lost is None
            assert protocol.data == {1: b"word\n", 2: b"e\n"}
            assert "exited" in protocol.told
            assert {"pipe 1 None", "pipe 2 None"} <= set(protocol.told)
            assert transport.get_returncode() == 4
            with pytest.raises(ProcessLookupError):
                transport.send_signal(signal.SIGTERM)
            transport.close()

    loop.run_until_complete(asyncio.wait_for(main(), 100))


SUB_INTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import asyncio, plait

async def child():
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    out, _ = await process.communicate(b"parent")
    assert (out, process.returncode) == (b"parent", 0)

interpreter = interpreters.create()
plait.run(child())
result = interpreters.run_string(interpreter, '''if True:
    import sys
    try:
        import asyncio, plait
    except ImportError as error:
        print("refused", error)
    else:
        async def child():
            process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            out, _ = await process.communicate(b"inner")
            return out, process.returncode
        try:
            print("ran", plait.run(child()))
        except RuntimeError as error:
            print("refused", error)
''')
assert result is None, result
plait.run(child())
interpreters.destroy(interpreter)
plait.run(child())
print("end")
"""


@pytest.mark.isolated
def test_children_and_sub_interpreters(sub_interpreters: None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUB_INTERPRETER],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith(("ran (b'inner', 0)", "refused")), done.stdout
    assert last == "end"
