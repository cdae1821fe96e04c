"""A process pool in programs of every kind: what workers know of the main module."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys
import textwrap
import zipapp
from collections.abc import Callable

import pytest

from plait._sending import find_cloudpickle

TIMEOUT = 60.0

MAIN = """
import plait

class Box:
    def __init__(self, value):
        self.value = value

def double(box):
    return Box(2 * box.value)

def main(method=None):
    with plait.ProcessPool(2, start_method=method) as pool:
        print([b.value for b in pool.map(double, [Box(i) for i in range(3)])])

if __name__ == "__main__":
    main({method!r})
"""


def run(
    *words: str, input: str | None = None, cwd: pathlib.Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        input=input,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def by_path(folder: pathlib.Path, text: str) -> list[str]:
    (folder / "program.py").write_text(text)
    return [str(folder / "program.py")]


def by_module(folder: pathlib.Path, text: str) -> list[str]:
    (folder / "parts").mkdir()
    (folder / "parts" / "__init__.py").touch()
    (folder / "parts" / "program.py").write_text(text)
    return ["-m", "parts.program"]


def by_package(folder: pathlib.Path, text: str) -> list[str]:
    (folder / "program").mkdir()
    (folder / "program" / "__init__.py").touch()
    (folder / "program" / "__main__.py").write_text(text)
    return ["-m", "program"]


def by_folder(folder: pathlib.Path, text: str) -> list[str]:
    (folder / "program").mkdir()
    (folder / "program" / "__main__.py").write_text(text)
    return ["program"]


def by_archive(folder: pathlib.Path, text: str) -> list[str]:
    by_folder(folder, text)
    zipapp.create_archive(folder / "program", folder / "program.pyz")
    return ["program.pyz"]


def by_archive_of_modules(folder: pathlib.Path, text: str) -> list[str]:
    (folder / "program").mkdir()
    (folder / "program" / "inside.py").write_text(text)
    zipapp.create_archive(folder / "program", folder / "program.pyz", main="inside:main")
    return ["program.pyz"]


WAYS = [by_path, by_module, by_package, by_folder, by_archive, by_archive_of_modules]


@pytest.mark.parametrize(
    ("how", "method"),
    [(how, None) for how in WAYS] + [(by_path, "fork"), (by_package, "spawn")],
)
def test_functions_and_classes_of_the_script(
    how: Callable[[pathlib.Path, str], list[str]], method: str | None, tmp_path: pathlib.Path
) -> None:
    done = run(*how(tmp_path, MAIN.format(method=method)), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[0, 2, 4]\n", "")


@pytest.mark.parametrize("method", [None])
def test_a_guard_that_is_missing_is_asked_for(method: str | None, tmp_path: pathlib.Path) -> None:
    """Not by a bomb of processes, and not by silence: the task's error says it."""
    script = tmp_path / "program.py"
    script.write_text(
        "import plait\n"
        "def f(): return 1\n"
        f"pool = plait.ProcessPool(1, start_method={method!r})\n"
        "try: print(pool.submit(f).result(30))\n"
        "except RuntimeError as error: print(error)\n"
        "pool.shutdown()\n"
    )
    done = run(str(script))
    assert "`if __name__ == '__main__':`" in done.stdout
    assert done.returncode == 0, done.stderr


def test_a_fork_needs_no_guard(tmp_path: pathlib.Path) -> None:
    """Its workers have the main module already, as far as it had come."""
    script = tmp_path / "program.py"
    script.write_text(
        "import plait\n"
        "def f(): return 1\n"
        "with plait.ProcessPool(1, start_method='fork') as pool: print(pool.submit(f).result(30))\n"
    )
    done = run(str(script))
    assert (done.stdout, done.stderr) == ("1\n", "")


# ---- programs that are no file --------------------------------------------------------


@pytest.mark.parametrize("method", [None, "fork"])
def test_interactive(method: str | None) -> None:
    """What was typed in reaches workers by value, also what was typed again later."""
    session = f"""
import plait
factor = 2
def f(x): return factor * x

pool = plait.ProcessPool(1, start_method={method!r})
print(pool.submit(f, 3).exception() or pool.submit(f, 3).result())
factor = 5
def f(x): return factor * x + 1

print(pool.submit(f, 3).exception() or pool.submit(f, 3).result())
print(pool.submit(abs, -4).result())
pool.shutdown()
"""
    done = run("-i", "-q", input=session)
    lines = done.stdout.split("\n")
    assert lines[-2] == "4", done
    if find_cloudpickle() is not None:
        assert lines[:2] == ["6", "16"], done
    elif method != "fork":
        assert "main module that workers cannot import" in lines[0]


