"""Data of a run: a DatasetVersion, from a Dataset or from the run's inline source."""

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import DatasetReference
from finetune_operator.manifests.configs import prepare_config
from finetune_operator.manifests.labels import REFRESH_REQUESTED, inline_version_name
from finetune_operator.manifests.records import build_dataset_version
from finetune_operator.plan import Create
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stage import run_stage, without_result
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.status.conditions import find, is_true
from finetune_operator.status.problems import faults, shown_problems
from finetune_operator.status.reasons import UNDER_WAY, ConditionType, EventReason, Reason
from finetune_trainer.contract.results import PrepareResult, StageResult


def data(run: Run) -> Halt | None:
    """Resolve the version to train on and keep it in `status.resolved`."""
    if run.status.resolved.dataset_version is not None:
        return None
    ref = run.job.spec.dataset.ref
    return _inline(run) if ref is None else _reference(run, ref)


def _reference(run: Run, ref: DatasetReference) -> Halt | None:
    version = _named_version(run, ref) if ref.version is not None else _latest_version(run, ref.name)
    if not isinstance(version, DatasetVersion):
        return version
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    if found.store.uri not in version.status.locations:
        if not version.status.locations:
            return Working(
                Reason.WAITING_FOR_DATASET, f"waiting for the location of DatasetVersion {version.name}"
            )
        return Blocked(
            Reason.DATASET_NOT_IN_STORE,
            f"DatasetVersion {version.name} is in {', '.join(version.status.locations)}, but this run uses"
            f" {found.store.uri}: set spec.store.uri of Dataset {ref.name} to {found.store.uri}, and the"
            " operator prepares it there too",
        )
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


def _named_version(run: Run, ref: DatasetReference) -> DatasetVersion | Blocked:
    version = _live(run, ref.version)
    if version is not None and version.spec.dataset == ref.name:
        return version
    return Blocked(
        Reason.DATASET_VERSION_NOT_FOUND,
        f"DatasetVersion {ref.version} of Dataset {ref.name} does not exist in namespace {run.job.namespace},"
        f" or is being deleted: name another one in a new FineTuneJob (kubectl get dsv -n"
        f" {run.job.namespace} lists those that exist)",
    )


def _live(run: Run, name: str | None) -> DatasetVersion | None:
    """The DatasetVersion with this name, unless it is being deleted: its rows may be removed already."""
    version = run.snapshot.datasetversions.get(name or "")
    return version if version is not None and version.metadata.deletion_timestamp is None else None


def _latest_version(run: Run, name: str) -> DatasetVersion | Blocked | Working:
    dataset = run.snapshot.datasets.get(name)
    if dataset is None:
        return Blocked(
            Reason.DATASET_NOT_FOUND,
            f"Dataset {name} does not exist in namespace {run.job.namespace}: create it",
        )
    status = dataset.status
    current = status.observed_generation == dataset.metadata.generation
    stalled = find(status.conditions, ConditionType.STALLED)
    if current and stalled is not None:
        return Blocked(
            Reason.DATASET_FAILED,
            f"Dataset {name} failed with {stalled.reason}: {stalled.message}",
            requeue_after=None,
        )
    state = find(status.conditions, ConditionType.RECONCILING)
    if current and state is not None and state.reason not in UNDER_WAY:
        return _blocked_by(dataset)
    if not current or not is_true(status.conditions, ConditionType.READY):
        return Working(Reason.WAITING_FOR_DATASET, f"waiting for Dataset {name} to be prepared")
    return _live(run, status.latest_version) or Working(
        Reason.WAITING_FOR_DATASET,
        f"waiting for DatasetVersion {status.latest_version}. If it was deleted, request a new preparation:"
        f" kubectl annotate dataset {name} {REFRESH_REQUESTED}=again --overwrite -n {run.job.namespace}",
    )


def _blocked_by(dataset: Dataset) -> Blocked:
    """A user or an administrator must act on the Dataset; the run continues when the Dataset does."""
    state = find(dataset.status.conditions, ConditionType.RECONCILING)
    why = f", which is blocked. {state.reason}: {state.message}" if state is not None else ""
    return Blocked(Reason.WAITING_FOR_DATASET, f"waiting for Dataset {dataset.name}{why}", requeue_after=None)


def _inline(run: Run) -> Halt | None:
    preparation = run.job.spec.dataset.inline
    if preparation is None:
        return Failed(Reason.INVALID_SPEC, "spec.dataset needs exactly one of ref and inline")
    result = run_stage(run, "prepare", lambda inputs: prepare_config(inputs, preparation))
    if not isinstance(result, StageResult):
        return result
    return _record(run, result.prepare, preparation.source.uri)


def _record(run: Run, prepared: PrepareResult | None, source: str) -> Failed | None:
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
        source=source,
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
