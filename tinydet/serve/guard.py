"""Guard: what every request must pass before a route sees it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Observe = Callable[[Scope, int, float], None]  # scope, status, seconds

# Without a token: probes, and the page, which asks for the token.
OPEN = re.compile(r"/(healthz|readiness|health|v2/health/live|v2/health/ready|viewer/.*)?")
STREAMED = re.compile(r"/uploads/[^/]+")  # bodies with limits of their own
PATIENCE = 60.0  # seconds without a byte, after which a client that still owes a body is taken for gone
SAFE = ("GET", "HEAD", "OPTIONS")  # methods of requests that change nothing


class Guard:
    """ASGI middleware: the token, the host name, the size of the body, and headers of every answer.

    Args:
        token: sent by clients as `Authorization: Bearer TOKEN`, or as the password of Basic authorization, which
            browsers and Label Studio send; empty for no check.
        hosts: names under which the service may be called; empty for any. Against pages that point a name of their
            own at this machine.
        origins: of other pages that may call the service. A browser sends some requests of any page without asking.
        max_body: bytes of a request.
        observe: called after each request.
    """

    def __init__(
        self, app: App, *, token: str, hosts: tuple[str, ...], origins: tuple[str, ...], max_body: int, observe: Observe
    ) -> None:
        self._app, self._token, self._hosts, self._origins = app, token.encode(), hosts, origins
        self._max_body, self._observe = max_body, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server sends the headers of the answer to GET, and no body
            scope = {**scope, "method": "GET"}
        started, status = time.perf_counter(), 0
        headers = {key.lower(): value for key, value in scope["headers"]}

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            if (refusal := self._refusal(scope, headers)) is not None:
                await _answer(sending, "error" if scope["path"].startswith("/v2") else "detail", *refusal)
            else:
                limit = math.inf if STREAMED.fullmatch(scope["path"]) else self._max_body
                await self._app(scope, _limited(receive, limit), sending)
        finally:
            self._observe(scope, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        host = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1")).strip("[]").lower()
        if self._hosts and host not in self._hosts:
            return 400, f"this service answers only to the host names {', '.join(self._hosts)}; see --host", []
        if (
            self._token
            and not OPEN.fullmatch(scope["path"])
            and not self._is_authorized(headers.get(b"authorization", b""))
        ):
            challenge = (b"www-authenticate", b"Bearer")
            return 401, "send the token of this service: Authorization: Bearer TOKEN", [challenge]
        page = headers.get(b"sec-fetch-site", b"none")  # which only browsers send
        if (
            scope["method"] not in SAFE
            and page not in (b"none", b"same-origin")
            and headers.get(b"origin", b"").decode("latin-1") not in self._origins
        ):
            return 403, "pages of other origins may not call this service (--cors ORIGIN)", []
        length = headers.get(b"content-length", b"0")[:30]
        if not STREAMED.fullmatch(scope["path"]) and length.isdigit() and int(length) > self._max_body:
            return 413, f"a request may have at most {self._max_body} bytes here", []
        return None

    def _is_authorized(self, value: bytes) -> bool:
        scheme, _, given = value.partition(b" ")
        given = given.strip()
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(given, self._token)


def _limited(receive: Receive, limit: float) -> Receive:
    """Return `receive` for a body of at most `limit` bytes.

    It ends the request as a lost connection does when the body becomes larger, or nothing comes for `PATIENCE` seconds:
    a client that vanished without a word would hold its request forever.
    """
    received, is_complete = 0, False

    async def limited() -> MutableMapping[str, Any]:
        nonlocal received, is_complete
        if is_complete:  # what follows is the end of the connection
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), PATIENCE)
        except asyncio.TimeoutError:
            return {"type": "http.disconnect"}
        received += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
        return message if received <= limit else {"type": "http.disconnect"}

    return limited


async def _answer(send: Send, key: str, status: int, detail: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({key: detail}).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
