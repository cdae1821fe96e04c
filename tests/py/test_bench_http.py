"""What ``plait bench http`` refuses, and how its table is made; tests/ecosystem runs it."""

from __future__ import annotations

import importlib.util

import pytest

from plait.cli import _http, main


def test_unknown_loop_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "http", "--loops", "asyncio,nothing"])
    assert caught.value.code == 2
    assert "unknown loop 'nothing'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("uvicorn") is not None, reason="uvicorn is installed")
def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "http"]) == 1
    assert "pip install uvicorn httptools" in capsys.readouterr().err


def test_ratios_are_taken_within_a_round() -> None:
    base = _http._Series("asyncio", [100.0, 10.0, 50.0], [40.0] * 3, [10.0] * 3)
    twice = _http._Series("plait-epoll", [200.0, 20.0, 110.0], [20.0] * 3, [5.0] * 3)
    broken = _http._Series("rloop", problem="it did not start")
    text = _http._table([base, twice, broken], {"zuvloop": "not installed"}, 3, 1.0, 64)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:]}
    assert rows["asyncio"][:2] == ["50", "1.00"]
    assert rows["plait-epoll"][:2] == ["110", "2.00"]
    assert rows["plait-epoll"][3:] == ["20.0", "5.0"]
    assert rows["rloop"] == ["failed:", "it", "did", "not", "start"]
    assert rows["zuvloop"] == ["not", "installed"]
