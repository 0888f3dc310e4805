# SPDX-License-Identifier: Apache-2.0
"""The pods of an Indexed Job, which work together. Each index has one pod at a time."""

import re
from collections.abc import Iterable
from typing import Final

from finetune_operator.plan import Manifest

INDEX: Final = "batch.kubernetes.io/job-completion-index"
"""Annotation that the Job controller sets only on pods of an Indexed Job."""
NUMBER: Final = re.compile("[0-9]{1,9}")


def index_of(pod: Manifest) -> int | None:
    """Index of the pod in an Indexed Job; None for the pod of another Job."""
    index = (pod["metadata"].get("annotations") or {}).get(INDEX)
    # Users may edit it.
    return int(index) if index is not None and NUMBER.fullmatch(index) else None


def nodes_of(job: Manifest) -> int:
    """Number of pods that the Job runs at the same time."""
    spec = job.get("spec", {})
    return int(spec.get("completions", 1)) if spec.get("completionMode") == "Indexed" else 1


def describe_pod(stage: str, pod: Manifest) -> str:
    """A stage's pod for messages, with its index if the Job has several pods."""
    index = index_of(pod)
    return f"the {stage} pod" if index is None else f"{stage} pod {index}"


def newest_per_index(pods: Iterable[Manifest]) -> list[Manifest]:
    """The newest pod of each index, in the order of the indexes, from pods that are sorted newest first."""
    newest: dict[int, Manifest] = {}
    for pod in pods:
        newest.setdefault(index_of(pod) or 0, pod)
    return [newest[index] for index in sorted(newest)]
