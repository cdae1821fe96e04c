"""The command ``plait``.

The skeleton is argparse: nothing but the interpreter is needed to run the command. What a
subcommand needs beyond that it imports when it runs, and says what to install if it cannot.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["main"]

# fib(93) is the last that fits into the 64 bits of the load generator and the C server.
_LARGEST_N = 93


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0 for success, 1 for failure, 130 after Ctrl+C. Bad arguments
        exit with 2.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has left (``plait doctor | head``): nothing to tell anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    from .. import _core
    from ..lab.models import MODELS

    parser = argparse.ArgumentParser(
        prog="plait", description="One concurrency runtime for threads, processes and coroutines."
    )
    parser.add_argument("--version", action="version", version=f"plait {_core.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    names = ", ".join(MODELS)

    fib = commands.add_parser(
        "fib",
        help="serve Fibonacci numbers with a model of your choice",
        description="Serve the Fibonacci protocol on TCP: a decimal line in, a decimal line "
        f"out. Models: {names}.",
    )
    fib.add_argument("--model", required=True, choices=MODELS, metavar="NAME", help="who serves")
    fib.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    fib.add_argument(
        "--port",
        type=_whole("a port", 0, 65535),
        default=25000,
        help="where to listen; 0 for any free port (%(default)s)",
    )
    fib.add_argument(
        "--limit",
        type=_whole("a limit", 1, _LARGEST_N),
        default=40,
        help="the largest number that clients may ask for (%(default)s)",
    )
    fib.add_argument(
        "--workers",
        type=_whole("a number of workers", 1, 64),
        default=None,
        help="processes, in models that have any (one per usable processor)",
    )
    fib.set_defaults(run=_fib)

    bench = commands.add_parser("bench", help="put a server under load and measure it")
    benches = bench.add_subparsers(title="loads", metavar="LOAD", required=True)
    load = benches.add_parser(
        "fib",
        help="perf1 and perf2, against a Fibonacci server",
        description="perf1: connections that ask for a long number again and again. perf2: "
        "connections that ask for the smallest number as fast as they are answered.",
    )
    target = load.add_mutually_exclusive_group()
    target.add_argument(
        "--model", choices=MODELS, metavar="NAME", help=f"start a server of this model: {names}"
    )
    target.add_argument(
        "--port",
        type=_whole("a port", 1, 65535),
        default=25000,
        help="a server that runs already (%(default)s)",
    )
    count = _whole("a number of connections", 0, 10000)
    load.add_argument("--host", default="127.0.0.1", help="where it is (%(default)s)")
    load.add_argument("--perf1", type=count, default=0, help="long connections (%(default)s)")
    load.add_argument("--perf2", type=count, default=1, help="short connections (%(default)s)")
    load.add_argument(
        "--long",
        type=_whole("n", 1, _LARGEST_N),
        default=30,
        metavar="N",
        help="what perf1 asks for (%(default)s)",
    )
    load.add_argument(
        "--short",
        type=_whole("n", 1, _LARGEST_N),
        default=1,
        metavar="N",
        help="what perf2 asks for (%(default)s)",
    )
    seconds = _seconds("a duration")
    load.add_argument(
        "--duration", type=seconds, default=5.0, metavar="S", help="seconds (%(default)s)"
    )
    load.add_argument(
        "--long-start", type=seconds, default=0.0, metavar="S", help="perf1 starts (%(default)s)"
    )
    load.add_argument(
        "--long-stop", type=seconds, default=None, metavar="S", help="perf1 stops (at the end)"
    )
    load.add_argument(
        "--bucket-ms",
        type=_whole("a width", 1, 60000),
        default=100,
        metavar="MS",
        help="width of the slices in which answers are counted (%(default)s)",
    )
    load.add_argument(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="how long to wait for what is unanswered at the end (%(default)s)",
    )
    load.add_argument("--json", action="store_true", help="print every figure as JSON")
    load.set_defaults(run=_bench_fib)
    _add_http(benches)

    _add_serve(commands)

    lab = commands.add_parser(
        "lab",
        help="measure every model on this machine and explain the figures",
        description="Run every model through perf1 alone, perf2 alone and both at once, print "
        "a table, and leave lab.json and lab.html.",
    )
    lab.add_argument(
        "--out", default="lab-out", metavar="DIR", help="where the files go (%(default)s)"
    )
    lab.add_argument("--quick", action="store_true", help="one short round: a look, no measure")
    lab.add_argument(
        "--models", type=_models, default=list(MODELS), metavar="A,B", help=f"of: {names}"
    )
    lab.add_argument(
        "--rounds", type=_whole("a number of rounds", 1, 100), default=None, help="(3)"
    )
    lab.add_argument(
        "--long",
        type=_whole("n", 1, 40),
        default=30,
        metavar="N",
        help="what perf1 asks for (%(default)s)",
    )
    lab.add_argument(
        "--pin",
        action="store_true",
        help="the load on the last processor, models without worker processes on the first",
    )
    lab.set_defaults(run=_lab)

    doctor = commands.add_parser(
        "doctor",
        help="tell what plait finds on this machine",
        description="Tell what plait finds on this machine, what it uses of it, and why.",
    )
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    doctor.set_defaults(run=_tell)
    return parser


def _add_http(benches: Any) -> None:
    from ._http_server import LOOPS

    http = benches.add_parser(
        "http",
        help="uvicorn on plait's loop and on all others that are installed",
        description="Serve plain text with uvicorn and httptools, on each loop in turn, and load "
        "it with wrk. Server and load have a processor each where there are two.",
    )
    names = ", ".join(LOOPS)
    http.add_argument("--loops", type=_loops, default=None, metavar="A,B", help=f"of: {names}")
    http.add_argument(
        "--rounds", type=_whole("a number of rounds", 1, 100), default=5, help="(%(default)s)"
    )
    http.add_argument(
        "--seconds", type=_seconds("a duration"), default=3.0, metavar="S",
        help="for each loop and round (%(default)s)",
    )  # fmt: skip
    http.add_argument(
        "--connections", type=_whole("a number of connections", 1, 10000), default=64,
        metavar="N", help="(%(default)s)",
    )  # fmt: skip
    http.add_argument("--json", action="store_true", help="print every figure as JSON")
    http.set_defaults(run=_bench_http)


def _add_serve(commands: Any) -> None:
    from . import _serve

    serve = commands.add_parser(
        "serve",
        help="serve an ASGI application, or any other server, with several workers",
        description="Serve with several worker processes, each with a plait loop: an ASGI "
        "application (by uvicorn), an asyncio protocol, or a streams callback. SIGTERM ends it in "
        "good order, SIGINT at once, SIGHUP reloads, SIGTTIN and SIGTTOU change the number of "
        "workers.",
    )
    _serve.add_arguments(serve, _whole, _seconds)
    serve.set_defaults(run=_serve.main)


def _whole(what: str, low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(
                f"{what} is a whole number from {low} to {high}, not {text!r}"
            )
        return int(text)

    return convert


def _seconds(what: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 86400.0:  # written so that NaN fails
            raise argparse.ArgumentTypeError(
                f"{what} is a number of seconds from 0 to 86400, not {text!r}"
            )
        return value

    return convert


def _loops(text: str) -> list[str]:
    from ._http_server import LOOPS

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in LOOPS:
            raise argparse.ArgumentTypeError(
                f"unknown loop {name!r} (choose from {', '.join(LOOPS)})"
            )
    return list(dict.fromkeys(names))


def _models(text: str) -> list[str]:
    from ..lab.models import MODELS

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("name one model at least")
    for name in names:
        if name not in MODELS:
            raise argparse.ArgumentTypeError(
                f"unknown model {name!r} (choose from {', '.join(MODELS)})"
            )
    return list(dict.fromkeys(names))


def _fail(problem: object) -> int:
    print(f"plait: {problem}", file=sys.stderr)
    return 1


def _fib(args: argparse.Namespace) -> int:
    import importlib

    from ..lab import serving
    from ..lab.executables import ExecutableMissing, executable
    from ..lab.models import MODELS

    model = MODELS[args.model]
    workers: int = args.workers or min(serving.cpu_count(), 64)
    if not model.module:
        try:
            path = executable("fib_server")
        except ExecutableMissing as error:
            return _fail(error)
        options = {"host": args.host, "port": args.port, "limit": args.limit, "workers": workers}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        os.execv(path, [path, *words])
    module = importlib.import_module(f"..lab.models.{model.module}", __package__)
    try:
        serving.run(module.serve, args.host, args.port, args.limit, workers)
    except OSError as error:
        return _fail(f"cannot serve on {args.host} port {args.port}: {error}")
    return 0


def _bench_fib(args: argparse.Namespace) -> int:
    import contextlib
    import json

    from ..lab import load
    from ..lab.executables import ExecutableMissing
    from ..lab.server import Server, ServerFailed

    with contextlib.ExitStack() as stack:
        try:
            port = args.port
            if args.model is not None:
                port = stack.enter_context(Server(args.model)).port
            result = load.run(
                host=args.host,
                port=port,
                perf1=args.perf1,
                perf2=args.perf2,
                long=args.long,
                short=args.short,
                duration=args.duration,
                long_start=args.long_start,
                long_stop=args.long_stop,
                bucket_ms=args.bucket_ms,
                timeout=args.timeout,
            )
        except (ExecutableMissing, ServerFailed, load.LoadFailed) as error:
            return _fail(error)
    if args.json:
        print(json.dumps(result.raw, indent=1))
    else:
        print(result.table())
    for problem in result.errors:
        print(f"plait: {problem}", file=sys.stderr)
    if args.model is None and any("Connection refused" in problem for problem in result.errors):
        print(
            "plait: nobody serves there; start `plait fib --model NAME` first, or name a model here",
            file=sys.stderr,
        )
    return 0 if result.ok else 1


def _bench_http(args: argparse.Namespace) -> int:
    from . import _http

    return _http.main(
        loops=args.loops,
        rounds=args.rounds,
        seconds=max(args.seconds, 0.1),
        connections=args.connections,
        as_json=args.json,
    )


def _lab(args: argparse.Namespace) -> int:
    from ._extras import ExtraMissing

    try:
        from ..lab import session
    except ExtraMissing as error:
        return _fail(error)
    return session.main(
        out=args.out,
        names=args.models,
        quick=args.quick,
        rounds=args.rounds,
        long=args.long,
        pin=args.pin,
    )


def _tell(args: argparse.Namespace) -> int:
    from . import _doctor

    return _doctor.main(as_json=args.json)
