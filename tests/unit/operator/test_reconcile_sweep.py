# SPDX-License-Identifier: Apache-2.0
"""A sweep makes runs with different values, stops bad ones, and trains once more with the best values."""

from typing import Any, Final

import pytest

from finetune_operator.api.finetune_sweep import FineTuneSweep
from finetune_operator.manifests.labels import KEY as KEY_ANNOTATION
from finetune_operator.manifests.labels import short_hash
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.scheduling import related
from tests.unit.operator.memorycluster import NAMESPACE, MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    DATASET,
    VERSION,
    dataset,
    digest,
    evaluated,
    finetunejob,
    preflighted,
    prepared,
    prerequisites,
    trained,
)
from tests.unit.operator.runsteps import ended as ended_run

KIND: Final = "FineTuneSweep"
NAME: Final = "rates"
UID: Final = "5eeb0000-0000-4000-8000-000000000001"
RATES: Final = [1e-4, 2e-4, 4e-4, 8e-4]
GATES: Final = {"gates": [{"metric": "exact_match", "min": 0.8}]}


def sweep(template: Manifest | None = None, **spec: Any) -> Manifest:
    fields: Manifest = {
        "parameters": [{"field": "hyperparameters.learningRate", "values": RATES}],
        "search": "Grid",
        "template": {"spec": finetunejob(evaluation=GATES, **(template or {}))["spec"]},
        **spec,
    }
    metadata = {"name": NAME, "uid": UID}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": KIND, "metadata": metadata, "spec": fields}


def searching(template: Manifest | None = None, **spec: Any) -> MemoryCluster:
    """A sweep whose rows are prepared and whose first trials exist."""
    cluster = MemoryCluster(*prerequisites(), dataset(), sweep(template, **spec))
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    return cluster


def step(cluster: MemoryCluster) -> FineTuneSweep:
    """One pass over the sweep, without passes over its runs."""
    cluster.reconcile(KIND, NAME)
    return status(cluster)


def status(cluster: MemoryCluster) -> FineTuneSweep:
    return FineTuneSweep.model_validate(cluster.objects[KIND, NAME])


def trial(number: int) -> str:
    return f"{NAME}-{short_hash(f'{UID}/trial/{number}', length=8)}"


BEST: Final = f"{NAME}-{short_hash(f'{UID}/best', length=8)}"


def run(cluster: MemoryCluster, name: str) -> Manifest:
    return cluster.objects["FineTuneJob", name]


def report(cluster: MemoryCluster, name: str, at: int, loss: float, total: int = 90) -> None:
    """Let a trial report the validation loss of a step."""
    progress = {
        "stage": "train",
        "step": at,
        "totalSteps": total,
        "validationLoss": loss,
        "validationStep": at,
    }
    cluster.set_status("FineTuneJob", name, {"observedGeneration": 1, "progress": progress})


def end(
    cluster: MemoryCluster,
    name: str,
    loss: float | None,
    state: str = "Ready",
    reason: str = "PromotionDisabled",
) -> None:
    """Let a run end with this validation loss."""
    condition = {
        "type": state,
        "status": "True",
        "reason": reason,
        "message": "the end",
        "lastTransitionTime": "2030-01-02T03:00:00Z",
    }
    figures = {} if loss is None else {"training": {"steps": 90, "validationLoss": loss}}
    cost = {"deviceSeconds": 1800}
    cluster.set_status(
        "FineTuneJob", name, {"observedGeneration": 1, "conditions": [condition], "cost": cost, **figures}
    )


def states(cluster: MemoryCluster) -> list[str]:
    return [each.state for each in status(cluster).status.trials]


def is_cancelled(cluster: MemoryCluster, name: str) -> bool:
    return bool(run(cluster, name)["spec"].get("cancel"))


def test_trials_are_runs_of_the_template_that_read_no_test_rows_and_are_never_promoted() -> None:
    cluster = searching(parallelTrials=2)
    assert sorted(cluster.of("FineTuneJob")) == sorted([trial(0), trial(1)])
    spec = run(cluster, trial(1))["spec"]
    assert spec["hyperparameters"]["learningRate"] == RATES[1]
    assert spec["promotion"] == {"mode": "Never"}
    assert "evaluation" not in spec
    assert spec["dataset"]["ref"] == {"name": DATASET, "version": VERSION}
    metadata = run(cluster, trial(1))["metadata"]
    assert "ownerReferences" not in metadata
    assert metadata["annotations"][KEY_ANNOTATION] == f"{UID}/trial/1"
    found = status(cluster).status
    assert found.trials[1].values == {"hyperparameters.learningRate": "0.0002"}
    assert cluster.states(KIND, NAME) == {"Reconciling": "Searching"}


