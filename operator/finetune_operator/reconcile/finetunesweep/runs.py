# SPDX-License-Identifier: Apache-2.0
"""The runs of a sweep: their keys and values, and what became of a trial."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_sweep import FineTuneSweep, Trial
from finetune_operator.api.run_template import Promotion, RunTemplateSpec
from finetune_operator.reconcile.finetunesweep.search import Value, grid_point, random_point
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.status.conditions import is_cancelled, is_finished, is_true
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.contract.metrics import VALIDATION_METRIC

HOUR_SECONDS: Final = 3600


def trial_key(sweep: FineTuneSweep, number: int) -> str:
    """The key of a trial. A re-created sweep has other keys."""
    return f"{sweep.uid}/trial/{number}"


def best_key(sweep: FineTuneSweep) -> str:
    """The key of the run with the best values."""
    return f"{sweep.uid}/best"


def trial_values(sweep: FineTuneSweep, number: int) -> dict[str, Value]:
    """The values of a trial by field.

    Raises:
        IndexError: the grid is smaller.
    """
    if sweep.spec.search == "Grid":
        return grid_point(number, sweep.spec.parameters)
    return random_point(number, sweep.spec.parameters, sweep.spec.seed)


def value_texts(values: Mapping[str, Value]) -> dict[str, str]:
    """Values as the status has them."""
    return {field: str(value) for field, value in values.items()}


def describe(values: Mapping[str, str]) -> str:
    """Values for users: `learningRate=0.0003 r=16`."""
    return " ".join(f"{field.rpartition('.')[2]}={value}" for field, value in values.items())


def with_values(spec: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """The spec of a run in wire form with the values in their fields.

    Raises:
        ValidationError: a value does not fit its field.
    """
    changed = {**spec}
    for field, value in values.items():
        *parents, last = field.split(".")
        node = changed
        for parent in parents:
            node[parent] = {**(node.get(parent) or {})}
            node = node[parent]
        node[last] = value
    return RunTemplateSpec.model_validate(changed).to_dict()


def check_values(spec: Mapping[str, Any], values: Mapping[str, Value]) -> str | None:
    """What is wrong with the values of a trial; None if they fit their fields."""
    try:
        with_values(spec, values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return f"{field}: {first['input']} is no value of the field ({first['msg'].lower()})"
    return None


def template(sweep: FineTuneSweep, dataset_version: str | None) -> dict[str, Any]:
    """The spec of the last run without its values: every run trains on the same rows."""
    spec = sweep.spec.template.spec.to_dict()
    reference = {**spec["dataset"]["ref"], **({"version": dataset_version} if dataset_version else {})}
    return {**spec, "dataset": {**spec["dataset"], "ref": reference}}


def trial_template(sweep: FineTuneSweep, dataset_version: str | None) -> dict[str, Any]:
    """The spec of a trial without its values: it reads no test rows and is never promoted."""
    spec = template(sweep, dataset_version)
    spec["promotion"] = Promotion(mode="Never").to_dict()
    return {name: value for name, value in spec.items() if name not in {"evaluation", "learningCurve"}}


def observe(trial: Trial, run: FineTuneJob, snapshot: Snapshot) -> Trial:
    """The trial after the present state of its run. The state of an ended trial does not change."""
    ended = is_finished(run)
    seconds = run.status.cost.device_seconds if run.status.cost is not None else 0
    # A tenth of an hour, so that not every report of a running trial changes the status.
    hours = max(trial.device_hours, round(seconds / HOUR_SECONDS, 3 if ended else 1))
    changes: dict[str, Any] = {"device_hours": hours}
    if trial.state == "Running":
        if run.spec.cancel or is_cancelled(run):
            changes["state"] = "Stopped"
        elif ended:
            objective = lowest_loss(run, snapshot)
            is_done = objective is not None and is_true(run.status.conditions, ConditionType.READY)
            changes |= {"state": "Done", "objective": objective} if is_done else {"state": "Failed"}
    return trial.model_copy(update=changes)


def lowest_loss(run: FineTuneJob, snapshot: Snapshot) -> float | None:
    """The lowest validation loss of the run's Checkpoints, which include the best one; without their records
    that of the last epoch. None without any."""
    losses = (
        score.value
        for checkpoint in snapshot.checkpoints.of_run(run.uid)
        for score in checkpoint.spec.metrics
        if score.metric == VALIDATION_METRIC
    )
    last = run.status.training.validation_loss if run.status.training is not None else None
    return min(losses, default=last)
