"""What every request passes: its host, the size of its body, its time, and the counters."""

from __future__ import annotations

import time
from typing import Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stair.serve.errors import RefusedError, failure
from stair.serve.metrics import Metrics
from stair.serve.settings import Settings


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        sent: dict[str, Any] = {"status": 500}

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"], sent["begun"] = message["status"], True
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self._answer(scope, receive, observed, sent)
        finally:
            self.metrics.in_flight.dec()
            # paths that are no route would be without number
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, scope["method"], str(sent["status"])).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, sent: dict[str, Any]) -> None:
        headers = Headers(scope=scope)
        if self.settings.hosts and _name(headers.get("host", "")) not in self.settings.hosts:
            known = ", ".join(self.settings.hosts)
            message = f"host: expected one of {known}, got {headers.get('host', '')!r} (--allow-host adds one)"
            await failure(403, message, "host")(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.settings.max_body:
            await failure(413, self._too_large(length), "body")(scope, receive, send)
            return
        with anyio.move_on_after(self.settings.timeout_s) as deadline:
            await self.app(scope, self._limited(receive), send)
        if deadline.cancelled_caught and not sent.get("begun"):
            message = f"no answer within {self.settings.timeout_s:g} s"
            await failure(504, message, headers={"Connection": "close"})(scope, receive, send)

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, refusing a body that grows past the limit: one sent in chunks does not say its size."""
        got = 0

        async def limited() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.settings.max_body:
                raise RefusedError(
                    413, self._too_large("more"), "body"
                )  # the server reads on to its end, and keeps none
            return message

        return limited

    def _too_large(self, got: str) -> str:
        return f"body: expected at most {self.settings.max_body} bytes, got {got}"


def _name(host: str) -> str:
    """Of a Host header, without its port: example.org, 127.0.0.1, [::1]."""
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() and name else host).lower()
