# SPDX-License-Identifier: Apache-2.0
"""The limit of endpoints of one ComputeProfile that replace their revision at the same time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from math import inf
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment

DEFAULT_PER_NAMESPACE: Final = 1
TURN_SECONDS: Final = 60
"""Seconds for which a free slot is kept for the endpoint whose turn it is."""


def uses_profile(endpoint: InferenceDeployment, profile: ComputeProfile) -> bool:
    """Whether the endpoint uses this profile, by name or because it is the default."""
    named = endpoint.spec.compute.profile
    return profile.is_default if named is None else named == profile.name


def is_replacing(endpoint: InferenceDeployment) -> bool:
    """Whether a new revision is starting next to one that serves. A paused rollout is not."""
    serving = endpoint.status.revision
    if endpoint.spec.strategy.paused:
        return False
    return bool(serving) and any(
        revision.state == "RollingOut" and revision.name != serving for revision in endpoint.status.revisions
    )


@dataclass(frozen=True, slots=True)
class Slot:
    """Whether an endpoint may start a revision next to the one that serves."""

    is_free: bool
    recheck_seconds: float | None = None
    """Seconds until it may be free without the end of another rollout; None: only that frees it."""


def slot_of(
    endpoint: InferenceDeployment,
    profile: ComputeProfile,
    rolling: Iterable[InferenceDeployment],
    queued: Callable[[], Iterable[InferenceDeployment]],
    now: datetime,
) -> Slot:
    """The slot of an endpoint that is not rolling out yet.

    Args:
        endpoint: it has a revision to start.
        profile: it limits the rollouts, by default to one per namespace.
        rolling: endpoints of all namespaces with a starting revision.
        queued: returns those with the reason Queued.
        now: time of the pass.
    """
    limit, seconds = profile.spec.limits.concurrent_rollouts, profile.spec.limits.progress_deadline_seconds

    def rivals(endpoints: Iterable[InferenceDeployment]) -> list[InferenceDeployment]:
        others = (each for each in endpoints if each.uid != endpoint.uid and uses_profile(each, profile))
        return [each for each in others if limit is not None or each.namespace == endpoint.namespace]

    held = [_seconds_left(each, seconds, now) for each in rivals(rolling) if is_replacing(each)]
    held = [left for left in held if left > 0]
    free = (DEFAULT_PER_NAMESPACE if limit is None else limit) - len(held)
    if free <= 0:
        first = min(held)
        return Slot(is_free=False, recheck_seconds=None if first == inf else first)
    if is_replacing(endpoint):
        # It has a slot, and is created again.
        return Slot(is_free=True)
    waiting = [endpoint, *filter(_awaits_slot, rivals(queued()))]
    if len(waiting) <= free or endpoint.uid in _next_turns(waiting, now)[:free]:
        return Slot(is_free=True)
    return Slot(is_free=False, recheck_seconds=TURN_SECONDS - now.timestamp() % TURN_SECONDS)


def _seconds_left(endpoint: InferenceDeployment, seconds: int | None, now: datetime) -> float:
    """Seconds for which a rollout still holds its slot, if the profile limits them."""
    since = [each.since for each in endpoint.status.revisions if each.state == "RollingOut" and each.since]
    if seconds is None or not since:
        return inf
    return seconds - (now - max(since)).total_seconds()


def _awaits_slot(endpoint: InferenceDeployment) -> bool:
    """Whether the endpoint has the reason Queued for this limit, not for a queue of its pods."""
    has_started = any(
        revision.state in {"RollingOut", "WaitingForCapacity"} for revision in endpoint.status.revisions
    )
    is_held = endpoint.spec.strategy.paused or endpoint.metadata.deletion_timestamp is not None
    return not has_started and not is_held


def _next_turns(waiting: Iterable[InferenceDeployment], now: datetime) -> list[str]:
    """The uids of the endpoints in the order in which they take slots: one per namespace, then the next one.

    Each turn another namespace is the first, and in each namespace another endpoint. So a namespace gets no
    more slots by having more endpoints, and one that does not take its turn holds up the others only for it.
    """
    turn = int(now.timestamp()) // TURN_SECONDS
    by_namespace: dict[str, list[str]] = {}
    for endpoint in sorted(waiting, key=lambda each: (each.namespace, each.uid)):
        by_namespace.setdefault(endpoint.namespace, []).append(endpoint.uid)
    namespaces = _rotated(list(by_namespace), turn)
    lines = [_rotated(by_namespace[each], turn // len(namespaces)) for each in namespaces]
    return [uid for row in zip_longest(*lines) for uid in row if uid is not None]


def _rotated(values: list[str], places: int) -> list[str]:
    first = places % len(values)
    return values[first:] + values[:first]
