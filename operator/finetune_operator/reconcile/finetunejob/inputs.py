# SPDX-License-Identifier: Apache-2.0
"""Inputs of a run: the Checkpoint and base model to continue from, and the rows to train and measure on.

The run names the Checkpoint, or continues from the champion of a model line. The rows to train on come from
a Dataset or from the run's own source.
"""

from typing import Final

from pydantic import JsonValue

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset import DataPreparation, RowSource
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.references import ChampionReference, DatasetReference
from finetune_operator.manifests.configs import checkpoint_type, prepare_config
from finetune_operator.manifests.labels import own_version_name
from finetune_operator.manifests.records import build_dataset_version
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.plan import Create
from finetune_operator.reconcile.evaluation_stages import check_stores, resolve_rows
from finetune_operator.reconcile.finetunejob.identity import uids
from finetune_operator.reconcile.finetunejob.run import RunPass
from finetune_operator.reconcile.finetunejob.stage import run_stage
from finetune_operator.reconcile.model_lines import is_rejected
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, Working
from finetune_operator.reconcile.records.dataset_versions import check_location, resolve_version
from finetune_operator.reconcile.stages.stage_request import fail_without_result
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_operator.status.stage_results import select_problems, summarize_problems
from finetune_trainer.contract.results import PrepareResult, StageResult
from finetune_trainer.contract.vocabulary import ADAPTER, TRAINING_SPLIT

FIELD: Final = "spec.baseModel.checkpoint"


def parent(run: RunPass) -> PassOutcome | None:
    """Resolve the Checkpoint and its base model and keep them in `status.resolved`.

    Later changes to the record do not matter, nor do later champions, and the weights stay as long as the run
    needs them.
    """
    start = run.job.spec.base_model
    if run.status.resolved.base_model_uri is not None:
        return None
    if start.champion is not None:
        return _champion(run, start.champion)
    if start.checkpoint is None:
        return None
    checkpoint = _live(run, start.checkpoint)
    if not isinstance(checkpoint, Checkpoint):
        return checkpoint
    return _continue(run, checkpoint, f"Checkpoint {checkpoint.name}")


def _champion(run: RunPass, reference: ChampionReference) -> PassOutcome | None:
    """Continue from the champion. Without one, start from `uri`, or wait."""
    line, uri = reference.model_line or run.job.spec.model_line, run.job.spec.base_model.uri
    champion = run.snapshot.checkpoints.champion(line, except_of=uids(run.job))
    if champion is not None:
        return _continue(run, champion, f"champion {champion.name} of model line {line}")
    if uri is not None:
        run.resolve(base_model_uri=uri)
        return None
    return Working(
        Reason.WAITING_FOR_CHAMPION,
        f"waiting for the first champion of model line {line}: the run starts when a Checkpoint of that line"
        f" is promoted (kubectl get checkpoints -n {run.job.namespace}). To start from a base model instead,"
        " create a FineTuneJob with baseModel.uri",
    )


def _continue(run: RunPass, checkpoint: Checkpoint, described: str) -> PassOutcome | None:
    refused = _refused(run, checkpoint, described)
    if refused is not None:
        return refused
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    store = WeightsReference.of(checkpoint).store
    if store != found.store.uri.rstrip("/"):
        return Blocked(
            Reason.CHECKPOINT_NOT_IN_STORE,
            f"{described} is in {store}, but this run uses {found.store.uri}: create a new FineTuneJob"
            f" with spec.store.uri: {store}",
        )
    base_model = checkpoint.spec.lineage.base_model
    run.keep(found)
    run.resolve(
        parent_checkpoint=checkpoint.name,
        parent_digest=checkpoint.spec.digest,
        base_model_uri=base_model.uri,
        base_model_revision=base_model.revision,
        base_model_digest=base_model.digest,
        chat_template_kwargs=_template_arguments(run, checkpoint),
    )
    return None


def _template_arguments(run: RunPass, checkpoint: Checkpoint) -> dict[str, JsonValue] | None:
    """The run's own arguments for the chat template if it sets any, else those of the Checkpoint."""
    own = run.job.spec.chat_template_kwargs
    return checkpoint.spec.lineage.chat_template_kwargs if own is None else own


