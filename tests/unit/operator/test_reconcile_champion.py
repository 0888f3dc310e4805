# SPDX-License-Identifier: Apache-2.0
"""A run that continues from the champion of a model line."""

from copy import deepcopy
from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.scheduling import affected_by_champion
from finetune_trainer.contract.references import ParentCheckpoint
from finetune_trainer.contract.vocabulary import FailureReason
from tests.unit.operator.memorycluster import NAMESPACE, MemoryCluster
from tests.unit.operator.runobjects import (
    BASE,
    CHECKPOINT,
    WEIGHTS,
    claim,
    digest,
    failed,
    prerequisites,
)
from tests.unit.operator.runsteps import ended
from tests.unit.operator.test_reconcile_continue import (
    FULL,
    NEXT,
    NEXT_UID,
    continuing,
    full_parent,
    has_stage_job,
    next_preflighted,
    next_run,
    next_trained,
    state,
)
from tests.unit.operator.test_reconcile_live import crown

LINE, OTHER_LINE = "ticket-routing", "ticket-answers"
OWN: Manifest = {"baseModel": {"champion": {}}}
OF_OTHER_LINE: Manifest = {"modelLine": OTHER_LINE, "baseModel": {"champion": {"modelLine": LINE}}}
WITH_START: Manifest = {"baseModel": {"champion": {}, "uri": "pvc://models/gemma"}}


def without_champion() -> MemoryCluster:
    """The first run has ended, and its Checkpoint waits for an approval."""
    return ended(promotion={"mode": "Manual"})


def approve(cluster: MemoryCluster) -> None:
    cluster.change("Checkpoint", CHECKPOINT, approval={"state": "Approved"})
    cluster.settle()


def newer_champion(cluster: MemoryCluster, uri: str | None = None) -> str:
    """Promote another Checkpoint of the line after all others, perhaps in another store; return its name."""
    name = crown(cluster, "9", settle=False)
    record = cluster.objects["Checkpoint", name]
    record["status"]["promotedAt"] = "2031-01-01T00:00:00Z"
    record["spec"]["uri"] = uri or record["spec"]["uri"]
    cluster.settle()
    return name


@pytest.mark.parametrize("spec", [OWN, OF_OTHER_LINE], ids=["its own line", "another line"])
def test_the_champion_and_its_base_model_are_frozen_and_reach_preflight(spec: Manifest) -> None:
    cluster = continuing(**spec)

    resolved = cluster.job(NEXT).status.resolved
    assert (resolved.parent_checkpoint, resolved.parent_digest) == (CHECKPOINT, WEIGHTS)
    config = cluster.config("preflight")
    assert config.parent == ParentCheckpoint(name=CHECKPOINT, digest=WEIGHTS, type="Adapter")
    assert (config.base_model_uri, config.base_model_digest) == ("pvc://models/gemma", BASE)
    assert config.base_model_path is None
    assert not config.base_model_named


def test_a_champion_that_is_promoted_later_changes_nothing_and_stays_the_lineage() -> None:
    cluster = continuing(**OWN)
    newer_champion(cluster)
    for stage, result in (("preflight", next_preflighted()), ("train", next_trained())):
        cluster.succeed(stage, result)
        cluster.settle()

    (made,) = cluster.job(NEXT).status.checkpoints
    lineage = Checkpoint.model_validate(cluster.objects["Checkpoint", made.name]).spec.lineage
    assert lineage.parent_checkpoint == CHECKPOINT


def test_gates_over_live_compare_with_the_champion_at_the_evaluation() -> None:
    gates = [{"metric": "exact_match", "minGain": 0, "over": "Live"}]
    cluster = continuing(**OWN, evaluation={"gates": gates})
    cluster.succeed("preflight", next_preflighted())
    cluster.settle()
    newer = newer_champion(cluster)
    cluster.succeed("train", next_trained())
    cluster.settle()

    live = cluster.job(NEXT).status.live
    assert live is not None
    assert live.checkpoint == newer
    assert cluster.config("evaluate").live.digest == digest("9")


