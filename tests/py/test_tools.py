"""The scripts that the Makefile stands on, and the benchmark harness."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from harness import machine, measure, tables  # noqa: E402


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a limit; the caller looks at the result."""
    return subprocess.run(
        [str(c) for c in command],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


# ---- the scripts -------------------------------------------------------------


def test_find_python_passes_over_commands_that_fail(tmp_path: Path) -> None:
    for name in ("python3.14", "python3.13"):
        script(tmp_path / name, "#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    script(tmp_path / "python3.12", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    done = run(ROOT / "tools/find-python", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    probe = run(done.stdout.strip(), "-c", "import sys; print(sys.version_info >= (3, 11))")
    assert probe.stdout == "True\n"


def test_find_python_names_what_does_not_work(tmp_path: Path) -> None:
    broken = script(tmp_path / "python", "#!/bin/sh\necho 'no such version' >&2\nexit 1\n")
    done = run(ROOT / "tools/find-python", broken)
    assert done.returncode == 1
    assert done.stdout == ""
    assert str(broken) in done.stderr
    assert "no such version" in done.stderr


def test_find_python_refuses_old_ones(tmp_path: Path) -> None:
    old = script(
        tmp_path / "python",
        '#!/bin/sh\necho "it is cpython 3.9, not CPython 3.11 or newer" >&2\nexit 1\n',
    )
    assert "3.11" in run(ROOT / "tools/find-python", old).stderr


def test_venv_state_sees_what_must_be_remade(tmp_path: Path) -> None:
    def state(*args: str | Path) -> str:
        return run(ROOT / "tools/venv-state", *args).stdout.strip()

    assert state(tmp_path) == "stale"
    (tmp_path / "bin").mkdir()
    (tmp_path / ".stamps").mkdir()
    (tmp_path / ".stamps/venv").touch()
    assert state(tmp_path) == "stale"  # its interpreter is gone
    script(tmp_path / "bin/python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    assert state(tmp_path) == "ok"
    assert state(tmp_path, sys.executable) == "ok"
    other = script(tmp_path / "other", "#!/bin/sh\necho /elsewhere 3.99\n")
    assert state(tmp_path, other) == "stale"


def test_link_tree_follows_the_install_plan(tmp_path: Path) -> None:
    info = tmp_path / "meson-info"
    info.mkdir()
    site = tmp_path / "site"
    site.mkdir()

    def plan(**files: str) -> None:
        python = {f"/src/{k}": {"destination": v, "tag": "runtime"} for k, v in files.items()}
        (info / "intro-install_plan.json").write_text(json.dumps({"python": python}))

    plan(a="{py_platlib}/pkg/a.py", b="{py_purelib}/pkg/sub/b.py", c="{prefix}/share/c")
    assert run(sys.executable, ROOT / "tools/link-tree", tmp_path, site).returncode == 0
    tree = tmp_path / "tree"
    assert os.readlink(tree / "pkg/a.py") == "/src/a"
    assert os.readlink(tree / "pkg/sub/b.py") == "/src/b"
    assert (site / "plait-editable.pth").read_text() == f"{tree}\n"
    plan(moved="{py_platlib}/pkg/a.py")
    assert run(sys.executable, ROOT / "tools/link-tree", tmp_path, site).returncode == 0
    assert os.readlink(tree / "pkg/a.py") == "/src/moved"
    assert not (tree / "pkg/sub/b.py").is_symlink()


# ---- the load ------------------------------------------------------------------


@pytest.fixture
def limits() -> Path:
    try:
        return machine.limits_dir()
    except FileNotFoundError as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("size", [1, 1024, 300_000])
def test_load_counts_what_the_server_answered(limits: Path, size: int) -> None:
    with machine.server([str(limits / "echo_server")], None) as (_, port):
        done = run(
            limits / "echo_load", "--port", str(port), "--size", str(size), "--connections", "5",
            "--idle", "3", "--seconds", "0.1", "--warmup", "0.05",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    start, end, line = done.stdout.splitlines()
    assert (start, end) == ("start", "end")
    figures = json.loads(line)
    assert figures["requests"] > 0
    assert figures["size"] == size
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"] * 1.04


def serve_once(answer: Callable[[bytes], bytes]) -> int:
    """Serve connections in threads; each answer is made from what arrived. Gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with listener:
            conn, _ = listener.accept()
            with conn:
                try:
                    while data := conn.recv(65536):
                        reply = answer(data)
                        if not reply:
                            return
                        conn.sendall(reply)
                except ConnectionError:
                    return

    port: int = listener.getsockname()[1]
    threading.Thread(target=accept, daemon=True).start()
    return port


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda turn, data: data if turn < 20 else bytes(len(data)), "differs"),
        (lambda turn, data: data if turn < 20 else b"", "closed"),
    ],
)
def test_load_notices_bad_answers(limits: Path, spoil: Any, says: str) -> None:
    turns = iter(range(1 << 30))
    port = serve_once(lambda data: spoil(next(turns), data))
    done = run(
        limits / "echo_load", "--port", str(port), "--size", "64", "--connections", "1",
        "--seconds", "20",
    )  # fmt: skip
    assert done.returncode == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    "options", [[], ["--port", "0"], ["--port", "x"], ["--port", "1", "--size", "0"], ["--what"]]
)
def test_load_refuses_bad_options(limits: Path, options: list[str]) -> None:
    done = run(limits / "echo_load", *options)
    assert done.returncode == 2
    assert "echo_load: " in done.stderr


# ---- the harness -----------------------------------------------------------------


def test_series_tells_median_and_spread() -> None:
    series = measure.Series("row", "peer", "ns", values=[10.0, 30.0, 20.0])
    assert series.median == 20
    assert series.spread == 1.0
    empty = measure.Series("row", "peer", "ns")
    assert empty.median is None
    assert empty.spread is None
    assert json.loads(json.dumps(series.record()))["median"] == 20


def test_tables_show_shares_failures_and_absences() -> None:
    row = measure.echo_row("protocol", 1024)
    series = [
        measure.Series(row, "C", "requests/s", values=[100.0, 90.0, 110.0]),
        measure.Series(row, "plait", "requests/s", values=[97.0]),
        measure.Series(row, "asyncio", "requests/s", error="it broke"),
    ]
    text = tables.echo_tables(series, ["plait", "asyncio", "uvloop"])
    shares = text.splitlines()[3]
    assert shares.split("  ")[0] == "Protocol, 1 KiB"
    assert "0.97" in shares
    assert "failed" in shares
    assert "not installed" in shares


def test_markdown_has_all_rows_and_marks_the_best() -> None:
    case = measure.Case("streams", 1024, connections=1, idle=5000)
    assert case.row == "streams, 1 KiB, 1 connection, 5,000 idle"
    series = [
        measure.Series(case.row, "C", "requests/s", values=[100.0, 90.0]),
        measure.Series(case.row, "plait", "requests/s", values=[90.0, 90.0]),
        measure.Series(case.row, "asyncio", "requests/s", values=[45.0, 45.0]),
        measure.Series("sleep", "plait", "ns", values=[200.0]),
        measure.Series("sleep", "asyncio", "ns", error="it broke"),
    ]
    assert tables.markdown(series, ["asyncio", "plait"]).splitlines()[2:] == [
        f"| {case.row} | 0.47 | **0.95** |",
        "| sleep, ns | fails | 200 |",
    ]


def test_all_rows_are_measured_when_none_is_chosen() -> None:
    rows = [case.row for case in measure.all_cases()]
    assert len(rows) == len(set(rows))
    for text in ("TLS, Protocol, 100 KiB", "sock_recv/sock_sendall, 1 KiB",
                 "Protocol, 1 KiB, 1,000 connections", "streams, 1 KiB, 1 connection",
                 "streams, 1 KiB, 5,000 idle"):  # fmt: skip
        assert text in rows


def test_rounds_end_when_the_time_is_over() -> None:
    plan = measure.Plan(loops=[], cases=[], rounds=3, until=0.0)
    assert list(plan.each_round("echo")) == [0]
    assert plan.ran == {"echo": 1}


@pytest.mark.slow
def test_harness_measures_from_end_to_end(limits: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = run(
        sys.executable, "-m", "harness", "loop", "--quick", "--loops", "asyncio,plait",
        "--styles", "protocol", "--sizes", "512", "--parts", "echo,primitives",
        "--json", out, PYTHONPATH=str(ROOT / "bench"), PLAIT_BENCH_BIN=str(limits),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Protocol, 512 B" in done.stdout
    result = json.loads(out.read_text())
    assert result["limits"]["Protocol, 512 B"] > 0
    echo = [s for s in result["series"] if s["unit"] == "requests/s"]
    assert {s["peer"] for s in echo} == {"C", "asyncio", "plait"}
    assert all(s["median"] > 0 and s["medians"]["p99_us"] > 0 for s in echo)
    assert all(s["error"] is None for s in result["series"])


def test_harness_refuses_bad_options() -> None:
    done = run(
        sys.executable, "-m", "harness", "loop", "--loops", "asyncio,nope",
        PYTHONPATH=str(ROOT / "bench"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "'nope'" in done.stderr
