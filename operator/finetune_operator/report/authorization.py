# SPDX-License-Identifier: Apache-2.0
"""Authorize reports: from the token to the pod, its Job, and the run that controls the Job."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.meta import API_VERSION
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import JOB, POD, TOKEN_REVIEW, controller
from finetune_operator.engine.store import ObjectStore
from finetune_operator.engine.token_reviews import ReviewedTokens
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_trainer.contract.environment import REPORT_AUDIENCE

POD_NAME: Final = "authentication.kubernetes.io/pod-name"
POD_UID: Final = "authentication.kubernetes.io/pod-uid"

TRUSTED_SECONDS: Final = 300.0
"""Seconds for which the result of a token review is cached, if the token is accepted or denied."""
DISTRUSTED_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Caller:
    """A pod, and the FineTuneJob, Dataset or Evaluation that it works for."""

    kind: str
    namespace: str
    name: str
    uid: str
    pod_uid: str


class ReportDenied(Exception):
    """The token does not authorize reports; the message gives the reason."""


class Authorizer:
    """Authorizes reports.

    Args:
        cluster: client for token reviews, and for objects that the stores do not have yet.
        stores: stores of pods, Jobs and runs, by kind.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        stores: Mapping[str, ObjectStore],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._reviewed = ReviewedTokens(self._review, _seconds, _is_accepted, clock)

    async def caller(self, token: str, source: str) -> Caller:
        """The caller that the token identifies.

        Args:
            token: token of the request.
            source: address of the request.

        Raises:
            ReportDenied: the token identifies no pod of a run.
            TooManyReviews: the limit of reviews is reached; try again later.
            ApiError: the API server did not review the token.
        """
        answer = await self._reviewed.result(token, source)
        if isinstance(answer, ReportDenied):
            raise answer
        return answer

    async def _review(self, token: str) -> Caller | ReportDenied:
        review = await self._cluster.create(
            {
                "apiVersion": TOKEN_REVIEW.api_version,
                "kind": TOKEN_REVIEW.kind,
                "spec": {"token": token, "audiences": [REPORT_AUDIENCE]},
            }
        )
        status = review.get("status", {})
        if not status.get("authenticated") or REPORT_AUDIENCE not in status.get("audiences", ()):
            return ReportDenied(f"the token is not valid for audience {REPORT_AUDIENCE}")
        user = status["user"]
        extra: dict[str, list[str]] = user.get("extra") or {}
        # system:serviceaccount:NAMESPACE:NAME
        namespace = user["username"].removeprefix("system:serviceaccount:").partition(":")[0]
        name, uid = (extra.get(POD_NAME) or [""])[0], (extra.get(POD_UID) or [""])[0]
        if not name or not uid:
            return ReportDenied("the token is not bound to a pod")
        return await self._owner(namespace, name, uid)

    async def _owner(self, namespace: str, name: str, uid: str) -> Caller | ReportDenied:
        pod = self._stores[POD.kind].get(namespace, name)
        if pod is None or pod["metadata"]["uid"] != uid:
            pod = await self._cluster.get(POD, namespace, name)
        if pod is None or pod["metadata"]["uid"] != uid:
            return ReportDenied(f"pod {name} does not exist")
        reference = controller(pod)
        if reference.get("kind") != JOB.kind:
            return ReportDenied(f"no Job controls pod {name}")
        job = self._stores[JOB.kind].get(namespace, reference["name"])
        if job is None or job["metadata"]["uid"] != reference["uid"]:
            job = await self._cluster.get(JOB, namespace, reference["name"])
        if job is None or job["metadata"]["uid"] != reference["uid"]:
            return ReportDenied(f"Job {reference['name']} does not exist")
        owner = controller(job)
        # A user who may create Jobs may set any owner reference, so only an existing run counts.
        if owner.get("apiVersion") != API_VERSION or not self._is_run(namespace, owner):
            return ReportDenied(f"no run controls Job {reference['name']}")
        return Caller(owner["kind"], namespace, owner["name"], owner["uid"], uid)

    def _is_run(self, namespace: str, owner: Manifest) -> bool:
        row = KIND_ROWS.get(owner["kind"])
        if row is None or not row.has_progress:
            return False
        run = self._stores[owner["kind"]].get(namespace, owner["name"])
        return run is not None and run["metadata"]["uid"] == owner["uid"]


def _is_accepted(answer: Caller | ReportDenied) -> bool:
    return isinstance(answer, Caller)


def _seconds(answer: Caller | ReportDenied) -> float:
    return DISTRUSTED_SECONDS if isinstance(answer, ReportDenied) else TRUSTED_SECONDS