@pytest.mark.parametrize(
    ("spec", "line"), [(OWN, LINE), (OF_OTHER_LINE, LINE)], ids=["its own line", "another line"]
)
def test_a_run_waits_for_the_first_champion_and_is_woken_by_it(spec: Manifest, line: str) -> None:
    cluster = continuing(without_champion(), **spec)
    reason, message = state(cluster)
    assert reason == "WaitingForChampion"
    assert f"waiting for the first champion of model line {line}" in message
    assert "kubectl get checkpoints -n team" in message
    assert cluster.job(NEXT).status.phase == "WaitingForChampion"
    assert not has_stage_job(cluster)
    waiting = Key("FineTuneJob", NAMESPACE, NEXT)
    assert waiting in affected_by_champion(NAMESPACE, line, cluster.reader())

    approve(cluster)

    assert state(cluster)[0] == "Queued"
    assert cluster.job(NEXT).status.resolved.parent_checkpoint == CHECKPOINT
    is_own_line = spec is OWN
    assert (waiting in affected_by_champion(NAMESPACE, line, cluster.reader())) is is_own_line


def test_without_a_champion_a_run_starts_from_its_uri_and_stays_with_it() -> None:
    cluster = continuing(without_champion(), **WITH_START)
    config = cluster.config("preflight")
    assert (config.parent, config.base_model_uri) == (None, "pvc://models/gemma")
    assert config.base_model_path is not None
    assert not config.base_model_named

    approve(cluster)
    for stage, result in (("preflight", next_preflighted()), ("train", next_trained())):
        cluster.succeed(stage, result)
        cluster.settle()

    (made,) = cluster.job(NEXT).status.checkpoints
    lineage = Checkpoint.model_validate(cluster.objects["Checkpoint", made.name]).spec.lineage
    assert lineage.parent_checkpoint is None
    assert (lineage.base_model.uri, lineage.base_model.digest) == ("pvc://models/gemma", BASE)


def test_a_base_model_that_is_named_with_a_champion_is_read_and_compared() -> None:
    before = ended()
    before.add(claim("elsewhere"))
    cluster = continuing(before, baseModel={"champion": {}, "uri": "pvc://elsewhere/gemma"})

    config = cluster.config("preflight")
    assert (config.parent.name, config.base_model_named) == (CHECKPOINT, True)
    assert (config.base_model_uri, config.base_model_digest) == ("pvc://elsewhere/gemma", BASE)
    assert config.base_model_path is not None
    volumes = cluster.stage_job("preflight")["spec"]["template"]["spec"]["volumes"]
    assert "elsewhere" in [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in volumes]

    for stage, result in (("preflight", next_preflighted()), ("train", next_trained())):
        cluster.succeed(stage, result)
        cluster.settle()
    (made,) = cluster.job(NEXT).status.checkpoints
    lineage = Checkpoint.model_validate(cluster.objects["Checkpoint", made.name]).spec.lineage
    # Endpoints compare sources, and all Checkpoints of a line have the same one.
    assert lineage.base_model.uri == "pvc://models/gemma"


def test_the_claim_of_a_base_model_that_is_named_with_a_champion_must_exist() -> None:
    cluster = continuing(baseModel={"champion": {}, "uri": "pvc://elsewhere/gemma"})

    reason, message = state(cluster)
    assert reason == "BaseModelNotFound"
    assert "PersistentVolumeClaim elsewhere of spec.baseModel.uri" in message


@pytest.mark.parametrize(
    ("base_model", "revision"),
    [
        ({"uri": "hf://org/gemma"}, "a" * 40),
        ({"uri": "hf://org/gemma", "revision": "v2"}, "v2"),
        ({"uri": "hf://org/other"}, None),
    ],
    ids=["the recorded commit", "its own revision", "another model"],
)
def test_a_hub_is_asked_for_the_commit_of_the_champion_unless_the_run_names_another_one(
    base_model: dict[str, Any], revision: str | None
) -> None:
    before = ended()
    lineage = before.objects["Checkpoint", CHECKPOINT]["spec"]["lineage"]
    lineage["baseModel"] = {"uri": "hf://org/gemma", "revision": "a" * 40, "digest": BASE}

    config = continuing(before, baseModel={"champion": {}, **base_model}).config("preflight")

    assert (config.base_model_uri, config.base_model_revision) == (base_model["uri"], revision)
    assert config.base_model_named


def test_a_champion_on_another_base_model_ends_the_run_with_both_digests() -> None:
    cluster = continuing(**WITH_START)
    told = f"baseModel.uri pvc://models/gemma: its digest is {digest('1')}, but the champion … from {BASE}"
    reason = FailureReason.BASE_MODEL_MISMATCH
    cluster.end("preflight", failed("preflight", reason, told, run=NEXT_UID).to_json(), 10)
    cluster.settle()

    assert state(cluster, "Stalled") == ("BaseModelMismatch", told)


