# SPDX-License-Identifier: Apache-2.0
"""A run, its endpoint and events as the API server has them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_client.follow import RunStatus

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def condition(type_: str, reason: str = "Succeeded", message: str = "") -> dict[str, Any]:
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": NOW.isoformat(),
    }


def job(*conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "routing", "uid": "u", "creationTimestamp": NOW.isoformat()},
        "spec": {
            "modelLine": "routing",
            "baseModel": {"uri": "pvc://models/m"},
            "dataset": {"ref": {"name": "tickets"}},
        },
        "status": {"conditions": list(conditions), **status},
    }


def endpoint(checkpoint: str, *conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    served = [{"name": "routing", "checkpoint": checkpoint}] if checkpoint else []
    return {
        "metadata": {"name": "routing", "uid": "e"},
        "spec": {
            "baseModel": {"uri": "pvc://models/m"},
            "models": [{"name": "routing", "follow": {"modelLine": "routing"}}],
        },
        "status": {"conditions": list(conditions), "models": served, **status},
    }


def event(
    reason: str, message: str, at: datetime = NOW, api: str = "finetune.dev/v1alpha1"
) -> dict[str, Any]:
    return {
        "metadata": {"uid": f"{reason}{at}", "resourceVersion": "7"},
        "involvedObject": {"apiVersion": api, "kind": "FineTuneJob", "name": "routing"},
        "reason": reason,
        "message": message,
        "lastTimestamp": at.isoformat(),
    }


def snapshot(
    job: dict[str, Any], endpoint: dict[str, Any] | None = None, *events: dict[str, Any]
) -> RunStatus:
    return RunStatus.of(job, endpoint, events, NOW + timedelta(seconds=90))
