# SPDX-License-Identifier: Apache-2.0
"""Authorize reports: from the token to the pod, its Job, and the run that controls the Job.

The API server reviews tokens. The results are kept by the token's hash, and token buckets limit the reviews.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from finetune_operator.api.meta import API_VERSION
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import JOB, POD, TOKEN_REVIEW, controller
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_trainer.contract.environment import REPORT_AUDIENCE


class TokenBucket:
    """Admits `rate` events per second, and `burst` at once after a pause."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock()

    def take(self) -> bool:
        """Take a token; False if there is none."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class KeyedTokenBuckets:
    """One bucket per key, for the `remembered` most recently used keys."""

    def __init__(
        self, rate: float, burst: float, remembered: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._remembered = remembered
        self._clock = clock
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def take(self, key: Hashable) -> bool:
        """Take a token from the key's bucket; False if there is none."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, self._clock)
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._remembered:
            self._buckets.popitem(last=False)
        return bucket.take()


MAX_REMEMBERED: Final = 10_000
"""Number of accepted tokens, of refused ones, and of addresses that are remembered."""

REVIEWS_PER_SECOND: Final = 20
REVIEW_BURST: Final = 100
"""Limit of token reviews for unknown tokens."""
SOURCE_REVIEWS_PER_SECOND: Final = 1
SOURCE_REVIEW_BURST: Final = 10
"""Limit per address, so that a pod with random tokens does not use up the limit for all. It is also the limit
per accepted token, whose result can be too old for several requests at once."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Result = TypeVar("Result")


class TooManyReviews(Exception):
    """The limit of reviews of unknown tokens is reached."""


class _Reviewed(NamedTuple, Generic[Result]):
    """Result of a review, and until when it holds, in monotonic seconds."""

    until: float
    result: Result


class _Recent(OrderedDict[Key, Value]):
    """The MAX_REMEMBERED keys that were set last."""

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > MAX_REMEMBERED:
            self.popitem(last=False)


class ReviewedTokens(Generic[Result]):
    """Reviews each token once in a while. The token itself is not stored.

    Random tokens must not keep a caller with a good one from being served. So a token that was accepted
    before is reviewed again without the limits of unknown tokens, and unknown tokens from an address that has
    presented an accepted one, such as a renewed token, only have the limit of this address.

    Args:
        review: reviews a token.
        seconds: returns for how long a result is kept.
        is_accepted: whether a result accepts the token.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        review: Callable[[str], Awaitable[Result]],
        seconds: Callable[[Result], float],
        is_accepted: Callable[[Result], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._review = review
        self._seconds = seconds
        self._is_accepted = is_accepted
        self._clock = clock
        self._accepted: _Recent[bytes, _Reviewed[Result]] = _Recent()
        self._refused: _Recent[bytes, _Reviewed[Result]] = _Recent()
        self._trusted_sources: _Recent[str, None] = _Recent()
        self._reviews = TokenBucket(REVIEWS_PER_SECOND, REVIEW_BURST, clock)
        self._sources = KeyedTokenBuckets(
            SOURCE_REVIEWS_PER_SECOND, SOURCE_REVIEW_BURST, MAX_REMEMBERED, clock
        )
        self._tokens = KeyedTokenBuckets(
            SOURCE_REVIEWS_PER_SECOND, SOURCE_REVIEW_BURST, MAX_REMEMBERED, clock
        )

    async def result(self, token: str, source: str) -> Result:
        """The result of the token's review, from memory if it is known.

        Args:
            token: token of the request.
            source: address of the request.

        Raises:
            TooManyReviews: the limit of reviews is reached; try again later.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._accepted.get(digest) or self._refused.get(digest)
        if known is not None and known.until > self._clock():
            return known.result
        if not self._may_review(digest, source):
            raise TooManyReviews
        result = await self._review(token)
        reviewed = _Reviewed(self._clock() + self._seconds(result), result)
        if self._is_accepted(result):
            self._accepted[digest] = reviewed
            self._trusted_sources[source] = None
        else:
            self._accepted.pop(digest, None)
            self._refused[digest] = reviewed
        return result

    def _may_review(self, digest: bytes, source: str) -> bool:
        if digest in self._accepted:
            return self._tokens.take(digest)
        return self._sources.take(source) and (source in self._trusted_sources or self._reviews.take())


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