def test_a_digest_that_is_not_the_champions_ends_the_run_with_both_before_its_first_stage() -> None:
    cluster = continuing(baseModel={"champion": {}, "digest": digest("0")})

    reason, message = state(cluster, "Stalled")
    assert reason == "BaseModelMismatch"
    assert f"spec.baseModel.digest is {digest('0')}, but champion {CHECKPOINT} of model line" in message
    assert f"was trained from {BASE}" in message
    assert not has_stage_job(cluster)


@pytest.mark.parametrize(
    ("before", "spec", "message"),
    [
        pytest.param(
            full_parent(),
            {},
            f"LoRA cannot continue from champion {CHECKPOINT} of model line {LINE}, which contains all"
            " weights: create a new FineTuneJob with method.type: Full",
            id="a whole model with LoRA",
        ),
        pytest.param(
            ended(),
            FULL,
            f"Full cannot continue from champion {CHECKPOINT} of model line {LINE}, which contains",
            id="an adapter with Full",
        ),
    ],
)
def test_a_champion_that_the_method_cannot_continue_ends_the_run(
    before: MemoryCluster, spec: Manifest, message: str
) -> None:
    cluster = continuing(before, **OWN, **spec)

    reason, told = state(cluster, "Stalled")
    assert reason == "InvalidSpec"
    assert message in told
    assert not has_stage_job(cluster)


def test_a_champion_in_another_store_is_named_and_a_later_one_in_the_runs_store_is_taken() -> None:
    before = ended()
    before.add(claim("elsewhere", "ReadWriteMany"))
    cluster = continuing(before, **OWN, store={"uri": "pvc://elsewhere"})
    reason, message = state(cluster)
    assert reason == "CheckpointNotInStore"
    assert f"champion {CHECKPOINT} of model line {LINE} is in pvc://artifacts" in message

    newer = newer_champion(cluster, f"pvc://elsewhere/checkpoints/{'9' * 64}")

    assert cluster.job(NEXT).status.resolved.parent_checkpoint == newer


def test_a_rejected_champion_gives_way_to_the_one_before_it() -> None:
    before = ended()
    before.change("Checkpoint", newer_champion(before), approval={"state": "Rejected"})
    before.settle()

    cluster = continuing(before, **OWN)

    assert cluster.job(NEXT).status.resolved.parent_checkpoint == CHECKPOINT


@pytest.mark.parametrize("has_other", [True, False])
def test_checkpoints_of_the_run_itself_never_count(*, has_other: bool) -> None:
    cluster = continuing(ended() if has_other else MemoryCluster(*prerequisites()), **OWN)
    run = cluster.objects["FineTuneJob", NEXT]
    record = deepcopy(ended().objects["Checkpoint", CHECKPOINT])
    record["metadata"] = {"name": "own"}
    record["spec"]["lineage"]["job"] = {"name": NEXT, "uid": NEXT_UID}
    record["status"]["promotedAt"] = "2031-01-01T00:00:00Z"
    cluster.add(record)
    # The status of the run was lost in part: what it resolved is gone.
    run["status"].pop("resolved", None)
    cluster.settle()

    expected = (CHECKPOINT, "Queued") if has_other else (None, "WaitingForChampion")
    assert (cluster.job(NEXT).status.resolved.parent_checkpoint, state(cluster)[0]) == expected


def test_a_restored_run_adopts_what_it_recorded_instead_of_looking_for_a_champion() -> None:
    cluster = continuing(**OWN)
    for stage, result in (("preflight", next_preflighted()), ("train", next_trained())):
        cluster.succeed(stage, result)
        cluster.settle()
    newer_champion(cluster)
    cluster.objects["FineTuneJob", NEXT]["status"] = {"observedGeneration": -1}
    cluster.reconcile("FineTuneJob", NEXT)

    assert state(cluster, "Ready")[0] == "Restored"
    assert cluster.job(NEXT).status.resolved.parent_checkpoint == CHECKPOINT


def test_a_waiting_run_delays_no_deletion_of_the_champion() -> None:
    before = ended()
    before.add(next_run(**OWN, suspend=True))
    before.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    before.settle()
    before.delete("Checkpoint", CHECKPOINT)
    before.settle()

    assert before.states("Checkpoint", CHECKPOINT)["Reconciling"] == "CleaningUp"
