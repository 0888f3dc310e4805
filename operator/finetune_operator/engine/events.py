# SPDX-License-Identifier: Apache-2.0
"""Kubernetes events, each posted at most once per hour."""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import AlreadyExists, ApiError, Rejected
from finetune_operator.engine.resources import EVENT
from finetune_operator.plan import Event, Manifest

logger = logging.getLogger(__name__)

REPEAT_SECONDS: Final = 3600.0
"""Seconds within which an equal event about the same object is not posted again."""
MAX_REMEMBERED_EVENTS: Final = 10_000
MESSAGE_LIMIT: Final = 1024
CLUSTER_EVENTS: Final = "default"
"""Namespace of events about cluster-scoped objects."""


class EventRecorder:
    """Posts events about objects.

    The name of an event is a hash of its content. So a restarted process does not repeat an event while the
    API server keeps the first one, one hour by default.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        component: str,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._component = component
        self._instance = instance
        self._clock = clock
        self._posted: OrderedDict[str, float] = OrderedDict()

    async def record(self, about: Manifest, event: Event) -> None:
        """Post the event. A failure is only logged, because nothing depends on events."""
        metadata = about["metadata"]
        content = "\0".join((metadata["uid"], event.reason, event.message))
        name = f"{metadata['name']}.{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        if not self._is_new(name):
            return
        try:
            await self._cluster.create(self._manifest(name, about, event))
        except AlreadyExists:
            return
        except ApiError as error:
            del self._posted[name]
            is_expected = isinstance(error, Rejected) and error.is_for_terminating_namespace
            level = logging.DEBUG if is_expected else logging.WARNING
            logger.log(level, "cannot post event %s of %s: %s", event.reason, metadata["name"], error)

    def _is_new(self, name: str) -> bool:
        now = self._clock()
        posted_at = self._posted.get(name)
        if posted_at is not None and now - posted_at < REPEAT_SECONDS:
            return False
        self._posted[name] = now
        self._posted.move_to_end(name)
        while len(self._posted) > MAX_REMEMBERED_EVENTS:
            self._posted.popitem(last=False)
        return True

    def _manifest(self, name: str, about: Manifest, event: Event) -> Manifest:
        metadata = about["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": name, "namespace": metadata.get("namespace", CLUSTER_EVENTS)},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                **({"namespace": metadata["namespace"]} if "namespace" in metadata else {}),
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:MESSAGE_LIMIT],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }
