# SPDX-License-Identifier: Apache-2.0
"""Two ways to one vLLM: through the middleware of an endpoint, and past it.

The speeds of two processes of vLLM differ by more than the middleware costs, for as long as they run. vLLM's
process imports this module from a folder that has the middleware's package.
"""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from finetune_trainer.serve.vllm.middleware import EndpointMiddleware

PAST_THE_MIDDLEWARE: Final = "x-bench-past-the-middleware"
"""Header of requests that vLLM answers alone."""
_HEADER: Final = (PAST_THE_MIDDLEWARE.encode(), b"1")


class EitherWay:
    """Outermost layer of vLLM's server."""

    def __init__(self, app: ASGIApp) -> None:
        self._alone = app
        self._guarded = EndpointMiddleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the start of the server."""
        alone = scope["type"] == "http" and _HEADER in scope["headers"]
        await (self._alone if alone else self._guarded)(scope, receive, send)
