# SPDX-License-Identifier: Apache-2.0
"""Data of a run: the rows to train on, from a Dataset or the run's own source, and those to measure on."""

from finetune_operator.api.dataset import DataPreparation, RowSource
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.references import DatasetReference
from finetune_operator.manifests.configs import prepare_config
from finetune_operator.manifests.labels import own_version_name
from finetune_operator.manifests.records import build_dataset_version
from finetune_operator.plan import Create
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stage import run_stage
from finetune_operator.reconcile.measuring import check_stores, resolve_rows
from finetune_operator.reconcile.records.versions import check_location, resolve_version
from finetune_operator.reconcile.stages.request import without_result
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_operator.status.stage_results import faults, shown_problems
from finetune_trainer.contract.results import PrepareResult, StageResult
from finetune_trainer.contract.vocabulary import TRAINING_SPLIT


def data(run: Run) -> Halt | None:
    """Resolve the version to train on and keep it in `status.resolved`."""
    if run.status.resolved.dataset_version is not None:
        return None
    ref = run.job.spec.dataset.ref
    return _own_source(run) if ref is None else _reference(run, ref)


def evaluated_rows(run: Run) -> Halt | None:
    """Resolve the version of `evaluation.dataset` before the training, and keep it in `status.resolved`."""
    spec = run.job.spec.evaluation
    rows = None if spec is None else spec.dataset
    if rows is None or run.status.resolved.evaluation_dataset_version is not None:
        return None
    version = resolve_rows(rows, "spec.evaluation.dataset", run.job, run.snapshot)
    if not isinstance(version, DatasetVersion):
        return version
    if version.spec.digest == run.status.resolved.dataset_digest and rows.split == TRAINING_SPLIT:
        return Failed(
            Reason.INVALID_SPEC,
            f"spec.evaluation.dataset names the rows that the run trains on (DatasetVersion {version.name}):"
            " name another split or Dataset, and create a new FineTuneJob",
        )
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    elsewhere = check_stores(version, ((found.store.uri, "this run uses"),))
    if elsewhere is None:
        run.resolve(evaluation_dataset_version=version.name, evaluation_dataset_digest=version.spec.digest)
    return elsewhere


def _reference(run: Run, ref: DatasetReference) -> Halt | None:
    version = resolve_version(ref, run.job, run.snapshot)
    if not isinstance(version, DatasetVersion):
        return version
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    elsewhere = check_location(version, found.store.uri, "this run uses")
    if elsewhere is not None:
        return elsewhere
    rows = {split.name: split.rows for split in version.spec.splits}
    failed = _test_rows(run, rows.get("test", 0), f"DatasetVersion {version.name}")
    if failed is not None:
        return failed
    run.keep(found)
    run.resolve(dataset_version=version.name, dataset_digest=version.spec.digest)
    run.condition(
        ConditionType.DATASET_READY,
        Reason.SUCCEEDED,
        f"DatasetVersion {version.name}, {version.spec.rows} rows",
    )
    return None


def _own_source(run: Run) -> Halt | None:
    source = run.job.spec.dataset.row_source
    if source is None:
        return Failed(Reason.INVALID_SPEC, "spec.dataset needs exactly one of ref and source")
    result = run_stage(
        run, "prepare", lambda inputs: prepare_config(inputs, {"dataset.source": source}, DataPreparation())
    )
    if not isinstance(result, StageResult):
        return result
    return _record(run, result.prepare, source)


def _record(run: Run, prepared: PrepareResult | None, source: RowSource) -> Failed | None:
    if (
        prepared is None
        or prepared.dataset is None
        or prepared.source is None
        or prepared.preparation is None
    ):
        return without_result("prepare")
    rows = {split.name: split.rows for split in prepared.splits}
    name = own_version_name(run.job.name, prepared.dataset)
    resolved = run.status.resolved
    record = build_dataset_version(
        run.job,
        name,
        prepared,
        sources=[source],
        store=resolved.store,
        store_credentials=resolved.store_credentials,
        deletion_policy=run.job.spec.deletion_policy,
    )
    run.draft.create.append(Create(record, same="Digest"))
    run.draft.event(
        EventReason.DATASET_VERSION_CREATED, f"DatasetVersion {name} with {sum(rows.values())} rows"
    )
    fault = faults(name, prepared)
    if fault is not None:
        run.draft.event(EventReason.DATA_PROBLEMS, fault, "Warning")
    run.update(problems=shown_problems(prepared))
    run.resolve(dataset_version=name, dataset_digest=prepared.dataset)
    run.succeed("prepare", f"DatasetVersion {name}, {sum(rows.values())} rows")
    return _test_rows(run, rows.get("test", 0), "spec.dataset.source")


def _test_rows(run: Run, rows: int, what: str) -> Failed | None:
    """Refuse an evaluation without held-out rows before the training, and not after it."""
    spec = run.job.spec.evaluation
    if spec is None or spec.dataset is not None or rows > 0:
        return None
    return Failed(
        Reason.INVALID_SPEC,
        f"spec.evaluation needs held-out rows, but the test split of {what} is empty: raise split.test, add"
        " rows, or name a Dataset in evaluation.dataset, and create a new FineTuneJob",
    )
