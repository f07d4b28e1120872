"""What every request passes before it is looked at: how large it may be, and from which page it may come."""

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from qamoe.inference.extraction_worker import Limits

# Read and thrown away of a body that is too large, so that its sender reads the refusal and no broken connection.
_DRAINED = 256 << 20
# The page's own script and style, films from here or from the visitor's disk; nothing else from anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "media-src 'self' blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Guard:
    """ASGI middleware: bodies up to a limit, no request of another site's page, and headers that keep pages alone."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.limits.media_bytes if scope["path"] == "/clips" else self.limits.json_bytes
        too_large = f"The body is too large; allowed are {limit >> 20} MiB."
        taken = 0

        async def bounded() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                while message.get("more_body") and taken < limit + _DRAINED:
                    message = await receive()
                    taken += len(message.get("body", b""))
                raise HTTPException(413, too_large)
            return message

        async def protected(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and origin.partition("://")[2] != headers.get("host"):
            refusal = JSONResponse({"error": "Pages of other sites may not ask this server."}, 403)
            await refusal(scope, receive, protected)
            return
        await self.app(scope, bounded, protected)
