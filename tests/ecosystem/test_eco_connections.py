"""What many connections leave behind, in a child process: see loop_connections.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from eco_support import child_environment

if TYPE_CHECKING:
    from eco_support import Pki

PROGRAM = Path(__file__).parents[1] / "isolated" / "loop_connections.py"


def run_program(loop_name: str, *options: str) -> None:
    result = subprocess.run(
        [sys.executable, str(PROGRAM), "--loop", loop_name.removesuffix("-uring"), *options],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=child_environment(loop_name),
    )
    print(result.stdout, result.stderr)
    if result.returncode == 77:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""


def test_short_connections_leave_nothing(loop_name: str) -> None:
    run_program(loop_name, "--connections", "6000", "--idle", "0")


def test_idle_connections_are_held(loop_name: str) -> None:
    run_program(loop_name, "--connections", "0", "--idle", "2000")


def test_tls_connections_leave_nothing(loop_name: str, pki: Pki) -> None:
    files = (pki.ca_file, pki.cert_file, pki.key_file)
    run_program(loop_name, "--connections", "1200", "--idle", "300", "--tls", *files)
