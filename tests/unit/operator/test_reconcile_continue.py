# SPDX-License-Identifier: Apache-2.0
"""A run that continues from an earlier Checkpoint."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.finetunejob.run import Prerequisites, resolve
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked
from finetune_operator.reconcile.records.retention import readers_of
from finetune_operator.reconcile.scheduling import related
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ParentCheckpoint
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.memorycluster import NAMESPACE, MemoryCluster
from tests.unit.operator.runobjects import (
    BASE,
    CHECKPOINT,
    ROWS,
    WEIGHTS,
    claim,
    digest,
    evaluated,
    finetunejob,
    preflighted,
    profile,
    trained,
)
from tests.unit.operator.runsteps import delete_run, ended

NEXT, NEXT_UID = "tickets-v2", "0c000000-0000-4000-8000-000000000002"
NEXT_WEIGHTS = digest("e")
LORA = LoRA(r=8, alpha=64, target_modules=("q_proj",), dora=True)
FULL = {"method": {"type": "Full"}}


def next_run(**spec: Any) -> Manifest:
    manifest = finetunejob(**{"baseModel": {"checkpoint": CHECKPOINT}, **spec})
    manifest["metadata"] = {"name": NEXT, "uid": NEXT_UID}
    return manifest


def continuing(before: MemoryCluster | None = None, **spec: Any) -> MemoryCluster:
    """The first run has ended, and the next one continues from its Checkpoint."""
    cluster = before or ended()
    cluster.add(next_run(**spec))
    cluster.settle()
    return cluster


def next_preflighted() -> StageResult:
    result = preflighted(NEXT_UID)
    assert result.preflight is not None
    found = result.preflight.model_copy(update={"lora": LORA, "reasoning_parser": "qwen3"})
    return result.model_copy(update={"preflight": found})


def next_trained() -> StageResult:
    result = trained(NEXT_UID)
    assert result.train is not None
    (checkpoint,) = result.train.checkpoints
    made = checkpoint.model_copy(update={"digest": NEXT_WEIGHTS})
    return result.model_copy(update={"train": result.train.model_copy(update={"checkpoints": (made,)})})


def state(cluster: MemoryCluster, type_: str = "Reconciling") -> tuple[str, str]:
    condition = cluster.condition("FineTuneJob", NEXT, type_)
    assert condition is not None
    assert condition["status"] == "True"
    return condition["reason"], condition["message"]


def has_stage_job(cluster: MemoryCluster) -> bool:
    return any(name.startswith(NEXT) for name in cluster.of("Job"))


def test_the_checkpoint_and_its_base_model_are_frozen_and_reach_preflight() -> None:
    cluster = continuing()

    resolved = cluster.job(NEXT).status.resolved
    assert (resolved.parent_checkpoint, resolved.parent_digest) == (CHECKPOINT, WEIGHTS)
    assert (resolved.base_model_uri, resolved.base_model_digest) == ("pvc://models/gemma", BASE)
    config = cluster.config("preflight")
    parent = ParentCheckpoint(name=CHECKPOINT, digest=WEIGHTS, type="Adapter")
    assert config.parent == parent
    assert (config.base_model_uri, config.base_model_digest) == ("pvc://models/gemma", BASE)
    assert config.base_model_path is None


def test_a_pass_resolves_the_prerequisites_once_although_four_steps_use_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = ended()
    cluster.add(next_run())
    calls = []

    def counted(job: FineTuneJob, snapshot: Snapshot) -> Prerequisites | Blocked:
        calls.append(job.name)
        return resolve(job, snapshot)

    monkeypatch.setattr("finetune_operator.reconcile.finetunejob.run.resolve", counted)
    plan = cluster.plan("FineTuneJob", NEXT)
    assert [create.manifest["kind"] for create in plan.create] == ["Job"]
    assert calls == [NEXT]


def test_the_claim_that_the_base_model_came_from_is_not_needed_any_more() -> None:
    before = ended()
    before.remove("PersistentVolumeClaim", "models")

    cluster = continuing(before)

    pod = cluster.stage_job("preflight")["spec"]["template"]["spec"]
    assert {volume["name"] for volume in pod["volumes"]} == {"store", "scratch"}


def test_a_base_model_from_the_hub_is_known_by_its_commit_and_the_secret_is_there_to_fetch_it() -> None:
    before = ended()
    lineage = before.objects["Checkpoint", CHECKPOINT]["spec"]["lineage"]
    lineage["baseModel"] = {"uri": "hf://org/gemma", "revision": "a" * 40, "digest": BASE}

    cluster = continuing(
        before, baseModel={"checkpoint": CHECKPOINT, "credentialsSecretRef": {"name": "hub"}}
    )

    config = cluster.config("preflight")
    assert (config.base_model_uri, config.base_model_revision) == ("hf://org/gemma", "a" * 40)
    assert config.base_model_credentials.name == "hub"
    volumes = cluster.stage_job("preflight")["spec"]["template"]["spec"]["volumes"]
    assert any(volume.get("secret", {}).get("secretName") == "hub" for volume in volumes)


def test_the_adapters_settings_go_from_preflight_to_training_and_the_lineage_to_the_record() -> None:
    cluster = continuing()
    cluster.succeed("preflight", next_preflighted())
    cluster.settle()
    config = cluster.config("train")
    assert config.parent == ParentCheckpoint(name=CHECKPOINT, digest=WEIGHTS)
    assert (config.base_model, config.dataset) == (BASE, ROWS)
    assert config.method == Method(lora=LORA)
    told = cluster.condition("FineTuneJob", NEXT, "Preflighted")
    assert told is not None
    assert f"continues from Checkpoint {CHECKPOINT}" in told["message"]

    cluster.succeed("train", next_trained())
    cluster.settle()
    (made,) = cluster.job(NEXT).status.checkpoints
    lineage = Checkpoint.model_validate(cluster.objects["Checkpoint", made.name]).spec.lineage
    assert lineage.parent_checkpoint == CHECKPOINT
    assert (lineage.base_model.uri, lineage.base_model.digest) == ("pvc://models/gemma", BASE)

    judged = cluster.config("evaluate")
    assert (judged.base_model, judged.checkpoint) == (BASE, NEXT_WEIGHTS)
    assert judged.subjects == ("Tuned", "Base")
    cluster.succeed("evaluate", evaluated(run=NEXT_UID))
    cluster.settle()
    assert state(cluster, "Ready")[0] == "Promoted"


def test_a_run_without_a_parent_records_none() -> None:
    lineage = ended().objects["Checkpoint", CHECKPOINT]["spec"]["lineage"]

    assert "parentCheckpoint" not in lineage


def test_a_run_waits_for_its_checkpoint_and_begins_when_it_is_recorded() -> None:
    before = ended()
    record = before.objects.pop(("Checkpoint", CHECKPOINT))
    cluster = continuing(before)
    reason, message = state(cluster)
    assert reason == "CheckpointNotFound"
    assert f"Checkpoint {CHECKPOINT} of spec.baseModel.checkpoint does not exist in namespace team" in message
    assert cluster.job(NEXT).status.phase == "Blocked"
    assert not has_stage_job(cluster)

    cluster.objects["Checkpoint", CHECKPOINT] = record
    cluster.settle()

    assert state(cluster)[0] == "Queued"


def test_no_run_starts_from_a_checkpoint_that_is_being_deleted_and_its_deletion_continues() -> None:
    before = ended()
    before.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    before.settle()
    before.delete("Checkpoint", CHECKPOINT)

    cluster = continuing(before)

    reason, message = state(cluster)
    assert reason == "CheckpointNotFound"
    assert "is being deleted" in message
    assert not has_stage_job(cluster)
    assert cluster.states("Checkpoint", CHECKPOINT)["Reconciling"] == "CleaningUp"


def test_no_run_starts_from_a_rejected_checkpoint_until_the_rejection_is_removed() -> None:
    before = ended()
    before.change("Checkpoint", CHECKPOINT, approval={"state": "Rejected", "reason": "rude"})
    cluster = continuing(before)
    reason, message = state(cluster)
    assert reason == "CheckpointRejected"
    assert "was rejected (rude): remove its spec.approval" in message
    assert not has_stage_job(cluster)

    cluster.change("Checkpoint", CHECKPOINT, approval={"state": "Approved", "reason": ""})
    cluster.settle()

    assert state(cluster)[0] == "Queued"


def test_a_checkpoint_in_another_store_is_named_with_both_stores() -> None:
    before = ended()
    before.add(claim("elsewhere", "ReadWriteMany"))

    cluster = continuing(before, store={"uri": "pvc://elsewhere"})

    reason, message = state(cluster)
    assert reason == "CheckpointNotInStore"
    assert f"Checkpoint {CHECKPOINT} is in pvc://artifacts, but this run uses pvc://elsewhere" in message
    assert "spec.store.uri: pvc://artifacts" in message
    assert not has_stage_job(cluster)


def full_parent() -> MemoryCluster:
    before = ended()
    before.objects["Checkpoint", CHECKPOINT]["spec"]["type"] = "Full"
    return before


@pytest.mark.parametrize(
    ("before", "spec", "message"),
    [
        pytest.param(
            ended(),
            FULL,
            f"Full cannot continue from Checkpoint {CHECKPOINT}, which contains an adapter: create a new"
            " FineTuneJob with method.type: LoRA, or with baseModel.uri: pvc://models/gemma",
            id="an adapter with Full",
        ),
        pytest.param(
            full_parent(),
            {},
            f"LoRA cannot continue from Checkpoint {CHECKPOINT}, which contains all weights: create a new"
            " FineTuneJob with method.type: Full",
            id="a whole model with LoRA",
        ),
        pytest.param(
            ended(),
            {"baseModel": {"checkpoint": CHECKPOINT, "digest": digest("0")}},
            f"but Checkpoint {CHECKPOINT} was trained from {BASE}",
            id="another base model",
        ),
    ],
)
def test_what_cannot_be_continued_ends_the_run_before_its_first_stage(
    before: MemoryCluster, spec: dict[str, Any], message: str
) -> None:
    cluster = continuing(before, **spec)

    reason, told = state(cluster, "Stalled")
    assert reason == "InvalidSpec"
    assert message in told
    assert not has_stage_job(cluster)


def test_a_whole_model_continues_with_all_its_weights() -> None:
    cluster = continuing(full_parent(), **FULL)

    assert cluster.config("preflight").parent.type == "Full"


def test_what_is_frozen_outlives_the_record() -> None:
    cluster = continuing()
    cluster.remove("Checkpoint", CHECKPOINT)
    cluster.succeed("preflight", next_preflighted())
    cluster.settle()

    assert cluster.config("train").parent.digest == WEIGHTS


def test_the_weights_stay_until_the_run_that_continues_from_them_has_ended() -> None:
    cluster = continuing()
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert cluster.states("Checkpoint", CHECKPOINT)["Reconciling"] == "InUse"
    assert not cluster.has_stage_job("cleanup")
    told = cluster.condition("Checkpoint", CHECKPOINT, "Reconciling")
    assert told is not None
    assert f"FineTuneJob {NEXT}" in told["message"]

    run = cluster.objects["FineTuneJob", NEXT]
    assert Key("Checkpoint", NAMESPACE, CHECKPOINT) in related("FineTuneJob", run, None, cluster.reader())
    cluster.delete("FineTuneJob", NEXT)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert cluster.has_stage_job("cleanup")


def test_the_checkpoint_outlives_its_own_run_while_another_waits_to_continue_from_it() -> None:
    before = ended(deletionPolicy="Delete", promotion={"mode": "Manual"})
    before.add(next_run(suspend=True))
    delete_run(before)

    assert "deletionTimestamp" not in before.objects["Checkpoint", CHECKPOINT]["metadata"]
    assert f"in use by FineTuneJob {NEXT}" in before.events[-1].message


def test_another_record_of_the_same_weights_waits_for_the_run_too() -> None:
    cluster = continuing()
    record = Checkpoint.model_validate(cluster.objects["Checkpoint", CHECKPOINT])
    twin = record.model_copy(update={"metadata": record.metadata.model_copy(update={"name": "twin"})})
    snapshot = replace(
        cluster.snapshot("Checkpoint", CHECKPOINT)[1], runs_with=lambda _: (cluster.job(NEXT),)
    )

    assert readers_of(twin, snapshot) == (f"FineTuneJob {NEXT}",)


def test_a_checkpoint_leads_to_the_runs_that_wait_for_it() -> None:
    cluster = continuing()
    cluster.add({**next_run(), "metadata": {"name": "third", "uid": "third"}})
    waiting = Key("FineTuneJob", NAMESPACE, "third")
    record = cluster.objects["Checkpoint", CHECKPOINT]
    assert waiting in related("Checkpoint", None, record, cluster.reader())

    cluster.objects["FineTuneJob", "third"]["status"] = cluster.objects["FineTuneJob", "tickets-v1"]["status"]

    assert waiting not in related("Checkpoint", None, record, cluster.reader())


def test_a_restored_run_records_again_what_it_continued_from() -> None:
    cluster = continuing()
    for stage, result in (("preflight", next_preflighted()), ("train", next_trained())):
        cluster.succeed(stage, result)
        cluster.settle()
    cluster.objects["FineTuneJob", NEXT]["status"] = {"observedGeneration": -1}
    cluster.reconcile("FineTuneJob", NEXT)

    run = FineTuneJob.model_validate(cluster.objects["FineTuneJob", NEXT])
    assert run.status.resolved.parent_checkpoint == CHECKPOINT
    assert state(cluster, "Ready")[0] == "Restored"


def test_a_run_without_a_store_reports_that_before_it_resolves_the_parent() -> None:
    cluster = MemoryCluster(profile(store=None), next_run())
    cluster.settle()

    assert state(cluster)[0] == "StoreMissing"


THINKS_NOT: dict[str, Any] = {"enable_thinking": False}


def with_arguments(**lineage: Any) -> MemoryCluster:
    cluster = ended()
    cluster.objects["Checkpoint", CHECKPOINT]["spec"]["lineage"] |= lineage
    return cluster


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, THINKS_NOT),
        ({"chatTemplateKwargs": {"effort": "low"}}, {"effort": "low"}),
        ({"chatTemplateKwargs": {}}, {}),
    ],
    ids=["none", "others", "explicitly none"],
)
def test_a_run_has_the_template_arguments_of_its_parent_unless_it_sets_its_own(
    own: dict[str, Any], expected: dict[str, Any]
) -> None:
    cluster = continuing(with_arguments(chatTemplateKwargs=THINKS_NOT), **own)

    assert cluster.config("preflight").chat_template_kwargs == expected
    cluster.succeed("preflight", next_preflighted())
    cluster.settle()
    said = cluster.condition("FineTuneJob", NEXT, "Preflighted")
    assert said is not None
    assert ("other chatTemplateKwargs than that Checkpoint" in said["message"]) is (expected != THINKS_NOT)
    assert cluster.config("train").chat_template_kwargs == expected
    cluster.succeed("train", next_trained())
    cluster.settle()
    (made,) = cluster.job(NEXT).status.checkpoints
    lineage = Checkpoint.model_validate(cluster.objects["Checkpoint", made.name]).spec.lineage
    assert (lineage.chat_template_kwargs or {}) == expected
    assert lineage.reasoning_parser == "qwen3"
    assert lineage.adapter is not None
    assert (lineage.adapter.r, lineage.adapter.dora) == (LORA.r, LORA.dora or None)
    assert cluster.config("evaluate").chat_template_kwargs == expected


def test_a_renamed_argument_changes_nothing_once_the_run_has_begun() -> None:
    cluster = continuing(chatTemplateKwargs=THINKS_NOT)

    cluster.objects["FineTuneJob", NEXT]["spec"]["chatTemplateKwargs"] = {"thinking": False}
    cluster.succeed("preflight", next_preflighted())
    cluster.settle()

    assert cluster.config("train").chat_template_kwargs == THINKS_NOT


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"documents": "a"}, "spec.chatTemplateKwargs.documents is set by the trainer itself"),
        ({"effort": ["low"]}, "spec.chatTemplateKwargs.effort must be a string, a number or a boolean"),
        ({"effort": None}, "spec.chatTemplateKwargs.effort must be a string, a number or a boolean"),
        ({"effort": "x" * 1100}, "spec.chatTemplateKwargs has 1113 characters as JSON, more than 1024"),
    ],
)
def test_an_argument_that_no_template_can_take_ends_the_run(arguments: dict[str, Any], problem: str) -> None:
    cluster = continuing(chatTemplateKwargs=arguments)

    reason, message = state(cluster, "Stalled")
    assert reason == "InvalidSpec"
    assert problem in message
    assert not has_stage_job(cluster)
