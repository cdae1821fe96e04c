"""A model's server in a child process, from its start to its end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from types import TracebackType
from typing import IO, Self

__all__ = ["Server", "ServerFailed"]


class ServerFailed(Exception):
    """A server did not start, or ended by itself."""


class Server:
    """Runs ``plait fib`` in a process group of its own, on a free port.

    A context manager: the server listens when the block is entered, and it and everything
    that it started are gone when the block is left, whatever happens.

    Args:
        model: The model's name.
        workers: Processes, where the model has any; one per usable processor by default.
        limit: The largest number that clients may ask for.
        cpus: Processors to confine it to; none by default.
        start_timeout: Seconds until it must listen.

    Attributes:
        port: Where it listens.
    """

    def __init__(
        self,
        model: str,
        *,
        workers: int | None = None,
        limit: int = 40,
        cpus: Collection[int] | None = None,
        start_timeout: float = 30.0,
    ) -> None:
        self.model = model
        self.port = 0
        self._command = [sys.executable, "-m", "plait", "fib"]
        self._command += ["--model", model, "--port", "0", "--limit", str(limit)]
        if workers is not None:
            self._command += ["--workers", str(workers)]
        self._cpus = cpus
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        # A file, not a pipe: nobody reads it while the server runs, and a full pipe blocks.
        self._stderr = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
            )
            if self._cpus is not None:
                # Before it has started a thread: all that follows inherits it.
                os.sched_setaffinity(self._process.pid, self._cpus)
            self.port = self._wait_for_port()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def check(self, patience: float = 0.0) -> None:
        """Raise ServerFailed when the server has ended.

        Args:
            patience: Seconds to wait for its end: one that does not answer any more may
                still be on its way out.
        """
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
            raise ServerFailed(f"the server ended: {self._last_words()}")

    def stop(self, patience: float = 2.0) -> None:
        """End the server and all that it started.

        Args:
            patience: Seconds that it has to end by itself before it is killed.
        """
        process, self._process = self._process, None
        if process is not None:
            try:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience)
            finally:
                # Workers that outlived it, or it with them: the group is ours alone. Done
                # for a second Ctrl+C, too.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                self._close_files(process)
            process.wait()
        else:
            self._close_files(None)

    def _close_files(self, process: subprocess.Popen[bytes] | None) -> None:
        stderr, self._stderr = self._stderr, None
        if process is not None and process.stdout is not None:
            process.stdout.close()
        if stderr is not None:
            stderr.close()

    def _wait_for_port(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + self._start_timeout
        stdout = self._process.stdout
        said = b""
        while b"\n" not in said:
            patience = end - time.monotonic()
            if patience <= 0:
                raise ServerFailed(f"the server did not listen within {self._start_timeout:g} s")
            if not select.select([stdout], [], [], patience)[0]:
                continue
            data = os.read(stdout.fileno(), 4096)
            if not data:
                self._process.wait()
                raise ServerFailed(f"the server did not start: {self._last_words()}")
            said += data
        found = re.fullmatch(rb"listening on .*:(\d+)\n", said)
        if found is None:
            raise ServerFailed(f"the server did not tell its port but {said!r}")
        return int(found[1])

    def _last_words(self) -> str:
        assert self._process is not None
        assert self._stderr is not None
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"{lines[-1]} ({how})" if lines else how
