"""The pods of an Indexed Job, which work together: each index has one at a time."""

from collections.abc import Iterable
from typing import Final

from finetune_operator.plan import Manifest

INDEX: Final = "batch.kubernetes.io/job-completion-index"
"""Annotation that the Job controller puts on the pods of an Indexed Job, and only there."""


def index_of(pod: Manifest) -> int | None:
    """Which of several pods it is; None for the pod of a Job that has one at a time."""
    index = (pod["metadata"].get("annotations") or {}).get(INDEX)
    return None if index is None else int(index)


def nodes_of(job: Manifest) -> int:
    """How many pods of the Job run at once."""
    spec = job.get("spec", {})
    return int(spec.get("completions", 1)) if spec.get("completionMode") == "Indexed" else 1


def describe_pod(stage: str, pod: Manifest) -> str:
    """What to call a stage's pod in a message: one of several by its index."""
    index = index_of(pod)
    return f"the {stage} pod" if index is None else f"{stage} pod {index}"


def newest_per_index(pods: Iterable[Manifest]) -> list[Manifest]:
    """Of pods, newest first, the newest of each index, by index; of a Job with one at a time the newest."""
    newest: dict[int, Manifest] = {}
    for pod in pods:
        newest.setdefault(index_of(pod) or 0, pod)
    return [newest[index] for index in sorted(newest)]
