# SPDX-License-Identifier: Apache-2.0
"""Error responses in the shape of the OpenAI API, which its clients understand."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from finetune_trainer.serve.admission import Refusal, ShedReason
from finetune_trainer.serve.requests import UNSUPPORTED
from finetune_trainer.serve.serving_metrics import CLIENT_CLOSED_REQUEST

MODEL_NOT_FOUND = "model_not_found"
CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
MODEL_NOT_READY = "model_not_ready"
DEADLINE_EXCEEDED = "deadline_exceeded"

_MAX_PROBLEMS_IN_MESSAGE = 3


class RequestError(Exception):
    """Error response to a request. `message` says what to change; `code` is for programs."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    @classmethod
    def invalid(cls, message: str, param: str | None = None, code: str | None = None) -> "RequestError":
        """Build the error for an invalid request (400)."""
        return cls(HTTPStatus.BAD_REQUEST, message, param=param, code=code)

    @classmethod
    def loading(cls) -> "RequestError":
        """Build the error for a request that arrives before the models are loaded (503)."""
        return cls(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The model is still loading: try again in a few seconds.",
            code=MODEL_NOT_READY,
            headers={"Retry-After": "5"},
        )

    @classmethod
    def overloaded(cls, refusal: Refusal) -> "RequestError":
        """Build the error for a request that is refused because it would wait too long (429)."""
        reasons: Mapping[ShedReason, str] = {
            "queue_full": "The queue of this server is full",
            "too_late": "This server is too busy to begin this answer in time",
            "waited": "This server was too busy to begin this answer in time",
        }
        seconds = refusal.retry_after_seconds
        return cls(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"{reasons[refusal.reason]}: try again in {seconds} s, or serve more replicas.",
            code=RATE_LIMIT_EXCEEDED,
            headers={"Retry-After": str(seconds)},
        )

    @classmethod
    def deadline(cls) -> "RequestError":
        """Build the error for an answer that is not complete by the server's deadline (504)."""
        return cls(
            HTTPStatus.GATEWAY_TIMEOUT,
            "The answer is not complete by the deadline of this server: set a smaller max_tokens, or try"
            " again when the server is less busy.",
            code=DEADLINE_EXCEEDED,
        )

    @classmethod
    def unreadable(cls, error: ValidationError) -> "RequestError":
        """Build the error for a body that is not JSON or does not match the API. Names the invalid fields."""
        problems = error.errors(include_url=False, include_input=False)
        texts = []
        for problem in problems[:_MAX_PROBLEMS_IN_MESSAGE]:
            field = _field(problem)
            message = "unknown field" if problem["type"] == "extra_forbidden" else problem["msg"]
            texts.append(f"{field}: {message}" if field else message)
        if len(problems) > _MAX_PROBLEMS_IN_MESSAGE:
            texts.append(f"and {len(problems) - _MAX_PROBLEMS_IN_MESSAGE} more problems")
        return cls.invalid("; ".join(texts), param=_field(problems[0]) or None)

    def body(self) -> dict[str, object]:
        """Build the JSON body of the response."""
        error = {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Build the response."""
        return JSONResponse(self.body(), self.status, self.headers)


def install(app: FastAPI) -> None:
    """Register handlers that return all errors, including those of the framework, in this shape."""

    async def request_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)  # noqa: S101 - registered for this type
        return error.response()

    async def framework_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type
        status = HTTPStatus(error.status_code)
        message = f"{request.method} {request.url.path}: {error.detail}."
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            message += " The server has POST /v1/chat/completions, POST /v1/completions and GET /v1/models."
        return JSONResponse(RequestError(status, message).body(), status, error.headers)

    async def client_disconnected(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def unexpected_error(_: Request, __: Exception) -> JSONResponse:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        error = RequestError(status, "The server failed: see its log for the cause.")
        return JSONResponse(error.body(), status)

    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(HTTPException, framework_error)
    app.add_exception_handler(ClientDisconnect, client_disconnected)
    app.add_exception_handler(Exception, unexpected_error)


def _type(status: HTTPStatus) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else "invalid_request_error"


def _field(problem: ErrorDetails) -> str:
    """Return `messages[0].role` for ("messages", 0, "role"); empty if the whole body is invalid."""
    location = problem["loc"]
    if problem["type"] == UNSUPPORTED:
        location = (*location, problem["ctx"]["name"])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")