CELLS = [
    """
    import plait
    factor = 3
    class Box:
        def __init__(self, value): self.value = value
    class Oops(Exception): pass
    def boxed(box): return Box(factor * box.value)
    def oops(): raise Oops("from a cell")
    pool = plait.ProcessPool(2{method})
    """,
    """
    answer = pool.submit(boxed, Box(2)).result()
    print(type(answer) is Box, answer.value)
    """,
    """
    factor = 4
    def late(x): return Box(factor * x)
    print([box.value for box in pool.map(late, range(3))])
    try: pool.submit(oops).result()
    except Oops as error: print(error)
    """,
    """
    import asyncio
    async def wait(): return await asyncio.wrap_future(pool.submit(late, 5))
    print(asyncio.run(wait()).value)
    pool.shutdown()
    """,
]

# Runs cells as IPython does: __main__ is a module of its own without a file, and each cell is
# compiled by itself.
KERNEL = """
import sys, types
main = types.ModuleType("__main__")
main.__dict__.update(__builtins__=__builtins__, __name__="__main__")
sys.modules["__main__"] = main
for number, cell in enumerate({cells!r}):
    exec(compile(cell, f"/tmp/ipykernel_1/{{number}}.py", "exec"), main.__dict__)
"""
TOLD = "True 6\n[0, 4, 8]\nfrom a cell\n20\n"


def cells(method: str | None) -> list[str]:
    option = f", start_method={method!r}" if method else ""
    return [textwrap.dedent(cell).replace("{method}", option).strip() for cell in CELLS]


