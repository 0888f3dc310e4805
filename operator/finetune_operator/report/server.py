# SPDX-License-Identifier: Apache-2.0
"""HTTPS server of `POST /v1/reports`.

Reports only show progress. A run whose reports are all lost has the same result.
"""

import logging
import ssl
from collections.abc import Callable
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from finetune_operator.engine.errors import ApiError
from finetune_operator.report.authorizer import Authorizer, Caller, ReportDenied
from finetune_operator.report.board import ProgressBoard
from finetune_operator.report.rate import Buckets
from finetune_operator.report.reviewedtokens import TooManyReviews
from finetune_trainer.contract.base import CONTRACT_VERSION
from finetune_trainer.contract.environment import REPORT_PATH
from finetune_trainer.contract.progress import Report

logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024
REPORTS_PER_SECOND: Final = 2.0
REPORT_BURST: Final = 20.0
MAX_REMEMBERED_PODS: Final = 10_000


class ReportServer:
    """Accepts reports while this process is active, and responds with 503 otherwise.

    Args:
        authorizer: identifies the caller by its token.
        board: receives accepted reports.
        active: whether this process is active.
        answered: called with the HTTP status of every response.
    """

    def __init__(
        self,
        authorizer: Authorizer,
        board: ProgressBoard,
        active: Callable[[], bool],
        answered: Callable[[int], None],
    ) -> None:
        self._authorizer = authorizer
        self._board = board
        self._active = active
        self._answered = answered
        self._buckets = Buckets(REPORTS_PER_SECOND, REPORT_BURST, MAX_REMEMBERED_PODS)
        self._runner: web.AppRunner | None = None

    async def start(self, port: int, context: ssl.SSLContext) -> None:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post(REPORT_PATH, self._report)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=port, ssl_context=context).start()
        logger.info("the report endpoint listens on port %d", port)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _report(self, request: web.Request) -> web.Response:
        answer = await self._answer(request)
        self._answered(answer.status)
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        if not self._active():
            return _refusal(503, "this process is not the active one", retry=True)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return _refusal(401, "send the projected token as Authorization: Bearer")
        try:
            caller = await self._authorizer.caller(token, request.remote or "")
        except ReportDenied as error:
            return _refusal(401, str(error))
        except TooManyReviews:
            return _refusal(429, "too many unknown tokens", retry=True)
        except ApiError as error:
            logger.warning("cannot review the token of a report: %s", error)
            return _refusal(503, "the API server did not review the token", retry=True)
        if not self._buckets.take(caller.pod_uid):
            return _refusal(429, f"more than {REPORTS_PER_SECOND:.0f} reports per second", retry=True)
        return await self._accept(caller, request)

    async def _accept(self, caller: Caller, request: web.Request) -> web.Response:
        try:
            report = Report.parse(await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, f"a report may have at most {MAX_BODY_BYTES} bytes")
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            return _refusal(400, f"not a report of contract {CONTRACT_VERSION}: {where}: {problem['msg']}")
        if report.owner.uid != caller.uid:
            return _refusal(
                403, f"this pod works for {caller.kind} {caller.name}, not for {report.owner.name}"
            )
        self._board.accept(caller, report)
        return web.Response(status=204)


def _refusal(status: int, message: str, *, retry: bool = False) -> web.Response:
    headers = {"Retry-After": "5"} if retry else {}
    return web.json_response({"error": message}, status=status, headers=headers)
