"""Errors of the API, in the shape that OpenAI's clients read."""

from __future__ import annotations

import math
from typing import Any


class ApiProblem(Exception):
    """An answer other than success.

    Args:
        status: of HTTP.
        message: what was given, what was expected, what to do.
        code: for programs.
        param: the field that is wrong.
        kind: OpenAI's `type`.
        retry_after_s: when asking again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.param, self.kind, self.retry_after_s = param, kind, retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        text = self.message.encode("utf-8", "replace").decode()
        error = {"message": text, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers beside the body."""
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers


def wrong_field(param: str, message: str) -> ApiProblem:
    """A field's value cannot be used."""
    return ApiProblem(400, message, "invalid_value", param=param)


def no_key() -> ApiProblem:
    """Missing or wrong key."""
    return ApiProblem(
        401,
        "no valid API key: expected the header 'Authorization: Bearer KEY' with a key that "
        "`dreamfleet keys create` made",
        "invalid_api_key",
    )


def no_right() -> ApiProblem:
    """The key's scope does not cover this."""
    return ApiProblem(
        403,
        "this key may not do that: expected a key of scope admin "
        "(`dreamfleet keys create --scope admin`)",
        "insufficient_scope",
        kind="permission_error",
    )


def no_model(name: str) -> ApiProblem:
    """An adapter that is not there."""
    return ApiProblem(
        404,
        f"model {name[:200]!r} does not exist; GET /v1/models lists those that do",
        "model_not_found",
        param="model",
    )


def unusable_model(name: str, reason: str) -> ApiProblem:
    """An adapter that is there but damaged; others are not affected."""
    return ApiProblem(
        503,
        f"model {name[:200]!r} cannot be used: {reason}",
        "model_unusable",
        param="model",
        kind="server_error",
    )


def busy(retry_after_s: float, why: str = "all places in the queue are taken") -> ApiProblem:
    """No room now."""
    return ApiProblem(
        429,
        f"busy: {why}; ask again in {max(1, math.ceil(retry_after_s))} s",
        "rate_limit_exceeded",
        kind="rate_limit_error",
        retry_after_s=retry_after_s,
    )


def not_ready(why: str, retry_after_s: float = 5.0) -> ApiProblem:
    """Starting, ending, or without a replica."""
    return ApiProblem(503, why, "not_ready", kind="server_error", retry_after_s=retry_after_s)


def broken(why: str = "something went wrong here, not with the request") -> ApiProblem:
    """Nobody foresaw it; the log has more."""
    return ApiProblem(
        500, f"{why}; the service's log says more", "internal_error", kind="server_error"
    )