def test_a_change_of_a_run_wakes_its_sweep_and_a_change_of_the_dataset_does_before_the_first_trial() -> None:
    cluster = searching()
    changed = related("FineTuneJob", None, run(cluster, trial(0)), cluster.reader())
    assert Key(KIND, NAMESPACE, NAME) in changed
    waiting = MemoryCluster(*prerequisites(), dataset(), sweep())
    waiting.settle()
    assert waiting.states(KIND, NAME) == {"Reconciling": "WaitingForDataset"}
    changed = related("Dataset", None, waiting.objects["Dataset", DATASET], waiting.reader())
    assert Key(KIND, NAMESPACE, NAME) in changed


def test_the_best_trial_is_trained_again_and_only_that_run_is_evaluated() -> None:
    cluster = searching()
    for number, loss in enumerate((0.5, 0.3, 0.4, 0.6)):
        end(cluster, trial(number), loss)
        step(cluster)
    assert states(cluster) == ["Done"] * 4
    found = status(cluster).status
    assert found.best is not None
    assert (found.best.name, found.best.objective) == (trial(1), 0.3)
    assert found.best.values == "learningRate=0.0002"
    assert found.run == BEST
    assert found.device_hours == 2.0
    assert found.display is not None
    assert found.display.trials == "4/4"
    spec = run(cluster, BEST)["spec"]
    assert spec["hyperparameters"]["learningRate"] == RATES[1]
    assert spec["evaluation"]["gates"] == GATES["gates"]
    assert spec["promotion"]["mode"] == "ByGates"
    assert cluster.states(KIND, NAME) == {"Reconciling": "Training"}
    end(cluster, BEST, 0.3, reason="Promoted")
    step(cluster)
    assert cluster.states(KIND, NAME) == {"Ready": "Promoted"}
    assert status(cluster).status.phase == "Succeeded"


def test_a_run_with_the_best_values_that_fails_its_gates_fails_the_sweep() -> None:
    cluster = searching(maxTrials=4)
    for number in range(4):
        end(cluster, trial(number), 0.5)
        step(cluster)
    end(cluster, BEST, 0.5, "Stalled", "GateFailed")
    step(cluster)
    assert cluster.states(KIND, NAME) == {"Stalled": "GateFailed"}


def test_a_trial_that_is_not_among_the_best_at_a_rung_is_cancelled() -> None:
    cluster = searching(parallelTrials=4, earlyStopping={"reductionFactor": 2, "minFraction": 0.5})
    report(cluster, trial(0), 44, 0.9)
    assert step(cluster).status.trials[0].rungs == ()
    report(cluster, trial(0), 45, 0.8)
    report(cluster, trial(1), 60, 0.9)
    report(cluster, trial(2), 50, 0.7)
    step(cluster)
    assert states(cluster) == ["Running", "Stopped", "Running", "Running"]
    assert [is_cancelled(cluster, trial(number)) for number in range(4)] == [False, True, False, False]
    assert [each.rungs for each in status(cluster).status.trials] == [(0.8,), (0.9,), (0.7,), ()]
    report(cluster, trial(3), 50, 0.75)
    step(cluster)
    assert states(cluster)[3] == "Running", "it is among the best two of four"
    display = status(cluster).status.display
    assert display is not None
    assert display.trials == "1/4 (1 stopped)"


def test_a_rung_is_decided_once() -> None:
    cluster = searching(parallelTrials=2, earlyStopping={"reductionFactor": 2, "minFraction": 0.5})
    report(cluster, trial(0), 45, 0.8)
    step(cluster)
    report(cluster, trial(1), 45, 0.2)
    step(cluster)
    report(cluster, trial(0), 60, 0.9)
    step(cluster)
    assert states(cluster)[:2] == ["Running", "Running"]
    assert status(cluster).status.trials[0].rungs == (0.8,)


def test_a_stopped_trial_makes_room_and_is_not_the_best() -> None:
    cluster = searching(parallelTrials=1, maxTrials=4)
    cluster.change("FineTuneJob", trial(0), cancel=True)
    step(cluster)
    assert states(cluster) == ["Stopped", "Running"]
    end(cluster, trial(0), 0.01, "Stalled", "Cancelled")
    for number in (1, 2, 3):
        end(cluster, trial(number), 0.5 + number)
        step(cluster)
    best = status(cluster).status.best
    assert best is not None
    assert best.name == trial(1)