def _live(run: RunPass, name: str) -> Checkpoint | Blocked:
    """The Checkpoint, unless it is missing, being deleted or rejected."""
    checkpoint, namespace = run.snapshot.checkpoints.get(name), run.job.namespace
    or_another = f"or name another one in a new FineTuneJob (kubectl get checkpoints -n {namespace})"
    if checkpoint is None:
        return Blocked(
            Reason.CHECKPOINT_NOT_FOUND,
            f"Checkpoint {name} of {FIELD} does not exist in namespace {namespace}: wait"
            f" until it is recorded, {or_another}",
        )
    if checkpoint.metadata.deletion_timestamp is not None:
        return Blocked(
            Reason.CHECKPOINT_NOT_FOUND,
            f"Checkpoint {name} of {FIELD} is being deleted: restore it, {or_another}",
        )
    if is_rejected(checkpoint):
        why = checkpoint.spec.approval.reason if checkpoint.spec.approval is not None else ""
        return Blocked(
            Reason.CHECKPOINT_REJECTED,
            f"Checkpoint {name} of {FIELD} was rejected ({why or 'no reason given'}):"
            f" remove its spec.approval, {or_another}",
        )
    return checkpoint


def _refused(run: RunPass, checkpoint: Checkpoint, described: str) -> Failed | None:
    """A method or base model that the Checkpoint does not fit."""
    spec, given = run.job.spec, checkpoint.spec
    if given.type != checkpoint_type(spec.method):
        is_adapter = given.type == ADAPTER
        works = "method.type: LoRA" if is_adapter else "method.type: Full"
        content = "an adapter" if is_adapter else "all weights"
        return Failed(
            Reason.INVALID_SPEC,
            f"spec.method.type: {spec.method.type} cannot continue from {described}, which"
            f" contains {content}: create a new FineTuneJob with {works}, or with baseModel.uri:"
            f" {given.lineage.base_model.uri}",
        )
    expected, base_model = spec.base_model.digest, given.lineage.base_model.digest
    if expected not in (None, base_model):
        return Failed(
            Reason.INVALID_SPEC if spec.base_model.champion is None else Reason.BASE_MODEL_MISMATCH,
            f"spec.baseModel.digest is {expected}, but {described} was trained from"
            f" {base_model}: create a new FineTuneJob without it",
        )
    return None


def data(run: RunPass) -> PassOutcome | None:
    """Resolve the version to train on and keep it in `status.resolved`."""
    if run.status.resolved.dataset_version is not None:
        return None
    ref = run.job.spec.dataset.ref
    return _own_source(run) if ref is None else _reference(run, ref)


def evaluated_rows(run: RunPass) -> PassOutcome | None:
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


def _reference(run: RunPass, ref: DatasetReference) -> PassOutcome | None:
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


def _own_source(run: RunPass) -> PassOutcome | None:
    source = run.job.spec.dataset.row_source
    if source is None:
        return Failed(Reason.INVALID_SPEC, "spec.dataset needs exactly one of ref and source")
    result = run_stage(
        run, "prepare", lambda inputs: prepare_config(inputs, {"dataset.source": source}, DataPreparation())
    )
    if not isinstance(result, StageResult):
        return result
    return _record(run, result.prepare, source)


def _record(run: RunPass, prepared: PrepareResult | None, source: RowSource) -> Failed | None:
    if (
        prepared is None
        or prepared.dataset is None
        or prepared.source is None
        or prepared.preparation is None
    ):
        return fail_without_result("prepare")
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
    fault = summarize_problems(name, prepared)
    if fault is not None:
        run.draft.event(EventReason.DATA_PROBLEMS, fault, "Warning")
    run.update(problems=select_problems(prepared))
    run.resolve(dataset_version=name, dataset_digest=prepared.dataset)
    run.succeed("prepare", f"DatasetVersion {name}, {sum(rows.values())} rows")
    return _test_rows(run, rows.get("test", 0), "spec.dataset.source")


def _test_rows(run: RunPass, rows: int, what: str) -> Failed | None:
    """Refuse an evaluation without held-out rows before the training, and not after it."""
    spec = run.job.spec.evaluation
    if spec is None or spec.dataset is not None or rows > 0:
        return None
    return Failed(
        Reason.INVALID_SPEC,
        f"spec.evaluation needs held-out rows, but the test split of {what} is empty: raise split.test, add"
        " rows, or name a Dataset in evaluation.dataset, and create a new FineTuneJob",
    )
