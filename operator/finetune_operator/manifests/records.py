# SPDX-License-Identifier: Apache-2.0
"""DatasetVersions and Checkpoints: immutable records without an owner, so they outlive a deleted run."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import get_args

from pydantic import JsonValue

from finetune_operator.api.checkpoint import (
    AdapterRecord,
    BaseModelRecord,
    Checkpoint,
    CheckpointSpec,
    JobRecord,
    Lineage,
)
from finetune_operator.api.dataset import RowSource
from finetune_operator.api.dataset_version import (
    DatasetStatistics,
    DatasetVersion,
    DatasetVersionSpec,
    SourceRecord,
    SplitRecord,
)
from finetune_operator.api.evaluation import Score
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_job_status import LossPoint
from finetune_operator.api.labels import DATASET, MODEL_LINE
from finetune_operator.api.meta import API_VERSION, DeletionPolicy, Resource
from finetune_operator.api.stage_status import Cost, RecordedCost
from finetune_operator.api.training import MethodRecord, ResolvedHyperparameters, ResolvedLoRA
from finetune_operator.manifests.labels import (
    FINALIZER,
    NEVER_PROMOTED,
    RECORDED_AT,
    checkpoint_name,
    child_labels,
    store_annotations,
)
from finetune_operator.manifests.volumes import store_folder
from finetune_operator.plan import Manifest
from finetune_trainer.contract.metrics import VALIDATION_METRIC
from finetune_trainer.contract.references import strip_query
from finetune_trainer.contract.results import CheckpointResult, DataStatistics, PrepareResult, SourceResult
from finetune_trainer.contract.results import LossPoint as ContractLossPoint
from finetune_trainer.contract.vocabulary import SplitName


def build_dataset_version(
    owner: Resource,
    name: str,
    result: PrepareResult,
    *,
    sources: Iterable[RowSource],
    store: str | None,
    store_credentials: str | None,
    deletion_policy: DeletionPolicy,
) -> Manifest:
    """The record of prepared rows.

    Args:
        owner: the Dataset, or the FineTuneJob with dataset.source.
        name: name of the record.
        result: result of prepare.
        sources: sources that the rows were read from.
        store: URI of the store.
        store_credentials: name of the Secret with the credentials of the store.
        deletion_policy: what happens to the rows when the record is deleted.

    Raises:
        ValueError: the result has no dataset.
    """
    if result.dataset is None or result.source is None or result.preparation is None:
        raise ValueError("the result of prepare has no dataset")
    spec = DatasetVersionSpec(
        dataset=owner.name,
        digest=result.dataset,
        sources=tuple(_source_record(*each) for each in zip(sources, result.sources, strict=False)),
        source_digest=result.source,
        preparation_digest=result.preparation,
        format=(result.format or "Unknown")[:128],
        rule_version=result.rule_version,
        group_by=result.group_by,
        rows=sum(split.rows for split in result.splits),
        splits=tuple(
            SplitRecord(name=s.name, rows=s.rows, digest=s.digest)
            for s in result.splits
            if s.name in get_args(SplitName)
        ),
        statistics=_statistics(result.statistics),
        deletion_policy=deletion_policy,
    )
    return {
        "apiVersion": API_VERSION,
        "kind": DatasetVersion.__name__,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": child_labels(owner, **{DATASET: owner.name}),
            "annotations": store_annotations(store, store_credentials),
            **_finalizers(deletion_policy),
        },
        "spec": spec.to_dict(),
    }


def _source_record(source: RowSource, found: SourceResult) -> SourceRecord:
    return SourceRecord(
        uri=strip_query(source.uri),
        revision=found.revision,
        format=None if found.format is None else found.format[:32],
        splits=source.splits,
        train=found.train,
        validation=found.validation,
        test=found.test,
    )


def _statistics(found: DataStatistics) -> DatasetStatistics:
    """The statistics of a result. `untested_answers` is left out if it is 0."""
    fields = found.model_dump()
    return DatasetStatistics(**fields | {"untested_answers": found.untested_answers or None})


def build_checkpoint(
    job: FineTuneJob,
    result: CheckpointResult,
    *,
    store: str,
    store_credentials: str | None,
    parent_checkpoint: str | None,
    base_model_uri: str,
    base_model_digest: str,
    base_model_revision: str | None,
    dataset_version: str,
    validation_rows: int,
    hyperparameters: ResolvedHyperparameters,
    chat_template_kwargs: dict[str, JsonValue] | None,
    reasoning_parser: str | None,
    lora: ResolvedLoRA | None,
    trainer_image: str,
    loss_curve: Sequence[ContractLossPoint],
    cost: Cost | None,
    recorded_at: datetime,
) -> Manifest:
    """The record of published weights, with their lineage.

    `lora` has the settings of the adapter, if the run trains one; `loss_curve` is the curve of the whole run;
    `cost` is that of the run so far.
    """
    metrics: tuple[Score, ...] = ()
    if result.validation_loss is not None:
        metrics = (
            Score(
                metric=VALIDATION_METRIC,
                subject="Tuned",
                value=result.validation_loss,
                rows=validation_rows,
            ),
        )
    spec = CheckpointSpec(
        model_line=job.spec.model_line,
        digest=result.digest,
        type=result.type,
        step=result.step,
        epoch=result.epoch,
        uri=store_folder(store, "checkpoints", result.digest),
        metrics=metrics,
        loss_curve=_cut_loss_curve(result.step, loss_curve),
        probe=result.probe,
        cost=RecordedCost(**cost.model_dump(exclude={"lost"})) if cost is not None else None,
        lineage=Lineage(
            base_model=BaseModelRecord(
                uri=base_model_uri,
                revision=base_model_revision,
                digest=base_model_digest,
            ),
            dataset_version=dataset_version,
            job=JobRecord(name=job.name, uid=job.uid),
            parent_checkpoint=parent_checkpoint,
            method=MethodRecord(objective=job.spec.method.objective, type=job.spec.method.type),
            hyperparameters=hyperparameters,
            chat_template_kwargs=chat_template_kwargs or None,
            reasoning_parser=reasoning_parser,
            adapter=adapter_record(lora),
            trainer_image=trainer_image,
        ),
        deletion_policy=job.spec.deletion_policy,
    )
    return {
        "apiVersion": API_VERSION,
        "kind": Checkpoint.__name__,
        "metadata": {
            "name": checkpoint_name(job.name, job.uid, result.step, result.digest),
            "namespace": job.namespace,
            "labels": child_labels(job, **{MODEL_LINE: job.spec.model_line}),
            "annotations": {
                **store_annotations(None, store_credentials),
                RECORDED_AT: recorded_at.isoformat(timespec="milliseconds"),
                **({NEVER_PROMOTED: "true"} if job.spec.promotion.mode == "Never" else {}),
            },
            **_finalizers(job.spec.deletion_policy),
        },
        "spec": spec.to_dict(),
    }


def adapter_record(lora: ResolvedLoRA | None) -> AdapterRecord | None:
    """Properties of the adapter that a run trains; None if it trains whole models."""
    return None if lora is None else AdapterRecord(r=lora.r, dora=lora.dora or None)


def _cut_loss_curve(step: int, curve: Sequence[ContractLossPoint]) -> tuple[LossPoint, ...] | None:
    points = [LossPoint(step=at, train=train, validation=validation) for at, train, validation in curve]
    return tuple(point for point in points if point.step <= step) or None


def _finalizers(policy: DeletionPolicy) -> Manifest:
    """Finalizers at creation, so that no deletion can come before them."""
    return {"finalizers": [FINALIZER]} if policy == "Delete" else {}
