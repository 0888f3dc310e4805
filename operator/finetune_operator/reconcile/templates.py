# SPDX-License-Identifier: Apache-2.0
"""FineTuneJobs that another object makes from a template: their names, manifests and cancellation.

A run has no owner reference, so it stays when its maker is deleted. Its labels name the maker, and its name
and annotation come from a key. Only a run with the annotation counts as one of the maker.
"""

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.meta import API_VERSION, Resource
from finetune_operator.api.run_template import KEY_DIGITS
from finetune_operator.manifests.labels import KEY, child_labels, short_hash
from finetune_operator.plan import Apply, Create, Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked
from finetune_operator.status.conditions import present_state
from finetune_operator.status.reasons import Reason


def run_name(maker: Resource, key: str) -> str:
    """`<maker>-<8 hex of the key>`."""
    return f"{maker.name}-{short_hash(key, length=KEY_DIGITS)}"


def create_run(maker: Resource, key: str, spec: Mapping[str, Any]) -> Create:
    """The creation of a run."""
    metadata = {
        "name": run_name(maker, key),
        "namespace": maker.namespace,
        "labels": child_labels(maker),
        "annotations": {KEY: key},
    }
    manifest = {"apiVersion": API_VERSION, "kind": FineTuneJob.__name__, "metadata": metadata}
    return Create({**manifest, "spec": dict(spec)})


def cancel_run(run: FineTuneJob) -> Apply:
    """The cancellation of a run, with a field manager of its own."""
    metadata = {"name": run.name, "namespace": run.namespace, "uid": run.uid}
    manifest: Manifest = {"apiVersion": API_VERSION, "kind": FineTuneJob.__name__, "metadata": metadata}
    return Apply({**manifest, "spec": {"cancel": True}}, part="cancel")


def is_of(run: FineTuneJob, key: str) -> bool:
    """Whether a run with the name of a key was made for it."""
    return run.metadata.annotations.get(KEY) == key


def find_run(maker: Resource, name: str, key: str, snapshot: Snapshot) -> FineTuneJob | Blocked | None:
    """The run with the name of a key; None if it does not exist."""
    run = snapshot.finetunejobs.get(name)
    if run is None or is_of(run, key):
        return run
    kind = maker.kind
    return Blocked(
        Reason.NAME_CONFLICT,
        f"FineTuneJob {name} exists, and was not made by this {kind}: delete it, or create a new {kind} with"
        " another name",
    )


def why_ended(run: FineTuneJob) -> tuple[str, str]:
    """Reason and message of the end of a run."""
    state = present_state(run.status.conditions)
    return ("", "") if state is None else (state.reason, state.message)
