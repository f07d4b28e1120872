"""Read a JSON body whose size as Python values is bounded, and whose meaning does not depend on the reader."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_MOST_KEYS = 16  # of one object; the largest that is allowed has 4
# Commas and opening brackets: those of the largest request, 64 texts of 10,000 commas. An empty list takes 3 bytes of a
# body and 64 in memory.
_MOST_VALUES = 64 * 11_000


class JsonRoute(APIRoute):
    """A route whose JSON body is read by `parsed`, and which refuses a form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "").lower()
            if self.body_field is not None and kind.startswith(("multipart/", "application/x-www-form-urlencoded")):
                raise HTTPException(
                    415, "Send JSON as application/json; send a file itself as the body of POST /clips, not as a form."
                )
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        return parsed(await self.body())


def parsed(body: bytes) -> Any:
    """Return the value of a JSON body.

    Raises HTTPException for more values than a request can need, for a key that an object has twice, and for NaN and
    Infinity, which JSON does not have; and what json.loads raises.
    """
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > _MOST_VALUES:
        raise HTTPException(413, f"The body has too many values; the limit is {_MOST_VALUES}.")
    return json.loads(body, object_pairs_hook=_object, parse_constant=_refuse_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise HTTPException(422, "The body has an object with the same key twice.")
    if len(value) > _MOST_KEYS:
        raise HTTPException(422, f"The body has an object with {len(value)} keys; the limit is {_MOST_KEYS}.")
    return value


def _refuse_constant(_: str) -> NoReturn:
    raise HTTPException(422, "The body has a NaN or an Infinity; JSON has neither.")
