# SPDX-License-Identifier: Apache-2.0
"""A run that continues from a Checkpoint starts from its weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import StepDivision
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint
from finetune_trainer.contract.results import CheckpointResult, PreflightResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.manifest import Manifest
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.train.states.ledger import Fingerprint, RunLedger
from finetune_trainer.train.states.resume_states import ResumeStates
from tests.methods import sampled
from tests.trainer.workbench import ROWS, Sheet, Workbench, elsewhere, weights
from tools.models import tiny

ADAPTER = LoRA(r=4, alpha=8, dropout=0.0)
METHODS = {
    "LoRA": Method(lora=ADAPTER),
    "rsLoRA and DoRA": Method(lora=ADAPTER.model_copy(update={"rslora": True, "dora": True})),
    "Full": Method(type="Full"),
}
SOME_LAYERS = ("q_proj", "v_proj")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def parent_of(bench: Workbench, method: Method, **settings: Any) -> CheckpointResult:
    """Trained on all rows; its validation loss is that of its weights on the same rows."""
    config = bench.train_config(dataset=bench.dataset(ROWS, ROWS), method=method, **settings)
    return bench.train(config.model_copy(update={"run": "parent"})).checkpoints[-1]


def named(parent: CheckpointResult) -> ParentCheckpoint:
    return ParentCheckpoint(name="routing-1f1f-6", digest=parent.digest, type=parent.type)


def continued(
    bench: Workbench, parent: CheckpointResult | None, method: Method, **settings: Any
) -> TrainConfig:
    config = bench.train_config(dataset=bench.dataset(ROWS, ROWS), method=method, **settings)
    return config.model_copy(update={"parent": named(parent) if parent else None})


def first_loss(bench: Workbench, config: TrainConfig) -> float:
    sheet = Sheet(stop_at=frozenset({1}))
    with pytest.raises(Preempted):
        bench.train(config, sheet)
    loss = sheet.seen[0].loss
    assert loss is not None
    return loss


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_first_step_has_the_loss_that_the_parent_ended_with(bench: Workbench, method: Method) -> None:
    parent = parent_of(bench, method)
    whole: dict[str, Any] = {"batch_size": len(ROWS)}

    onwards = first_loss(bench, continued(bench, parent, method, **whole))
    other = elsewhere(bench, "afresh")
    afresh = first_loss(other, continued(other, None, method, **whole))

    assert parent.validation_loss is not None
    assert onwards == pytest.approx(parent.validation_loss, rel=1e-4)
    assert afresh > 1.05 * onwards


@pytest.mark.parametrize("name", sampled(METHODS, "LoRA", "Full"))
def test_a_continued_run_that_is_stopped_ends_with_the_same_weights(bench: Workbench, name: str) -> None:
    method = METHODS[name]
    with_dropout = method.model_copy(update={"lora": method.lora.model_copy(update={"dropout": 0.1})})
    config = continued(bench, parent_of(bench, method), with_dropout)
    expected = bench.train(config.model_copy(update={"run": "uninterrupted"}))

    for step in (1, 4):
        with pytest.raises(Preempted):
            bench.train(config, Sheet(stop_at=frozenset({step})))

    assert bench.train(config) == expected.model_copy(update={"restarts": 2})


def test_what_it_leaves_is_an_adapter_of_the_same_base_model_and_settings(bench: Workbench) -> None:
    parent = parent_of(bench, METHODS["LoRA"])
    config = continued(bench, parent, METHODS["LoRA"])

    child = bench.train(config).checkpoints[-1]

    assert child.type == "Adapter"
    assert child.digest != parent.digest
    before, after = bench.checkpoint(parent), bench.checkpoint(child)
    assert (after / "adapter_config.json").read_bytes() == (before / "adapter_config.json").read_bytes()
    assert weights(after).keys() == weights(before).keys()
    assert bench.evaluate(config.base_model, bench.dataset(test=ROWS), child).scores


def test_a_state_of_another_parent_is_refused(bench: Workbench) -> None:
    config = continued(bench, parent_of(bench, METHODS["LoRA"]), METHODS["LoRA"])
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset({2})))

    failure = bench.train_failure(config.model_copy(update={"parent": None}))

    assert failure.reason == FailureReason.FINGERPRINT_MISMATCH
    assert f"parent {config.parent.digest if config.parent else ''} → None" in failure.message


@pytest.mark.parametrize(
    ("has_parent", "expected"), [(True, "the Checkpoint that it continues from"), (False, "the base model")]
)
def test_a_run_that_goes_wrong_before_its_first_state_says_what_it_began_with(
    bench: Workbench, has_parent: bool, expected: str
) -> None:
    parent = CheckpointResult(digest=f"sha256:{'c' * 64}", type="Adapter", step=6, epoch=2)
    config = continued(bench, parent if has_parent else None, METHODS["LoRA"])
    ledger = RunLedger(fingerprint=Fingerprint.of(config), division=StepDivision())

    assert ResumeStates(bench.store.run_folder(config.run, "train")).last_good(ledger) == expected


def test_a_parent_that_left_the_store_is_named(bench: Workbench) -> None:
    parent = parent_of(bench, METHODS["LoRA"])
    config = continued(bench, parent, METHODS["LoRA"])
    bench.store.delete(ArtifactRef(kind="checkpoints", digest=parent.digest))

    failures = [bench.train_failure(config), preflight_failure(bench, parent)]

    assert {failure.reason for failure in failures} == {FailureReason.ARTIFACT_NOT_FOUND}
    assert all(parent.digest.removeprefix("sha256:") in failure.message for failure in failures)


def preflight(bench: Workbench, parent: CheckpointResult, **settings: Any) -> PreflightResult:
    """A run whose base model is no longer at its source."""
    base_model = settings.pop("base_model_digest", None) or bench.model()
    uri = settings.pop("base_model_uri", "pvc://models/tiny")
    config = bench.preflight_config(bench.root, bench.dataset(), parent=named(parent), **settings)
    update = {"base_model_path": None, "base_model_digest": base_model, "base_model_uri": uri}
    return bench.run_preflight(config.model_copy(update=update))


def preflight_failure(bench: Workbench, parent: CheckpointResult, **settings: Any) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        preflight(bench, parent, **settings)
    return caught.value


def test_the_base_model_is_taken_from_the_store_and_the_adapters_settings_are_kept(bench: Workbench) -> None:
    lora = LoRA(r=4, alpha=8, dropout=0.1, target_modules=SOME_LAYERS, rslora=True, dora=True)
    parent = parent_of(bench, Method(lora=lora))

    result = preflight(bench, parent, base_model_revision="abc")

    assert result.base_model == bench.model()
    assert result.base_model_revision == "abc"
    assert result.lora == lora


def test_an_adapter_on_all_layers_stays_one(bench: Workbench) -> None:
    lora = preflight(bench, parent_of(bench, METHODS["LoRA"])).lora

    assert lora is not None
    assert lora.target_modules == ()


def test_settings_that_are_the_parents_may_be_given_and_dropout_may_change(bench: Workbench) -> None:
    parent = parent_of(bench, Method(lora=LoRA(r=4, alpha=8, dropout=0.0, target_modules=SOME_LAYERS)))
    given = LoRA(r=4, alpha=8, dropout=0.2, target_modules=SOME_LAYERS[::-1])

    lora = preflight(bench, parent, method=Method(lora=given)).lora

    assert lora == LoRA(r=4, alpha=8, dropout=0.2, target_modules=SOME_LAYERS)


@pytest.mark.parametrize(
    ("given", "field", "mine", "parents"),
    [
        ({"r": 8}, "r", "8", "4"),
        ({"alpha": 64}, "alpha", "64", "8"),
        ({"target_modules": ("k_proj",)}, "targetModules", "k_proj", "q_proj, v_proj"),
        ({"rslora": True}, "rsLoRA", "true", "false"),
        ({"dora": True}, "dora", "true", "false"),
    ],
)
def test_another_setting_than_the_parents_is_refused_with_both(
    bench: Workbench, given: dict[str, Any], field: str, mine: str, parents: str
) -> None:
    parent = parent_of(bench, Method(lora=ADAPTER.model_copy(update={"target_modules": SOME_LAYERS})))

    failure = preflight_failure(bench, parent, method=Method(lora=LoRA(**given)))

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert failure.exit_code == ExitCode.BAD_CONFIG
    said = f"method.lora.{field}: {mine}, but the adapter of Checkpoint routing-1f1f-6 has {parents}"
    assert said in failure.message


def test_a_setting_at_the_value_of_a_new_adapter_is_compared_like_any_other(bench: Workbench) -> None:
    parent = parent_of(bench, METHODS["LoRA"])

    failure = preflight_failure(bench, parent, method=Method(lora=LoRA(r=16)))

    assert "method.lora.r: 16, but the adapter of Checkpoint routing-1f1f-6 has 4" in failure.message


def test_the_settings_of_a_new_adapter_are_those_that_were_given_and_the_defaults(bench: Workbench) -> None:
    assert bench.preflight(method=Method(lora=LoRA(r=8))).lora == LoRA(r=8)
    assert bench.preflight(method=METHODS["Full"]).lora is None


def test_a_whole_model_needs_no_adapter_settings(bench: Workbench) -> None:
    parent = parent_of(bench, METHODS["Full"])

    assert preflight(bench, parent, method=METHODS["Full"]).lora is None


def test_an_adapter_of_another_base_model_than_recorded_is_refused(bench: Workbench) -> None:
    parent = parent_of(bench, METHODS["LoRA"])
    with bench.store.staging() as staging:
        for file in bench.store.artifact(ArtifactRef(kind="models", digest=bench.model())).iterdir():
            if file.name != "manifest.json":
                (staging / file.name).write_bytes(file.read_bytes())
        (staging / "LICENSE").write_text("terms")
        other = bench.store.publish("models", staging)

    failure = preflight_failure(bench, parent, base_model_digest=other)

    assert failure.reason == FailureReason.BASE_MODEL_MISMATCH
    assert bench.model() in failure.message
    assert other in failure.message


def of_start(bench: Workbench, source: Path) -> PreflightResult:
    """A run that continues from a champion, and names the base model that its line started from."""
    parent = parent_of(bench, METHODS["LoRA"])
    config = bench.preflight_config(source, bench.dataset(), parent=named(parent), base_model_named=True)
    return bench.run_preflight(config.model_copy(update={"base_model_digest": bench.model()}))


def test_a_base_model_that_is_named_with_a_champion_may_be_the_champions(bench: Workbench) -> None:
    result = of_start(bench, tiny())

    assert result.base_model == bench.model()
    assert result.lora is not None


def test_another_base_model_than_the_champions_is_refused_with_both_digests(
    bench: Workbench, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny(), other)
    with (other / "tokenizer_config.json").open("a") as file:
        file.write("\n")

    with pytest.raises(StageFailure) as caught:
        of_start(bench, other)

    assert caught.value.reason == FailureReason.BASE_MODEL_MISMATCH
    found = Manifest.of(other, sorted(path.name for path in other.iterdir())).digest
    assert f"its digest is {found}, but champion routing-1f1f-6 was trained from" in caught.value.message
    assert bench.model() in caught.value.message


def test_a_base_model_that_left_the_store_is_asked_for_where_it_was_on_a_claim(bench: Workbench) -> None:
    parent = parent_of(bench, METHODS["LoRA"])

    failure = preflight_failure(bench, parent, base_model_digest=f"sha256:{'0' * 64}")

    assert failure.reason == FailureReason.BASE_MODEL_NOT_FOUND
    assert "baseModel.uri pvc://models/tiny" in failure.message
