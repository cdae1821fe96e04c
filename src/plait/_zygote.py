"""The process that workers are born from.

It is executed afresh, or is a copy of the pool's parent, has one thread, and forks a worker in
about a millisecond, or executes one, when the parent asks for it. Each birth and death is told on the control socket. It ends when
that socket is closed or the parent dies, and its workers end with it.
"""

from __future__ import annotations

import _pickle  # what these two wrap is what a pool's start can afford to load
import _socket
import fcntl
import gc
import os
import select
import struct
import sys
import time

from . import _core, _worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any
else:
    import _signal as signal  # the other one has enumerations, which take long to make

# kind, seat, pid, exit status as of waitpid, a number (memory in bytes, low mark, milliseconds)
HEAD = struct.Struct("<cIIiQQ")
TEXT_MAX = 60000

codes: list[Any] | None = None
"""What `plait._start.codes` found, in this process or where it was executed."""


def enter(data: dict[str, Any], words: list[int]) -> None:
    """Be what this process was executed for, a zygote or, with `words`, a worker.

    Args:
        data: what the parent left in the start-up file: ``control``, ``memfd``, ``eventfd``
            (descriptors), ``parent`` (process id), ``main`` (how to import its main module),
            ``setup`` (a pickle for the workers), ``authkey`` (multiprocessing's, or None),
            ``method`` (the start method), ``start`` (the file), ``command`` (how a process of
            the pool is executed).
        words: the zygote's process id, seat, low mark and stack file of a worker.
    """
    global codes
    codes = data["code"] or None
    sys.argv[:] = data["argv"]
    for fd in (data["memfd"], data["eventfd"], data["control"], data["start"]):
        os.set_inheritable(fd, False)
    if data["authkey"] is not None:
        import multiprocessing.process

        multiprocessing.process.current_process().authkey = data["authkey"]
    if not words:
        return main(data)
    zygote, seat, low_mark, stackfd = words
    os.set_inheritable(stackfd, False)
    os.close(data["start"])
    be_worker(data, seat, low_mark, zygote, _socket.socket(fileno=data["control"]), stackfd)
    return None


def enter_copy(data: dict[str, Any]) -> None:
    """Be a zygote that is a copy of the parent: with its modules, without its habits.

    All signals are blocked when this is called.
    """
    import atexit

    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    if "faulthandler" in sys.modules:
        sys.modules["faulthandler"].unregister(_worker.STACK_SIGNAL)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    atexit._clear()  # the parent's are the parent's to do
    if "plait._pool" in sys.modules:
        atexit.register(sys.modules["plait._pool"].at_exit)
    data = {**data, "authkey": None, "start": -1}
    gc.freeze()  # so that collections in workers leave the shared pages alone
    main(data)


def main(data: dict[str, Any]) -> None:
    """Serve one pool; see `enter`."""
    _core.die_with_parent(0)  # only undoes what a launcher may have left
    try:
        parent = os.pidfd_open(data["parent"])
    except ProcessLookupError:
        return
    if os.getppid() != data["parent"]:
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if data["method"] == "fork" and sys.stdin is not None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    control = _socket.socket(fileno=data["control"])
    control.setblocking(False)
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    poll = select.poll()
    for fd in (control.fileno(), parent, wake_read):
        poll.register(fd, select.POLLIN)
    if data["method"] != "spawn" and data["start"] >= 0:
        os.close(data["start"])
    try:
        Zygote(data, control, (parent, wake_read, wake_write), poll).run()
    finally:
        control.close()


