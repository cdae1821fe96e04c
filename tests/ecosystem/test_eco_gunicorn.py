"""gunicorn and hypercorn, in processes of their own, with plait's loop in their workers."""

from __future__ import annotations

import http.client
import importlib.util
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "py"))
from eco_support import get
from serve_support import Log, children, until

HERE = Path(__file__).parent


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Log]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = Log(process)
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.parametrize(
    ("worker", "needs", "app"),
    [
        ("UvicornWorker", "uvicorn_worker", "eco_serve_app:app"),
        ("AsgiWorker", "gunicorn.workers.gasgi", "eco_serve_app:app"),
        ("AiohttpWorker", "aiohttp", "eco_gunicorn_app:app"),
    ],
)
def test_gunicorn_workers(worker: str, needs: str, app: str, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    command = ["-m", "gunicorn", "-k", f"plait.gunicorn.{worker}", "-w", "2", app]
    command += ["-b", "127.0.0.1:0", "--graceful-timeout", "20", "--worker-tmp-dir", str(tmp_path)]
    if importlib.util.find_spec("gunicorn.ctl") is not None:
        command += ["--no-control-socket"]
    with started(*command) as (process, log):
        port = int(log.wait_for(r"Listening at: http://127.0.0.1:(\d+)").group(1))
        assert "plait.Loop" in get(("127.0.0.1", port), "/loop")
        before = set(children(process.pid))
        assert int(get(("127.0.0.1", port), "/")) in before
        process.send_signal(signal.SIGHUP)
        until(lambda: len(now := set(children(process.pid))) == 2 and now.isdisjoint(before))
        assert "plait.Loop" in get(("127.0.0.1", port), "/loop")
        left = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert "Traceback" not in log.text


def test_workers_that_are_not_there() -> None:
    import plait.gunicorn

    assert set(plait.gunicorn.__all__) <= set(dir(plait.gunicorn))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = plait.gunicorn.Nothing


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


HYPERCORN = """
import sys
from hypercorn.asyncio import serve
from hypercorn.config import Config
import plait
from eco_serve_app import app

config = Config()
config.bind = ["127.0.0.1:0"]
plait.run(serve(app, config))
"""


def test_hypercorn() -> None:
    pytest.importorskip("hypercorn")
    with started("-c", HYPERCORN) as (process, log):
        port = int(log.wait_for(r"Running on http://127.0.0.1:(\d+)").group(1))
        assert "plait.Loop" in get(("127.0.0.1", port), "/loop")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/slow")
        log.wait_for("slow request in")
        process.send_signal(signal.SIGTERM)
        until(lambda: is_refused(port))
        process.send_signal(signal.SIGUSR1)
        assert connection.getresponse().read() == b"%d" % process.pid
        connection.close()
        assert process.wait(60) == 0
    assert "lifespan.shutdown" in log.text
    assert "Traceback" not in log.text
