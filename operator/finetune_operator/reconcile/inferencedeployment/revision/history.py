# SPDX-License-Identifier: Apache-2.0
"""The list of revisions in an endpoint's status."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from finetune_operator.api.endpointstatus import MAX_HISTORY_MODELS, MAX_REVISIONS, RevisionStatus
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.manifests.labels import short_hash
from finetune_operator.reconcile.inferencedeployment.rollout.transitions import ENDED, PROGRESSING


def spec_hash(endpoint: InferenceDeployment) -> str:
    """Hash that changes with each edit of the spec that may fix a failed revision.

    Scaling, protection, routing, a pause and a decision do not count. A field that a later release added to
    the spec or its strategy counts only if it is set, so an upgrade is not an edit.
    """
    spec = _set(endpoint.spec.model_dump(mode="json", exclude={"replicas", "network_policy", "traffic"}))
    strategy = _set(spec["strategy"])
    spec["strategy"] = {name: value for name, value in strategy.items() if name not in {"paused", "decision"}}
    if "canary" in strategy:
        steps = [_set_since_first(step, "set_weight", "pause") for step in strategy["canary"]["steps"]]
        spec["strategy"]["canary"] = {**strategy["canary"], "steps": steps}
    if "analysis" in strategy:
        spec["strategy"]["analysis"] = _analysis(strategy["analysis"])
    spec["compute"] = _set_since_first(spec["compute"], "profile", "devices")
    spec["models"] = [_set_since_first(model, "name", "follow", "pin") for model in spec["models"]]
    if "serving" in spec:
        spec["serving"] = _set_since_first(spec["serving"], "api_keys_secret_ref")
    return short_hash(json.dumps(spec, sort_keys=True), length=16)


def _analysis(analysis: dict[str, Any]) -> dict[str, Any]:
    parts = ("duration_seconds", "max_duration_seconds", "min_requests", "gates", "probe")
    first = ("metric", "quantile", "max", "max_increase", "max_ratio", "confidence")
    probe = analysis["probe"]
    return {
        **_set_since_first(analysis, *parts),
        "gates": [_set_since_first(gate, *first) for gate in analysis["gates"]],
        "probe": None if probe is None else _set_since_first(probe, "requests"),
    }


def _set(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _set_since_first(fields: dict[str, Any], *first: str) -> dict[str, Any]:
    """The fields that are set, and those that the part had when it was added."""
    return {name: value for name, value in fields.items() if value not in (None, []) or name in first}


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
