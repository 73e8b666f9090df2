"""Every error in one shape: {"error": {"code", "message", "field"}}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stair.cluster.work import ClusterError
from stair.serve.schemas import KINDS, Failure

CODES = {
    400: "malformed",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "reload_failed",
    413: "too_large",
    422: "invalid",
    500: "internal",
    503: "busy",
    504: "timeout",
}
SHOWN = 60  # characters of what came


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`."""
    return {status: {"model": Failure, "description": CODES[status].replace("_", " ")} for status in statuses}


class RefusedError(HTTPException):
    """A request that cannot be answered; the message names the field."""

    def __init__(
        self, status: int, message: str, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.field = field


def failure(status: int, message: str, field: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    error = {"code": CODES.get(status, "error"), "message": message, "field": field}
    body = json.dumps({"error": error})  # in ASCII: what came may hold half a character
    return Response(body, status, headers, media_type="application/json")


def handle_errors(app: FastAPI) -> None:
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClusterError, _unreachable)
    app.add_exception_handler(Exception, _internal)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code in (404, 405) and not isinstance(error, RefusedError):
        message = f"{request.method} {request.url.path}: {message.lower()}"
    return failure(error.status_code, message, getattr(error, "field", None), error.headers)


def _invalid(request: Request, error: Exception) -> Response:
    """The first of what is wrong, by the name that the sender gave it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if place[0] == "body" and len(place) > 2 and place[1] in KINDS:
        del place[1]  # which of the models: no name that the sender knows
    if first["type"] == "json_invalid":
        place = place[:1]
    field = ".".join(place[1:] or place)
    message, got = first["msg"].removeprefix("Value error, "), first.get("input")
    message = f"{field}: {message[:1].lower()}{message[1:]}"
    if first["type"] == "json_invalid":
        message += f" ({first['ctx']['error']})"
    elif isinstance(got, (str, int, float)):
        message += f", got {got!r}" if len(repr(got)) <= SHOWN else f", got {repr(got)[:SHOWN]}..."
    return failure(422, message, field)


def _unreachable(request: Request, error: Exception) -> Response:
    return failure(503, str(error), headers={"Retry-After": "10"})


def _internal(request: Request, error: Exception) -> Response:
    return failure(500, "an error of the service; its log says more")
