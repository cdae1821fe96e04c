"""TLS for the event loop: the C transport where asyncio's classes are asyncio's own.

``_core.SSLTransport`` pumps the records; the engine is the interpreter's ssl module with the
program's own SSLContext. When somebody has put another class in the place of
``asyncio.sslproto.SSLProtocol``, that class is used, as asyncio would.
"""

from __future__ import annotations

import asyncio
from asyncio import constants, sslproto
from typing import TYPE_CHECKING, Any

from . import _core

if TYPE_CHECKING:
    import socket
    import ssl
    from contextvars import Context

_stock_protocol = sslproto.SSLProtocol


def _seconds(name: str, given: float | None, usual: float) -> float:
    if given is None:
        return usual
    if given <= 0:
        raise ValueError(f"{name} should be a positive number, got {given}")
    return given


def _take_buffered(protocol: asyncio.BaseProtocol) -> bytes:
    """Take out what a stream's reader has received: the peer's hello came early.

    It was never plaintext for the program either, which would take what somebody slipped in
    before the handshake for what was said after it.
    """
    if not isinstance(protocol, asyncio.StreamReaderProtocol):
        return b""
    reader = getattr(protocol, "_stream_reader", None)
    if reader is None:
        return b""
    data = bytes(reader._buffer)
    reader._buffer.clear()
    return data


class TLSMethods:
    """The loop's methods that make TLS transports."""

    if TYPE_CHECKING:

        def create_future(self) -> asyncio.Future[Any]: ...
        def call_soon(self, callback: Any, /, *args: Any) -> asyncio.Handle: ...
        def _new_transport(self, *args: Any) -> asyncio.Transport: ...

    def _tls(
        self,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | None,
        waiter: asyncio.Future[None] | None,
        server_side: bool,
        server_hostname: str | None,
        handshake_timeout: float | None,
        shutdown_timeout: float | None,
        call_connection_made: bool = True,
    ) -> tuple[Any, Any]:
        """Make TLS's protocol (for the transport below) and transport (for the program)."""
        if sslproto.SSLProtocol is not _stock_protocol:
            make: Any = sslproto.SSLProtocol  # its stubs know fewer types than it takes
            theirs = make(
                self,
                protocol,
                sslcontext,
                waiter,
                server_side,
                server_hostname,
                call_connection_made=call_connection_made,
                ssl_handshake_timeout=handshake_timeout,
                ssl_shutdown_timeout=shutdown_timeout,
            )
            return theirs, theirs._app_transport
        handshake = _seconds(
            "ssl_handshake_timeout", handshake_timeout, constants.SSL_HANDSHAKE_TIMEOUT
        )
        shutdown = _seconds(
            "ssl_shutdown_timeout", shutdown_timeout, constants.SSL_SHUTDOWN_TIMEOUT
        )
        if not sslcontext:
            if server_side:
                raise ValueError("Server side SSL needs a valid SSLContext")
            import ssl

            # ssl=True: the defaults; without a name there is nothing to compare with.
            sslcontext = ssl.create_default_context()
            if not server_hostname:
                sslcontext.check_hostname = False
        ours = _core.SSLTransport(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            None if server_side else server_hostname or None,
            call_connection_made,
            handshake,
            shutdown,
        )
        return ours, ours

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | None,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: Context | None = None,
    ) -> asyncio.Transport:
        below, above = self._tls(
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
        self._new_transport(rawsock, below, None, extra, server, context)
        transport: asyncio.Transport = above
        return transport

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport:
        """Upgrade a connection to TLS.

        Args:
            transport (asyncio.Transport): the connection, of this loop.
            protocol: gets the plaintext; its connection_made is not called again.
            sslcontext: how.
            server_side: whether this is the server's end.
            server_hostname: whom the certificate must name, on the client's end.
            ssl_handshake_timeout: seconds; 60 when None.
            ssl_shutdown_timeout: seconds; 30 when None.

        Returns:
            asyncio.Transport: the one to use from now on.

        Raises:
            TypeError: sslcontext is no ssl.SSLContext, or the transport cannot do it.
            ValueError: a timeout is not positive.
            OSError: the handshake failed (ssl.SSLError) or the connection was lost.
        """
        import ssl

        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        waiter: asyncio.Future[None] = self.create_future()
        below, above = self._tls(
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
            call_connection_made=False,
        )
        # Nothing may be received before the protocol below knows its transport.
        transport.pause_reading()
        transport.set_protocol(below)
        begin = self.call_soon(below.connection_made, transport)
        early = _take_buffered(protocol) if server_side else b""
        if early and sslproto.SSLProtocol is _stock_protocol:
            self.call_soon(below.data_received, early)
        elif early:
            below._incoming.write(early)
        resume = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            begin.cancel()
            resume.cancel()
            raise
        result: asyncio.Transport = above
        return result