@pytest.mark.parametrize("method", [None, "fork"])
def test_cells(method: str | None, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("cloudpickle")
    kernel = tmp_path / "kernel.py"
    kernel.write_text(KERNEL.format(cells=cells(method)))
    done = run(str(kernel))
    assert (done.stdout, done.stderr) == (TOLD, "")


def test_a_notebook() -> None:
    """The same in a real kernel, where one is installed."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    code = [*cells(None)[:-1], "print((await pool.submit(late, 5)).value)\npool.shutdown()"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in code])
    nbclient.NotebookClient(book, timeout=TIMEOUT, kernel_name="python3").execute()
    outputs = [output for cell in book.cells for output in cell.outputs]
    assert "".join(output.get("text", "") for output in outputs) == TOLD


def test_cells_without_cloudpickle(tmp_path: pathlib.Path) -> None:
    """The error says what is missing; what can be imported works."""
    (tmp_path / "cloudpickle.py").write_text("raise ImportError('not here')\n")
    first = "import sys, plait\nsys.path.insert(0, '.')\npool = plait.ProcessPool(1)\ndef f(): pass"
    then = "print(pool.submit(abs, -1).result())\ntry: pool.submit(f).result()\n"
    then += "except Exception as error: print(type(error).__name__, error, *error.__notes__)"
    kernel = tmp_path / "kernel.py"
    kernel.write_text(KERNEL.format(cells=[first, then, "pool.shutdown()"]))
    done = run(str(kernel), cwd=tmp_path)
    assert done.stdout.startswith("1\nPicklingError <function f at"), done.stderr
    assert "main module that workers cannot import" in done.stdout
    assert "when cloudpickle is installed" in done.stdout


# ---- frozen programs ------------------------------------------------------------------

# What packers make: an executable that is interpreter and program in one, sees itself as
# sys.executable, and does not know the interpreter's options.
FROZEN = """#!{python}
import sys
sys.frozen = True
sys.executable = {program!r}
__file__ = "program.py"  # as in the archive of the packer: there is no such file here
__spec__ = None
del sys.path[0]
{main}
"""

FREEZING = """
import plait

class Box:
    def __init__(self, value):
        self.value = value

def double(box):
    return Box(2 * box.value)

if __name__ == "__main__":
    {support}
    print("main", *sys.argv[1:])
    try:
        with plait.ProcessPool(2, start_method={method!r}) as pool:
            print([b.value for b in pool.map(double, [Box(i) for i in range(3)])])
            print(pool.submit(eval, "__import__('sys').argv[1:]").result())
    except RuntimeError as error:
        print(error)
"""


def freeze(folder: pathlib.Path, method: str | None, support: str) -> list[str]:
    program = folder / "program"
    main = FREEZING.format(method=method, support=support)
    program.write_text(FROZEN.format(python=sys.executable, program=str(program), main=main))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(
        [str(program), "one", "two"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_a_frozen_program(method: str | None, tmp_path: pathlib.Path) -> None:
    """The program is its own worker, and its main part runs once."""
    lines = freeze(tmp_path, method, "plait.freeze_support()")
    assert lines == ["main one two", "[0, 2, 4]", "['one', 'two']"]


def test_a_frozen_program_without_support(tmp_path: pathlib.Path) -> None:
    """It is told so, before it could execute itself over and over."""
    first, error = freeze(tmp_path, None, "pass")
    assert first == "main one two"
    assert "plait.freeze_support()" in error
    assert freeze(tmp_path, "fork", "pass")[1:] == ["[0, 2, 4]", "['one', 'two']"]


def test_freeze_support_elsewhere(tmp_path: pathlib.Path) -> None:
    done = run("-c", "import plait; plait.freeze_support(); print('goes on')", "--plait-process")
    assert (done.stdout, done.stderr) == ("goes on\n", "")


# ---- forks of the user's own -----------------------------------------------------------

AFTER_FORK = """
import asyncio, os, sys, time, plait
if __name__ == "__main__":
    pool = plait.ProcessPool(2{method})
    done = pool.submit(abs, -1)
    done.result()
    running = pool.submit(time.sleep, 0.2)
    pid = os.fork()
    if pid == 0:
        async def wait(): await asyncio.wait_for(running, 20)
        ways = dict(
            submit=lambda: pool.submit(abs, 1),
            map=lambda: list(pool.map(abs, [1])),
            options=lambda: pool.options(timeout=1).submit(abs, 1),
            result=lambda: running.result(20),
            callback=lambda: running.add_done_callback(print),
            wait=lambda: plait.run(wait()),
            statistics=lambda: pool.statistics(),
            resize=lambda: pool.resize(3),
            share=lambda: pool.share(bytearray(10)),
        )
        for name, way in ways.items():
            try: print(name, way())
            except RuntimeError as error: pass
        assert not running.cancel() and done.result() == 1
        pool.shutdown()
        with pool: pass
        with plait.ProcessPool(1{method}) as own:
            print(own.submit(abs, -2).result(), flush=True)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    running.result()
    print(pool.submit(abs, -3).result())
"""


@pytest.mark.parametrize("method", [None])
def test_after_fork(method: str | None, tmp_path: pathlib.Path) -> None:
    """Whatever a child does with the parent's pool is an error, nothing hangs, and its own works."""
    script = tmp_path / "program.py"
    option = f", start_method={method!r}" if method else ""
    script.write_text(AFTER_FORK.replace("{method}", option))
    done = run("-W", "ignore::DeprecationWarning", str(script))
    assert (done.stdout, done.stderr, done.returncode) == ("2\n3\n", "", 0)


def test_children_of_multiprocessing(tmp_path: pathlib.Path) -> None:
    """They are forked, too, and end by the interpreter's usual way."""
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing, plait\n"
        "def child(n):\n"
        "    with plait.ProcessPool(1) as own: assert own.submit(abs, -n).result() == n\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    pool = plait.ProcessPool(1)\n"
        "    assert pool.submit(abs, -1).result() == 1\n"
        "    children = [context.Process(target=child, args=(n,)) for n in range(2)]\n"
        "    for c in children: c.start()\n"
        "    assert pool.submit(abs, -1).result() == 1\n"
        "    for c in children: c.join()\n"
        "    print([c.exitcode for c in children], pool.submit(abs, -5).result())\n"
    )
    done = run("-W", "ignore::DeprecationWarning", str(script))
    assert (done.stdout, done.stderr) == ("[0, 0] 5\n", "")
    assert os.path.exists(script)
