# SPDX-License-Identifier: Apache-2.0
"""Data of a run: a DatasetVersion, from a Dataset or from the run's inline source."""

from finetune_operator.api.datasetreference import DatasetReference
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.preparation import RowSource
from finetune_operator.manifests.configs import prepare_config
from finetune_operator.manifests.labels import inline_version_name
from finetune_operator.manifests.records import build_dataset_version
from finetune_operator.plan import Create
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stage import run_stage, without_result
from finetune_operator.reconcile.records.versions import check_location, resolve_version
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.status.problems import faults, shown_problems
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.results import PrepareResult, StageResult


def data(run: Run) -> Halt | None:
    """Resolve the version to train on and keep it in `status.resolved`."""
    if run.status.resolved.dataset_version is not None:
        return None
    ref = run.job.spec.dataset.ref
    return _inline(run) if ref is None else _reference(run, ref)


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


def _inline(run: Run) -> Halt | None:
    preparation = run.job.spec.dataset.inline
    if preparation is None:
        return Failed(Reason.INVALID_SPEC, "spec.dataset needs exactly one of ref and inline")
    source = preparation.row_source
    result = run_stage(
        run, "prepare", lambda inputs: prepare_config(inputs, {"dataset.inline.source": source}, preparation)
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
    name = inline_version_name(run.job.name, prepared.dataset)
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
    return _test_rows(run, rows.get("test", 0), "the inline dataset")


def _test_rows(run: Run, rows: int, what: str) -> Failed | None:
    """Refuse an evaluation without held-out rows before the training, and not after it."""
    if run.job.spec.evaluation is None or rows > 0:
        return None
    return Failed(
        Reason.INVALID_SPEC,
        f"spec.evaluation needs held-out rows, but the test split of {what} is empty: raise split.test or add"
        " rows, and create a new FineTuneJob",
    )
