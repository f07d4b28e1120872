"""Limit the size of requests, refuse requests from pages of other sites, and set security headers."""

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from qamoe.inference.extraction_worker import Limits

# Bytes of a too large body to read and discard. Without this the sender sees a broken connection, not the error.
_DRAINED = 256 << 20
# Allow only inline script and style, and media from this server or from the user's disk.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "media-src 'self' blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class RequestGuard:
    """ASGI middleware that limits bodies, refuses requests from pages of other sites, and adds security headers."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.limits.media_bytes if scope["path"] == "/clips" else self.limits.json_bytes
        too_large = f"The body is too large; the limit is {limit >> 20} MiB."
        received = 0

        async def limited_receive() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                while message.get("more_body") and received < limit + _DRAINED:
                    message = await receive()
                    received += len(message.get("body", b""))
                raise HTTPException(413, too_large)
            return message

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and origin.partition("://")[2] != headers.get("host"):
            refusal = JSONResponse({"error": "This server does not accept requests from pages of other sites."}, 403)
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, limited_receive, send_with_headers)
