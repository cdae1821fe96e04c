"""``plait serve``: an ASGI application, or any other server, with several workers."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._serve_target import KINDS

if TYPE_CHECKING:
    from .._serve_sockets import Listeners

__all__ = ["add_arguments", "main"]


def add_arguments(
    parser: argparse.ArgumentParser,
    whole: Callable[[str, int, int], Callable[[str], int]],
    seconds: Callable[[str], Callable[[str], float]],
) -> None:
    """Tell argparse what there is.

    Args:
        parser: of the subcommand.
        whole: makes a converter of whole numbers in a range.
        seconds: makes a converter of durations.
    """
    add = parser.add_argument
    add("target", metavar="MODULE:NAME", help="what to serve")
    add(
        "--bind",
        action="append",
        type=_where,
        metavar="WHERE",
        help="HOST:PORT, unix:PATH, or fd:N; may be given again (what systemd hands over, or "
        "127.0.0.1:8000)",
    )
    add("--workers", type=whole("a number of workers", 1, 240), default=None, metavar="N",
        help="processes (one per usable processor)")  # fmt: skip
    add("--factory", action="store_true", help="call NAME for what is to be served")
    add("--kind", choices=KINDS, default=None, help="what NAME is (seen from its arguments)")
    add("--app-dir", default=".", metavar="DIR", help="where modules are looked for first (.)")
    add("--backlog", type=whole("a backlog", 1, 1 << 20), default=2048, metavar="N",
        help="connections that wait for a worker (%(default)s)")  # fmt: skip
    add("--grace", type=seconds("a duration"), default=30.0, metavar="S",
        help="seconds that connections have to end when a worker leaves (%(default)s)")  # fmt: skip
    add("--timeout", type=seconds("a duration"), default=30.0, metavar="S",
        help="seconds after which a worker that hangs is replaced; 0 for never (%(default)s)")  # fmt: skip
    add("--max-restarts", type=whole("a number of restarts", 0, 1 << 20), default=10, metavar="N",
        help="workers in a row that may end at once (%(default)s)")  # fmt: skip
    add("--pid", metavar="FILE", help="a file that names the supervisor's process while it serves")
    add("--certfile", metavar="FILE", help="for TLS: the certificate, with its chain")
    add("--keyfile", metavar="FILE", help="for TLS: the key, where it is not in the same file")
    add("--option", action="append", default=[], metavar="NAME=VALUE", type=_option,
        help="a setting of uvicorn.Config, for ASGI applications; may be given again")  # fmt: skip
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"),
        help="what is told on stderr (%(default)s)")  # fmt: skip


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"an option is NAME=VALUE, not {text!r}")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    return name, int(value) if value.isascii() and value.isdigit() else value


def _where(text: str) -> Callable[[Listeners], object]:
    """Understand a place to listen; returns what adds it to the listeners."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return lambda listeners: listeners.add_unix(rest)
    if kind == "fd" and _is_number(rest, 1 << 30):
        return lambda listeners: listeners.add_descriptor(int(rest))
    host, colon, port = text.rpartition(":")
    if not colon or not _is_number(port, 65535):
        raise argparse.ArgumentTypeError(f"WHERE is HOST:PORT, unix:PATH or fd:N, not {text!r}")
    return lambda listeners: listeners.add_tcp(host.strip("[]") or None, int(port))


def _is_number(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= most


def main(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: what add_arguments made of the command line.

    Returns:
        The exit code: 0 when a signal has ended it, 1 when it could not go on, 2 for wrong
        arguments.
    """
    from .._exceptions import ServeFailed
    from .._serve_run import serve_on
    from .._serve_setup import COMMAND

    logging.basicConfig(
        level=args.log_level.upper(),
        format="%(asctime)s [%(process)d] %(levelname)s %(name)s: %(message)s",
    )
    sys.path.insert(0, os.path.abspath(args.app_dir))

    def listen(listeners: Listeners) -> None:
        for add in args.bind or ():
            add(listeners)
        if not args.bind and not listeners.add_activated():
            listeners.add_tcp("127.0.0.1", 8000)

    try:
        serve_on(
            listen,
            COMMAND,
            pid=args.pid,
            target=args.target,
            workers=args.workers,
            kind=args.kind,
            factory=args.factory,
            backlog=args.backlog,
            ssl=_tls(args.certfile, args.keyfile),
            grace=args.grace,
            timeout=args.timeout or None,
            start_timeout=120.0,
            max_restarts=args.max_restarts,
            options=dict(args.option),
        )
    except (TypeError, ValueError) as error:
        print(f"plait: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, ServeFailed) as error:
        print(f"plait: {_told(error)}", file=sys.stderr)
        return 1
    return 0


def _told(error: Exception) -> str:
    """Write an error without its number."""
    if isinstance(error, OSError) and error.strerror is not None:
        where = "" if error.filename is None else f"{error.filename!r}: "
        return f"{where}{error.strerror}"
    return str(error)


def _tls(certfile: str | None, keyfile: str | None) -> Callable[[], Any] | None:
    if certfile is None:
        if keyfile is not None:
            raise ValueError("--keyfile goes with --certfile")
        return None
    import ssl

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for option, path in (("--certfile", certfile), ("--keyfile", keyfile)):
            if path is None:
                continue
            try:  # OpenSSL does not say which of them it could not read
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise RuntimeError(f"{option}: cannot read {path!r}: {error.strerror}") from None
        try:
            context.load_cert_chain(certfile, keyfile)
        except OSError as error:
            files = certfile if keyfile is None else f"{certfile} with --keyfile {keyfile}"
            raise RuntimeError(f"--certfile {files} cannot be used: {error}") from None
        return context

    make()  # a file that is missing or wrong is told before anything starts
    return make