class Zygote:
    """What the zygote keeps: its workers and the births that were asked for."""

    def __init__(
        self,
        data: dict[str, Any],
        control: _socket.socket,
        private: tuple[int, int, int],
        poll: select.poll,
    ) -> None:
        self.data = data
        self.control = control
        self.parent, self.wake_read, self.wake_write = private
        self.poll = poll
        self.seats: dict[int, int] = {}  # pid -> seat
        self.due: list[tuple[float, int, int]] = []  # (time, seat, low mark)
        self.quitting = False

    def run(self) -> None:
        """Serve until the parent says so, or is gone."""
        while not (self.quitting and not self.seats):
            timeout = None
            if self.due:
                timeout = max(0.0, min(self.due)[0] - time.monotonic()) * 1000
            ready = dict(self.poll.poll(timeout))
            if self.parent in ready:
                return self.kill_all()
            if self.wake_read in ready:
                try:
                    os.read(self.wake_read, 4096)
                except BlockingIOError:
                    pass
                self.reap()
            if self.control.fileno() in ready and not self.read_control():
                return self.kill_all()
            now = time.monotonic()
            for item in [item for item in self.due if item[0] <= now]:
                self.due.remove(item)
                self.give_birth(item[1], item[2])
        return None

    def read_control(self) -> bool:
        """Take the parent's orders; False when it is gone."""
        while True:
            try:
                message = self.control.recv(4096)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not message:
                return False
            kind, seat, _pid, _status, low_mark, delay = HEAD.unpack(message[: HEAD.size])
            if kind == b"S":
                self.due.append((time.monotonic() + delay / 1000, seat, low_mark))
            elif kind == b"Q":
                self.quitting = True
                self.due.clear()

    def give_birth(self, seat: int, low_mark: int) -> None:
        """Fork the worker of a seat and tell the parent about it."""
        me = os.getpid()
        stackfd = -1
        try:
            # Where the worker's last Python stack goes; appended to, so that it may be cut.
            stackfd = os.memfd_create("plait-stack", os.MFD_CLOEXEC)
            fcntl.fcntl(stackfd, fcntl.F_SETFL, os.O_APPEND)
            if self.data["method"] == "spawn":
                pid = self.spawn(seat, low_mark, me, stackfd)
            else:
                pid = os.fork()
        except OSError as error:
            if stackfd >= 0:
                os.close(stackfd)
            self.tell(b"D", seat, 0, (error.errno or 1) << 8)
            return
        if pid == 0:
            self.become_worker(seat, low_mark, me, stackfd)
        self.seats[pid] = seat
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            return
        else:
            self.tell(b"B", seat, pid, fds=(pidfd, stackfd))
            os.close(pidfd)
        finally:
            os.close(stackfd)

    def spawn(self, seat: int, low_mark: int, zygote: int, stackfd: int) -> int:
        """Execute a worker afresh: its process id."""
        data = self.data
        start = data["start"]
        words = (start, os.fstat(start).st_size, zygote, seat, low_mark, stackfd)
        keep = (start, stackfd, data["control"], data["memfd"], data["eventfd"])
        return execute([*data["command"], *map(str, words)], keep)

    def become_worker(self, seat: int, low_mark: int, zygote: int, stackfd: int) -> None:
        """Run a worker; never returns."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in (self.parent, self.wake_read, self.wake_write):
            os.close(fd)
        os.setpgid(0, 0)
        be_worker(self.data, seat, low_mark, zygote, self.control, stackfd)

    def reap(self) -> None:
        """Tell the parent which workers have ended."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self.seats and (ended.si_code != os.CLD_EXITED or ended.si_status != 0):
                # What it started dies with it. Before it is reaped the number of its group can
                # belong to nobody else.
                end(os.killpg, pid)
            pid, status, usage = os.wait4(pid, 0)
            seat = self.seats.pop(pid, None)
            if seat is not None:
                self.tell(b"D", seat, pid, status, usage.ru_maxrss * 1024)

    def tell(
        self,
        kind: bytes,
        seat: int,
        pid: int,
        status: int = 0,
        memory: int = 0,
        fds: tuple[int, ...] = (),
    ) -> None:
        """Send one message to the parent, waiting for room if need be."""
        send(self.control, HEAD.pack(kind, seat, pid, status, memory, 0), fds)

    def kill_all(self) -> None:
        """End every worker at once."""
        for pid in self.seats:
            end(os.killpg, pid)
            end(os.kill, pid)
        for pid in self.seats:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass


def execute(words: list[str], keep: tuple[int, ...]) -> int:
    """Execute a program in a process group of its own: its process id.

    Args:
        words: the program and its arguments.
        keep: descriptors that it gets under their numbers.

    Raises:
        OSError: it cannot be executed.
    """
    # Duplicating a descriptor onto itself is how a child is told to keep it.
    return os.posix_spawn(
        words[0],
        words,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep],
        setpgroup=0,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD],
    )


def be_worker(
    data: dict[str, Any], seat: int, low_mark: int, zygote: int, control: Any, stackfd: int
) -> None:
    """Run a worker; never returns."""
    code = 1
    try:
        _core.die_with_parent(zygote)
        code = _worker.serve(data, seat, low_mark, control, stackfd)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        _worker.leave(code)


def end(kill: Callable[[int, int], None], pid: int) -> None:
    """Send SIGKILL, if there is still someone to get it."""
    try:
        kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def wait_for(fds: list[int], seconds: float, events: int = select.POLLIN) -> list[int]:
    """Wait for one of some descriptors, whatever their numbers: those that are ready."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, events)
    return [fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)]


def send(control: _socket.socket, message: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send one message with descriptors, waiting for room if need be."""
    while True:
        try:
            if fds:
                rights = struct.pack(f"{len(fds)}i", *fds)
                control.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
            else:
                control.send(message)
            return
        except BlockingIOError:
            wait_for([control.fileno()], 1.0, select.POLLOUT)
        except ConnectionError:
            return  # the parent is gone, which the zygote's loop finds out


def load_setup(data: dict[str, Any]) -> Any:
    """The parent's set-up for its workers: (initializer, its arguments)."""
    setup = data["setup"]
    return setup if isinstance(setup, tuple) else _pickle.loads(setup)