def test_a_trial_that_is_recorded_as_stopped_is_cancelled_even_after_a_restore() -> None:
    cluster = searching(parallelTrials=2, earlyStopping={"reductionFactor": 2, "minFraction": 0.5})
    report(cluster, trial(0), 45, 0.2)
    report(cluster, trial(1), 45, 0.8)
    step(cluster)
    run(cluster, trial(1))["spec"]["cancel"] = False
    step(cluster)
    assert is_cancelled(cluster, trial(1))


def test_no_further_trial_starts_after_the_device_hours_are_used() -> None:
    cluster = searching(maxDeviceHours=0.9)
    end(cluster, trial(0), 0.5)
    step(cluster)
    end(cluster, trial(1), 0.4)
    found = step(cluster).status
    assert len(found.trials) == 2
    assert found.run == BEST


def test_too_many_failures_cancel_the_other_trials_and_fail_the_sweep() -> None:
    cluster = searching(parallelTrials=3, maxFailedTrials=1)
    end(cluster, trial(0), None, "Stalled", "OutOfMemory")
    end(cluster, trial(1), None, "Stalled", "LossDiverged")
    step(cluster)
    assert is_cancelled(cluster, trial(2))
    assert cluster.states(KIND, NAME) == {"Reconciling": "Cancelling"}
    end(cluster, trial(2), None, "Stalled", "Cancelled")
    step(cluster)
    assert cluster.states(KIND, NAME) == {"Stalled": "TooManyFailedTrials"}
    message = status(cluster).status.conditions[0].message
    assert "2 trials failed, more than spec.maxFailedTrials 1" in message
    assert f"The last one, {trial(1)}: LossDiverged" in message


def test_a_sweep_without_a_finished_trial_fails() -> None:
    cluster = searching(maxTrials=4, parallelTrials=4, maxFailedTrials=4)
    for number in range(4):
        end(cluster, trial(number), None, "Stalled", "LossDiverged")
    step(cluster)
    assert cluster.states(KIND, NAME) == {"Stalled": "NoFinishedTrial"}


def test_a_cancelled_sweep_cancels_its_runs_and_makes_no_more() -> None:
    cluster = searching(parallelTrials=2)
    cluster.change(KIND, NAME, cancel=True)
    step(cluster)
    assert is_cancelled(cluster, trial(0))
    assert is_cancelled(cluster, trial(1))
    for number in range(2):
        end(cluster, trial(number), None, "Stalled", "Cancelled")
    step(cluster)
    assert cluster.states(KIND, NAME) == {"Stalled": "Cancelled"}
    cluster.change(KIND, NAME, cancel=False)
    assert step(cluster).status.observed_generation == 3
    assert len(cluster.of("FineTuneJob")) == 2


def test_a_crash_before_the_status_makes_no_other_runs() -> None:
    cluster = searching(parallelTrials=2, earlyStopping={"reductionFactor": 2, "minFraction": 0.5})
    report(cluster, trial(0), 45, 0.2)
    report(cluster, trial(1), 45, 0.8)
    cluster.carry_out(KIND, NAME, cluster.plan(KIND, NAME), crash_before_status=True)
    step(cluster)
    assert states(cluster) == ["Running", "Stopped", "Running"]
    before = set(cluster.of("FineTuneJob"))
    cluster.set_status(KIND, NAME, {"observedGeneration": -1})
    cluster.settle()
    assert set(cluster.of("FineTuneJob")) == before, "names follow from the uid and the number"


def test_a_deleted_run_of_an_unfinished_trial_is_made_again_and_that_of_a_finished_one_is_not() -> None:
    cluster = searching(parallelTrials=2)
    end(cluster, trial(0), 0.5)
    step(cluster)
    cluster.delete("FineTuneJob", trial(0))
    cluster.delete("FineTuneJob", trial(1))
    step(cluster)
    assert ("FineTuneJob", trial(0)) not in cluster.objects
    assert ("FineTuneJob", trial(1)) in cluster.objects
    assert states(cluster)[0] == "Done"


