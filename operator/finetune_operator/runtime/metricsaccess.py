# SPDX-License-Identifier: Apache-2.0
"""Who may read the metrics: callers that Kubernetes authenticates and authorizes."""

from dataclasses import dataclass
from typing import Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import SUBJECT_ACCESS_REVIEW, TOKEN_REVIEW
from finetune_operator.report.reviewedtokens import ReviewedTokens

PATH: Final = "/metrics"
REMEMBERED_SECONDS: Final = 60.0
"""Time for which a decision holds, so that Prometheus causes two reviews a minute."""


@dataclass(frozen=True, slots=True)
class MetricsRefusal:
    """Why a caller may not read the metrics.

    Attributes:
        status: HTTP status, 401 or 403.
        reason: sentence for the caller.
    """

    status: int
    reason: str


class MetricsAccess:
    """Reviews the tokens of callers: a TokenReview, and a SubjectAccessReview for `get` on the path /metrics.

    Args:
        cluster: client whose user may create both reviews.
    """

    def __init__(self, cluster: KubernetesClient) -> None:
        self._cluster = cluster
        self._reviewed = ReviewedTokens(
            self._review, seconds=lambda _: REMEMBERED_SECONDS, is_accepted=lambda refusal: refusal is None
        )

    async def refusal(self, token: str, source: str) -> MetricsRefusal | None:
        """Why the caller with this token is refused; None if it may read the metrics.

        Args:
            token: token of the request.
            source: address of the request.

        Raises:
            TooManyReviews: the limit of reviews is reached; try again later.
            ApiError: the API server did not review the token.
        """
        return await self._reviewed.result(token, source)

    async def _review(self, token: str) -> MetricsRefusal | None:
        kind = {"apiVersion": TOKEN_REVIEW.api_version, "kind": TOKEN_REVIEW.kind}
        status = (await self._cluster.create({**kind, "spec": {"token": token}})).get("status", {})
        if not status.get("authenticated"):
            return MetricsRefusal(401, "the API server does not know this token")
        user = status["user"]
        kind = {"apiVersion": SUBJECT_ACCESS_REVIEW.api_version, "kind": SUBJECT_ACCESS_REVIEW.kind}
        spec = {
            "user": user["username"],
            "nonResourceAttributes": {"path": PATH, "verb": "get"},
            **{key: user[key] for key in ("uid", "groups", "extra") if user.get(key)},
        }
        answer = await self._cluster.create({**kind, "spec": spec})
        if not answer.get("status", {}).get("allowed"):
            return MetricsRefusal(403, f"{user['username']} may not get the URL {PATH}")
        return None
