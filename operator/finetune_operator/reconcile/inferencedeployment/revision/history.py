# SPDX-License-Identifier: Apache-2.0
"""The list of revisions in an endpoint's status."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from finetune_operator.api.inference_deployment import (
    MAX_HISTORY_MODELS,
    MAX_REVISIONS,
    InferenceDeployment,
    RevisionStatus,
)
from finetune_operator.manifests.labels import short_hash
from finetune_operator.plan import drop_empty
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import ENDED, PROGRESSING

NO_EDITS: Final[dict[str, bool | set[str]]] = {
    "replicas": True,
    "network_policy": True,
    "traffic": True,
    "strategy": {"paused", "decision"},
}
"""Fields of an endpoint's spec whose edit fixes no revision."""


def spec_hash(endpoint: InferenceDeployment) -> str:
    """Hash that changes with each edit of the spec that may fix a failed revision.

    Scaling, protection, routing, a pause and a decision do not count. A field counts only if it is set to
    something else than its default, so an upgrade is not an edit.
    """
    spec = endpoint.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=NO_EDITS)
    return short_hash(json.dumps(drop_empty(spec), sort_keys=True), length=16)


def find_revision(revisions: Iterable[RevisionStatus], name: str) -> RevisionStatus | None:
    """The entry of one revision; None if there is none."""
    return next((revision for revision in revisions if revision.name == name), None)


def with_entry(
    revisions: tuple[RevisionStatus, ...], entry: RevisionStatus, now: datetime
) -> tuple[RevisionStatus, ...]:
    """The list, newest first, with this entry. Its `since` is now, and `started_at` if a rollout begins.

    An entry with the same state, step and spec keeps its `since`, and gets the analysis. A revision that
    starts again is the newest.
    """
    old = find_revision(revisions, entry.name)
    if old is not None and _progress(old) == _progress(entry):
        if old.analysis == entry.analysis:
            return revisions
        measured = old.model_copy(update={"analysis": entry.analysis})
        return tuple(measured if revision is old else revision for revision in revisions)
    since = now.replace(microsecond=0)
    started_at: datetime | None = since
    if old is not None and (entry.state not in PROGRESSING or old.state in PROGRESSING):
        started_at = old.started_at
    entry = entry.model_copy(update={"since": since, "started_at": started_at})
    if old is not None and (entry.state in ENDED or old.state not in ENDED):
        listed = tuple(entry if revision.name == entry.name else revision for revision in revisions)
    else:
        listed = (entry, *(revision for revision in revisions if revision.name != entry.name))
    return _with_few_models(_newest(listed))


def _newest(revisions: tuple[RevisionStatus, ...]) -> tuple[RevisionStatus, ...]:
    """The list without its oldest entries. Revisions that get requests, or can get them back, stay listed."""
    old = [each.name for each in reversed(revisions) if not each.weight and each.state != "Standby"]
    dropped = set(old[: max(len(revisions) - MAX_REVISIONS, 0)])
    return tuple(each for each in revisions if each.name not in dropped)


def _with_few_models(revisions: tuple[RevisionStatus, ...]) -> tuple[RevisionStatus, ...]:
    """The list with at most MAX_HISTORY_MODELS models, those of the newest revisions."""
    total, kept = 0, []
    for revision in revisions:
        total += len(revision.models)
        kept.append(revision if total <= MAX_HISTORY_MODELS else revision.model_copy(update={"models": ()}))
    return tuple(kept)


def _progress(entry: RevisionStatus) -> tuple[str, int | None, str]:
    return entry.state, entry.step, entry.spec_hash


def with_weights(
    revisions: tuple[RevisionStatus, ...], weights: Mapping[str, int]
) -> tuple[RevisionStatus, ...]:
    """The list with each revision's percent of the requests; 0 for revisions that `weights` does not have."""
    return tuple(
        revision
        if revision.weight == weights.get(revision.name, 0)
        else revision.model_copy(update={"weight": weights.get(revision.name, 0)})
        for revision in revisions
    )