def test_a_run_of_somebody_else_with_the_name_of_a_trial_blocks_the_sweep() -> None:
    other = finetunejob()
    other["metadata"] = {"name": trial(0)}
    cluster = MemoryCluster(*prerequisites(), dataset(), other, sweep())
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    assert cluster.states(KIND, NAME) == {"Reconciling": "NameConflict"}
    assert "cancel" not in run(cluster, trial(0))["spec"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"maxTrials": 3}, "the grid has 4 combinations, and spec.maxTrials is 3"),
        (
            {"parameters": [{"field": "method.lora.r", "values": [8, 0]}]},
            "trial 1: method.lora.r: 0 is no value of the field (input should be greater than or equal to 1)",
        ),
        (
            {"parameters": [{"field": "hyperparameters.scheduler", "choices": ["Linear", "Step"]}]},
            "trial 1: hyperparameters.scheduler: Step is no value of the field",
        ),
        (
            {"parameters": [{"field": "hyperparameters.epochs", "values": [1.5]}]},
            "trial 0: hyperparameters.epochs: 1.5 is no value of the field",
        ),
    ],
)
def test_values_that_no_run_can_have_are_refused_before_the_first_trial(spec: Manifest, message: str) -> None:
    cluster = searching(**spec)
    assert cluster.states(KIND, NAME) == {"Stalled": "InvalidSpec"}
    assert message in status(cluster).status.conditions[0].message
    assert not cluster.of("FineTuneJob")


def test_words_and_true_and_false_become_values_of_their_fields() -> None:
    parameters = [
        {"field": "hyperparameters.scheduler", "choices": ["Cosine"]},
        {"field": "method.lora.rsLoRA", "choices": ["true", "false"]},
    ]
    cluster = searching(parameters=parameters)
    spec = run(cluster, trial(0))["spec"]
    assert spec["hyperparameters"]["scheduler"] == "Cosine"
    assert spec["method"]["lora"]["rsLoRA"] is True


@pytest.mark.parametrize(("field", "is_refused"), [("method.lora.r", True), ("method.lora.dropout", False)])
def test_fields_that_the_adapter_of_the_parent_fixes_are_refused(field: str, is_refused: bool) -> None:
    cluster = ended_run()
    values = [8, 16] if field.endswith("r") else [0.0, 0.1]
    template = {"baseModel": {"checkpoint": CHECKPOINT}}
    cluster.add(sweep(template, parameters=[{"field": field, "values": values}]))
    step(cluster)
    if is_refused:
        assert cluster.states(KIND, NAME) == {"Stalled": "InvalidSpec"}
        message = status(cluster).status.conditions[0].message
        assert f"Checkpoint {CHECKPOINT} fixes {field}" in message
    else:
        assert cluster.states(KIND, NAME) == {"Reconciling": "Searching"}


def test_rows_without_a_validation_split_are_refused() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(), sweep())
    cluster.settle()
    splits = [each for each in prepared().prepare.splits if each.name != "validation"]  # type: ignore[union-attr]
    cluster.succeed("prepare", prepared(splits=splits), after=5)
    cluster.settle()
    assert cluster.states(KIND, NAME) == {"Stalled": "InvalidSpec"}
    assert "has no validation rows" in status(cluster).status.conditions[0].message


def test_whole_runs_end_a_sweep_with_a_promoted_checkpoint() -> None:
    """With passes over all objects: each trial runs its stages, and only the last run is evaluated."""
    cluster = searching(parameters=[{"field": "hyperparameters.learningRate", "values": RATES[:2]}])
    for number, name in enumerate((trial(0), trial(1), BEST)):
        uid = run(cluster, name)["metadata"]["uid"]
        cluster.succeed("preflight", preflighted(uid), after=10)
        cluster.settle()
        weights = "c" if name == BEST else f"{number}"
        result = trained(uid)
        assert result.train is not None
        (made,) = result.train.checkpoints
        made = made.model_copy(update={"digest": digest(weights), "validation_loss": 0.5 - number / 10})
        parts = {"train": result.train.model_copy(update={"checkpoints": (made,)})}
        cluster.succeed("train", result.model_copy(update=parts), after=10)
        cluster.settle()
        assert cluster.has_stage_job("evaluate") == (name == BEST)
    found = status(cluster).status
    assert [each.objective for each in found.trials] == [0.5, 0.4]
    assert found.best is not None
    assert found.best.name == trial(1)
    uid = run(cluster, BEST)["metadata"]["uid"]
    cluster.succeed("evaluate", evaluated(run=uid), after=10)
    cluster.settle()
    assert cluster.states(KIND, NAME) == {"Ready": "Promoted"}
    promoted = [each for each in cluster.of("Checkpoint").values() if "promotedAt" in each["status"]]
    assert [each["spec"]["lineage"]["job"]["name"] for each in promoted] == [BEST]


def test_an_idle_sweep_writes_nothing() -> None:
    cluster = searching()
    before = cluster.writes
    cluster.settle()
    assert cluster.writes == before
