# SPDX-License-Identifier: Apache-2.0
"""Control of a rollout by people: a pause, decisions that are obeyed once, and the history."""

from typing import Any

import pytest

from finetune_operator.api.inference_deployment import MAX_HISTORY_MODELS, RevisionModel, RevisionStatus
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import spec_hash, with_entry
from tests.unit.operator.endpoints import NOW, EndpointCluster, checkpoint, endpoint, rolling, serving, states


def decide(cluster: EndpointCluster, revision: str, verdict: str, **more: Any) -> None:
    cluster.edit(strategy={"decision": {"revision": revision, "verdict": verdict, **more}})
    cluster.settle()


def obeyed(cluster: EndpointCluster) -> tuple[str, str, int] | None:
    decision = cluster.endpoint.status.decision
    return None if decision is None else (decision.revision, decision.verdict, decision.generation)


def test_while_paused_no_revision_starts_and_what_serves_can_be_scaled() -> None:
    cluster, old = serving()
    cluster.edit(strategy={"paused": True}, replicas=3)
    cluster.settle()
    assert cluster.deployments[old]["spec"]["replicas"] == 3
    cluster.make_ready(old)
    cluster.settle()
    assert cluster.condition("Ready") is not None, "nothing waits for the end of the pause"
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    assert list(cluster.deployments) == [old]
    reason, message = cluster.condition("Suspended") or ("", "")
    assert reason == "Paused"
    assert f"{old} serves" in message
    cluster.edit(strategy={"paused": False})
    cluster.settle()
    assert len(cluster.deployments) == 2


def test_a_pause_holds_a_ready_revision_without_requests() -> None:
    cluster, old, new = rolling()
    cluster.edit(strategy={"paused": True})
    cluster.make_ready(new)
    cluster.settle()
    assert cluster.points_at == old
    assert states(cluster) == {new: "RollingOut", old: "Live"}
    cluster.edit(strategy={})
    cluster.settle()
    assert cluster.points_at == new


def test_a_revision_that_cannot_start_is_removed_while_paused_too() -> None:
    cluster, old, new = rolling()
    cluster.edit(strategy={"paused": True})
    cluster.miss_deadline(new)
    cluster.settle()
    assert states(cluster) == {new: "Failed", old: "Live"}


def test_an_abort_rolls_back_and_names_the_person_and_the_figures_of_the_decision() -> None:
    cluster, old, new = rolling()
    decide(cluster, new, "Abort", reason="ana: answers in French")
    assert list(cluster.deployments) == [old]
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "RolledBack"
    assert "ana: answers in French" in message
    assert f"{old} serves" in message
    (entry, _) = cluster.endpoint.status.revisions
    assert entry.verdict is not None
    assert (entry.verdict.result, entry.message) == (
        "Aborted",
        "aborted by spec.strategy.decision: ana: answers in French",
    )
    assert obeyed(cluster) == (new, "Abort", 1)
    events = [event.reason for event in cluster.cluster.events]
    assert events.count("RolledBack") == 1


def test_a_decision_is_obeyed_once_though_it_stays_in_the_spec() -> None:
    cluster, old, new = rolling()
    decide(cluster, new, "Abort")
    decided = {"revision": new, "verdict": "Abort"}
    cluster.edit(strategy={"decision": decided, "progressDeadlineSeconds": 900})
    cluster.settle()
    assert states(cluster)[new] == "RollingOut", "an edit of the spec tries it again"
    cluster.make_ready(new)
    cluster.settle()
    assert states(cluster) == {new: "Live", old: "Retired"}


def test_neither_scaling_nor_a_pause_tries_an_aborted_revision_again() -> None:
    cluster, old, new = rolling()
    decide(cluster, new, "Abort")
    decided = {"decision": {"revision": new, "verdict": "Abort"}}
    cluster.edit(strategy={**decided, "paused": True}, replicas=2)
    cluster.settle()
    assert states(cluster)[new] == "RolledBack"
    assert list(cluster.deployments) == [old]


def test_a_promotion_tries_a_failed_revision_again_once() -> None:
    cluster, _, new = rolling()
    cluster.miss_deadline(new)
    cluster.settle()
    assert states(cluster)[new] == "Failed"
    decide(cluster, new, "Promote")
    assert states(cluster)[new] == "RollingOut"
    assert obeyed(cluster) == (new, "Promote", 1)
    cluster.miss_deadline(new)
    cluster.settle()
    assert states(cluster)[new] == "Failed"
    cluster.settle()
    assert new not in cluster.deployments
    decide(cluster, new, "Promote", generation=2)
    assert states(cluster)[new] == "RollingOut"


def test_a_decision_about_another_revision_waits_for_it() -> None:
    cluster, _, new = rolling()
    decide(cluster, "desk-00000000", "Abort")
    assert states(cluster)[new] == "RollingOut"
    assert obeyed(cluster) is None


@pytest.mark.parametrize("verdict", ["Promote", "Abort"])
def test_a_decision_about_what_is_live_changes_nothing_now_or_later(verdict: str) -> None:
    cluster, old = serving()
    decide(cluster, old, verdict)
    assert states(cluster) == {old: "Live"}
    assert obeyed(cluster) == (old, verdict, 1)


def test_the_first_revision_cannot_be_aborted_because_nothing_else_would_serve() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    (revision,) = cluster.deployments
    decide(cluster, revision, "Abort")
    assert list(cluster.deployments) == [revision]
    assert states(cluster) == {revision: "RollingOut"}


def test_a_pause_and_a_decision_are_no_edits() -> None:
    decided = {"decision": {"revision": "desk-1", "verdict": "Abort"}, "paused": True}
    assert spec_hash(endpoint(strategy=decided)) == spec_hash(endpoint())


def test_the_history_says_what_to_pin_to_undo_a_rollout() -> None:
    cluster, old, new = rolling()
    cluster.make_ready(new)
    cluster.settle()
    by_name = {entry.name: entry for entry in cluster.endpoint.status.revisions}
    assert [model.checkpoint for model in by_name[old].models] == ["first"]
    assert by_name[old].message == f"replaced by {new}"
    verdict = by_name[old].verdict
    assert verdict is not None
    assert verdict.result == "Passed"
    cluster.edit(models=[{"name": "router", "pin": {"checkpoint": "first"}}])
    cluster.settle()
    cluster.make_ready(old)
    cluster.settle()
    assert cluster.points_at == old
    assert [entry.name for entry in cluster.endpoint.status.revisions] == [old, new], "newest first"


def test_the_history_of_an_endpoint_with_many_models_stays_small() -> None:
    models = tuple(RevisionModel(name=f"m{n}", checkpoint=f"c{n}") for n in range(30))
    revisions: tuple[RevisionStatus, ...] = ()
    for number in range(5):
        entry = RevisionStatus(name=f"r{number}", state="Retired", models=models)
        revisions = with_entry(revisions, entry, NOW)
    assert [len(entry.models) for entry in revisions] == [30, 30, 0, 0, 0]
    assert MAX_HISTORY_MODELS == 64


def test_the_columns_show_the_weights_and_the_verdict() -> None:
    cluster, old, new = rolling()
    shown = cluster.endpoint.status.display
    assert shown is not None
    assert (shown.weight, shown.verdict) == ("100/0", "RollingOut")
    cluster.make_ready(new)
    cluster.settle()
    shown = cluster.endpoint.status.display
    assert shown is not None
    assert (shown.weight, shown.verdict) == ("100", "Passed")
    assert cluster.endpoint.status.revision != old
