"""The command: what it says when it is asked wrongly, or something is missing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from plait.cli import _doctor, main
from plait.lab.models import MODELS


def plait(*words: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "plait", *words], capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["fib"], "--model"),
        (["fib", "--model", "quantum"], "argument --model: invalid choice: 'quantum'"),
        (
            ["fib", "--model", "c", "--port", "65536"],
            "argument --port: a port is a whole number from 0 to 65535, not '65536'",
        ),
        (["fib", "--model", "c", "--port", "-1"], "argument --port: "),
        (["fib", "--model", "c", "--port", "1e3"], "not '1e3'"),
        (["fib", "--model", "c", "--limit", "0"], "argument --limit: a limit is a whole number"),
        (["fib", "--model", "c", "--limit", "94"], "from 1 to 93, not '94'"),
        (["fib", "--model", "c", "--workers", "0"], "argument --workers: a number of workers"),
        (["bench"], "LOAD"),
        (["bench", "fib", "--port", "0"], "from 1 to 65535, not '0'"),
        (["bench", "fib", "--duration", "nan"], "argument --duration: a duration is a number"),
        (["bench", "fib", "--perf1", "many"], "argument --perf1: a number of connections"),
        (["bench", "fib", "--model", "c", "--port", "80"], "not allowed with argument"),
        (["lab", "--models", "threads,quantum"], "unknown model 'quantum' (choose from "),
        (["lab", "--models", ","], "name one model at least"),
        (["lab", "--rounds", "0"], "argument --rounds: a number of rounds"),
    ],
)
def test_bad_arguments_are_named(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert problem in said.err


@pytest.mark.parametrize("model", ["sequential", "c"])
def test_a_port_that_is_taken(model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = plait("fib", "--model", model, "--port", port)
    assert done.returncode == 1
    assert f"cannot serve on 127.0.0.1 port {port}: " in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("model", ["threads", "c"])
def test_a_host_that_is_none(model: str) -> None:
    done = plait("fib", "--model", model, "--host", "no such host", "--port", "0")
    assert done.returncode == 1
    assert "cannot serve on no such host port 0: " in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = str(reserved.getsockname()[1])
        assert main(["bench", "fib", "--port", port, "--duration", "0.05"]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_bench_starts_a_server_and_passes_the_json_through(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["bench", "fib", "--model", "c", "--perf1", "1", "--long", "20", "--duration", "0.1"]
    assert main([*words, "--json"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert raw["ok"]
    assert raw["long_n"] == 20
    assert raw["short"]["answered"] > 0
    assert main(words) == 0
    assert "every answer was right" in capsys.readouterr().out


def test_bench_tells_of_wrong_answers(capsys: pytest.CaptureFixture[str]) -> None:
    # 41 is past the limit of the server, so the answer is an error line.
    words = ["bench", "fib", "--model", "c", "--short", "41", "--duration", "0.1"]
    assert main(words) == 1
    assert "wrong answer to 41: 'error: n must be 40 or less" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["rich", "matplotlib", "jinja2"])
def test_a_missing_extra_is_a_sentence(missing: str) -> None:
    program = f"""
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from plait.cli import main
sys.exit(main(["lab", "--quick"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"plait: this command needs {missing}, which is not installed: pip install 'plait[lab]'\n"
    )


def test_everything_else_works_without_extras() -> None:
    program = """
import sys
for name in ("rich", "matplotlib", "jinja2"):
    sys.modules[name] = None
from plait.cli import main
sys.exit(main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_importing_plait_loads_no_tools() -> None:
    program = """
import sys
import plait
print([name for name in ("argparse", "rich", "plait.cli", "plait.lab") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "[]\n", done.stderr


def test_version() -> None:
    done = plait("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("plait 0.")


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu"]["usable"] == sorted(os.sched_getaffinity(0))
    assert found["kernel"]["epoll"]["works"]
    assert found["backend"]["name"] in ("epoll", "uring")
    assert found["backend"]["reason"]
    assert found["pool"]["name"] == "zygote"
    assert set(found["extras"]["lab"]) == {"rich", "matplotlib", "jinja2"}


def test_doctor_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLAIT_BACKEND", raising=False)
    monkeypatch.setattr(_doctor, "_version", lambda name: None if name == "rich" else "1.0")
    monkeypatch.setattr(_doctor, "_io_uring", lambda: {"works": False, "reason": "forbidden"})
    monkeypatch.setattr(_doctor, "_quota", lambda: {"cpus": 1.5, "from": "/a/cpu.max"})
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "epoll, because " in text
    assert "does not work: forbidden" in text
    assert "1.5 processors (/a/cpu.max)" in text
    assert "rich missing: pip install 'plait[lab]'" in text


def test_doctor_fails_where_plait_cannot_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_doctor, "_pidfd", lambda: {"works": False, "reason": "not implemented"})
    assert main(["doctor"]) == 1
    assert "does not work: not implemented" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("uring", "build", "engine", "reason"),
    [
        ({"works": True, "reason": ""}, {"io_uring": True}, "io_uring", "allows it"),
        ({"works": True, "reason": ""}, {"io_uring": False}, "threads", "built without"),
        ({"works": False, "reason": "forbidden"}, {"io_uring": True}, "threads", "forbidden"),
    ],
)
def test_what_runs_file_operations(
    monkeypatch: pytest.MonkeyPatch,
    uring: dict[str, object],
    build: dict[str, object],
    engine: str,
    reason: str,
) -> None:
    monkeypatch.delenv("PLAIT_FILES", raising=False)
    found = _doctor._files(build, uring)
    assert found["name"] == engine
    assert reason in found["reason"]
    monkeypatch.setenv("PLAIT_FILES", "threads")
    assert _doctor._files(build, uring)["reason"] == "PLAIT_FILES=threads"


def test_every_model_is_offered() -> None:
    done = plait("fib", "--help")
    for name in MODELS:
        assert name in done.stdout
