# SPDX-License-Identifier: Apache-2.0
"""All objects of a namespace in a normalised form, equal for two namespaces with the same history."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from finetune_trainer.contract.environment import CONFIG_ENV
from tests.faults.requests import TOKEN, plain
from tests.integration.api import Api, Object

RECORDED: Final = (
    "Dataset",
    "DatasetVersion",
    "FineTuneJob",
    "Checkpoint",
    "Evaluation",
    "InferenceDeployment",
    "Job",
    "Pod",
    "Deployment",
    "Service",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ServiceAccount",
)
OURS: Final = frozenset(RECORDED[:6])

INCIDENTAL: Final = frozenset(
    {"clusterIP", "clusterIPs", "generation", "managedFields", "resourceVersion", "since"}
)
INCIDENTAL_ENDINGS: Final = ("At", "-at", "Seconds", "Time", "seconds")
"""Ends of the names of fields with times, durations and numbers of attempts."""
STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
"""A string of JSON."""


def snapshot(api: Api, namespace: str) -> str:
    """The objects as JSON.

    Names and uids are numbered in the order of their occurrence, so that references are preserved.
    """
    found = [_normalised(kind, obj) for kind in RECORDED for obj in api.list(kind, namespace)]
    found.sort(key=lambda each: (each["kind"], plain(each["metadata"]["name"]), each["created"]))
    for each in found:
        del each["created"]
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    return numbered(text.replace(namespace, "<namespace>"))


def numbered(text: str) -> str:
    """JSON with the identities in its strings numbered.

    Its numbers stay: the user id 65532 is not the name of a Job that happens to end with these digits.
    """
    numbers: dict[str, str] = {}

    def number(token: re.Match[str]) -> str:
        return numbers.setdefault(token[0], f"<{len(numbers) + 1}>")

    return STRING.sub(lambda string: TOKEN.sub(number, string[0]), text)


def _normalised(kind: str, obj: Object) -> Object:
    metadata = dict(obj["metadata"])
    created = metadata.pop("creationTimestamp")
    spec = comparable(obj.get("spec", {}))
    kept = {"kind": kind, "created": created, "metadata": comparable(metadata), "spec": spec}
    if kind in OURS:
        kept["status"] = comparable(obj.get("status", {}))
    elif kind == "Pod":
        kept = {**kept, "spec": {}, "phase": obj["status"]["phase"]}
    return kept


def comparable(node: Any) -> Any:
    """The node without incidental fields, and without the report endpoint, which may not have been up yet."""
    if isinstance(node, dict) and node.get("name") == CONFIG_ENV:
        return {"config": {key: value for key, value in json.loads(node["value"]).items() if key != "report"}}
    if isinstance(node, dict):
        return dict(_fields(node))
    if isinstance(node, list):
        return [comparable(each) for each in node if not _is_incidental(each)]
    return node


def _is_incidental(node: Any) -> bool:
    """Whether a list can lack this element: the token of reports, or device time for which pods waited.

    Pods that start within the second in which they are created have waited 0 s, and no cause is recorded.
    """
    return isinstance(node, dict) and (node.get("name") == "report-token" or node.get("cause") == "Waiting")


def _fields(node: Object) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key in INCIDENTAL or key.endswith(INCIDENTAL_ENDINGS):
            continue
        kept = comparable(value)
        if kept not in ({}, []):
            yield key, kept
