"""Check what a request says before the application reads it: its host, its origin, and the size and time of its body.

Every answer gets the security headers, and every error is {"error": one sentence}.
"""

import asyncio
import json
import re
from collections import Counter
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from qamoe.inference.extraction_worker import Limits

# Bytes of a refused body to read and discard. Without this the sender sees a broken connection, not the error.
_DRAINED = 256 << 20
_HELD = 4  # full bodies that all requests together may hold: JSON in memory, media on disk
# Allow only inline script and style, and media from this server or from the user's disk.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "media-src 'self' blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::\d{1,5})?")


class RequestGuard:
    """ASGI middleware that limits bodies, checks Host and Origin, and gives every answer the same headers.

    hosts: the names, in lower case and without a port, that a request may have as its Host. The address that the
    connection was made to is allowed too.
    """

    def __init__(self, app: Any, limits: Limits, hosts: frozenset[str]) -> None:
        self.app, self.limits, self.hosts = app, limits, hosts
        self._held: Counter[int] = Counter()  # bytes of bodies, by the limit of one body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive, self.limits, scope["path"] == "/clips", self._held)
        answer = _Answer(send, body, scope["method"] == "HEAD")
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await JSONResponse({"error": refusal}, 403)(scope, receive, answer.send)
                return
            # A HEAD is answered as a GET; uvicorn, too, leaves out the body.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self.app(scope | {"method": method}, body.receive, answer.send)
        except asyncio.CancelledError:  # uvicorn's end of a request that takes longer than a stop may
            if not answer.started:
                stopping = {"error": "The server is shutting down."}
                await JSONResponse(stopping, 503, {"Retry-After": "10"})(scope, receive, answer.send)
        finally:
            body.release()

    def _refusal(self, scope: Any) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        parts = _HOST.fullmatch(host)
        name = parts["name"].strip("[]") if parts else ""
        address = (scope.get("server") or ("",))[0].lower().removeprefix("::ffff:")
        if not name or (name != address and name not in self.hosts):
            return "This server does not have the name in the Host header; --allowed-hosts of qamoe serve adds names."
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and origin.partition("://")[2].lower() != host:
            return "This server does not accept requests from pages of other sites."
        return None


class _Body:
    """The body of one request, limited in bytes and in time; `receive` raises HTTPException beyond a limit."""

    def __init__(self, receive: Any, limits: Limits, media: bool, held: Counter[int]) -> None:
        self._receive, self._held = receive, held
        self._limit = limits.media_bytes if media else limits.json_bytes
        self._seconds = limits.body_s
        self._end = asyncio.get_running_loop().time() + limits.body_s
        self._bytes = self._counted = 0
        self._more = True

    async def receive(self) -> Any:
        if not self._more:  # nothing but the end of the connection follows, at any time
            return await self._receive()
        try:
            message = await self._next()
            if self._bytes > self._limit:
                raise HTTPException(413, f"The body is too large; the limit is {self._limit >> 20} MiB.")
            self._held[self._limit] += len(message.get("body", b""))
            self._counted += len(message.get("body", b""))
            if self._held[self._limit] > _HELD * self._limit:
                self.release()
                raise HTTPException(
                    503, "The server is reading too many large bodies; send this one again.", {"Retry-After": "10"}
                )
        except TimeoutError:
            raise HTTPException(
                408, f"The body took longer than {self._seconds:g} s.", {"Connection": "close"}
            ) from None
        return message

    async def discard(self) -> None:
        """Read the rest of the body, within limits, so that the sender finishes and reads the error."""
        end = self._bytes + _DRAINED
        try:
            while self._more and self._bytes < end:
                await self._next()
        except TimeoutError:
            return

    def release(self) -> None:
        """Stop counting the body as held."""
        self._held[self._limit] -= self._counted
        self._counted = 0

    async def _next(self) -> Any:
        async with asyncio.timeout_at(self._end):
            message = await self._receive()
        self._more = message.get("more_body", False)
        self._bytes += len(message.get("body", b""))
        return message


class _Answer:
    """Sends an answer with the security headers. An error that is not JSON, such as starlette's own, becomes JSON."""

    def __init__(self, send: Any, body: _Body, without_body: bool) -> None:
        self._send, self._body, self._without_body = send, body, without_body
        self.started = self._replaced = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers, status = MutableHeaders(scope=message), message["status"]
            headers.update(HEADERS)
            if status >= 400:
                await self._body.discard()
            self._replaced = status >= 400 and headers.get("content-type") != "application/json"
            if self._replaced:
                sentence = f"The request was refused ({status} {HTTPStatus(status).phrase})."
                body = json.dumps({"error": sentence}).encode()
                headers.update({"content-type": "application/json", "content-length": str(len(body))})
                await self._send(message)
                message = {"type": "http.response.body", "body": b"" if self._without_body else body}
        elif self._replaced:
            return
        elif self._without_body:
            message = message | {"body": b""}
        await self._send(message)
