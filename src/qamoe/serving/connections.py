"""The HTTP server: uvicorn with limits on time and connections that it does not have.

uvicorn limits the size of a head and the idle time between requests. It has no limit for a head or an answer that never
ends, accepts connections without end, and reports errors of HTTP as plain text.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from qamoe.inference.extraction_worker import Limits
from qamoe.serving.middleware import HEADERS

_MOST = 512  # connections; more wait in the queue of the system
_RESERVED = 128  # descriptors of the process itself: the model's files, pipes to the worker, libraries
_STOP_S = 2  # seconds for answers under way when the server stops
_LINGER_S = 1  # seconds in which the client of a connection that ends may close its side
_PATIENCE = 10  # times of _LINGER_S for a client that has not read its answer to the end


class Server(uvicorn.Server):
    """uvicorn on one listening socket. A connection beyond the limit waits until another one ends."""

    def __init__(self, app: Any, limits: Limits) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_STOP_S,
            )
        )
        self._limits = limits
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and accept connections of the first socket."""
        await super().startup(sockets=[])  # no socket: its own loop accepts without a limit
        assert sockets
        self._accepting = asyncio.create_task(self._accept(sockets[0]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, end the connections and stop the application."""
        if self._accepting is not None:
            self._accepting.cancel()
            with suppress(asyncio.CancelledError):
                await self._accepting
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        free = asyncio.Semaphore(most_connections())
        new = partial(
            Connection, self._limits, free.release,
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state,
        )  # fmt: skip
        while True:
            await free.acquire()
            try:
                accepted, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(new, accepted)
            except OSError:  # no descriptor is free, or the client has gone
                free.release()
                await asyncio.sleep(0.1)


def most_connections() -> int:
    """Return how many connections may be open: each may need a second descriptor, for the file that it sends."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _MOST
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _MOST
    return max(1, min(_MOST, (descriptors - _RESERVED) // 2))


class _Transport:
    """A transport that closes as RFC 9112, 9.6 asks: it ends its side, and reads until the client ends the other.

    Closing with bytes of the client unread would reset the connection, and the client would lose the answer.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._closing = transport, loop, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        self._closing = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(_LINGER_S, self._end, _PATIENCE)

    def _end(self, patience: int) -> None:
        if patience and self._transport.get_write_buffer_size():
            self._loop.call_later(_LINGER_S, self._end, patience - 1)
        else:
            self._transport.abort()


class Connection(H11Protocol):
    """One connection. Heads, requests and clients that do not read are limited in time; refusals are JSON."""

    def __init__(self, limits: Limits, ended: Callable[[], None], **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits, self._ended = limits, ended
        self._timed: Any = None  # the request whose time runs; None while a head is due
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Transport(transport, self.loop))  # type: ignore[arg-type]
        self._limit(self._limits.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._ended()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # as of asyncio.Protocol; uvicorn always returns None
        """Called when the client sends nothing more; return whether the connection stays, for an answer under way."""
        if self.transport.is_closing() or not self._answering():
            return False
        self.cycle.keep_alive = False
        return True

    def handle_events(self) -> None:
        super().handle_events()
        request = None if self.cycle is None or self.cycle.response_complete else self.cycle
        if request is self._timed or self.transport.is_closing():
            return
        self._timed = request
        if request is None:
            self._limit(self._limits.head_s, self._head_is_late)
        else:
            self._limit(self._limits.exchange_s, self.transport.abort)

    def pause_writing(self) -> None:
        """Called when the client does not read the answer as fast as it is sent."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.head_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    def shutdown(self) -> None:
        """Called when the server stops: end the connection, but let a request that has arrived be answered."""
        if self._answering():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _answering(self) -> bool:
        """Return whether a whole request has arrived and its answer has not ended."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def send_400_response(self, msg: str) -> None:
        """Called for bytes that are not HTTP, in place of uvicorn's plain text."""
        self._refuse(400, "The request is not valid HTTP, or its head is too large.")

    def _limit(self, seconds: float, late: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, late)

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._refuse(408, f"The head of the request took longer than {self._limits.head_s:g} s.")
        else:
            self.transport.close()

    def _refuse(self, status: int, sentence: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the request under way ends as without client
            started = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            started = False
        if not started and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": sentence}).encode()
            headers = HEADERS | {"content-type": "application/json", "content-length": str(len(body))}
            for event in (
                h11.Response(status_code=status, headers=[*headers.items(), ("connection", "close")]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
