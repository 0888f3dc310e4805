# SPDX-License-Identifier: Apache-2.0
"""Merging: a Job merges the adapter of a revision into its base model, before the revision has pods."""

from typing import Final

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.manifests.endpoint import fetched_items
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainer_config import owner_of_pod, store_config
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.passes import Blocked, PlanBuilder, Working
from finetune_operator.reconcile.stages.repeated_jobs import RepeatedJob, keep_only
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.serving import MergeConfig, MergedWeights

MERGE: Final[JobStage] = "merge"


def merge_weights(
    draft: PlanBuilder, endpoint: InferenceDeployment, revision: Revision
) -> Revision | Working | Blocked:
    """Advance the Job that merges the adapter of this revision, and delete those for other adapters.

    Returns the revision with the digests of its merged weights, or how the pass ends until they are made. A
    revision without a merged adapter is returned as it is.
    """
    weights = revision.merged
    job = _job(endpoint, revision, weights) if weights is not None else None
    keep_only(draft, MERGE, job.name if job is not None else None)
    if job is None:
        return revision
    merged = job.result(draft, MergedWeights)
    return revision.with_merged(merged.weights, merged.probe) if isinstance(merged, MergedWeights) else merged


def with_served_merge(revision: Revision, deployment: Manifest) -> Revision:
    """The revision with the digests of the merged weights that the pods of its Deployment fetch.

    Returns the revision as it is if the config of the pods cannot be read.
    """
    found = ((item.merged, item.probe) for item in fetched_items(deployment))
    return next(
        (revision.with_merged(weights, probe) for weights, probe in found if weights and probe), revision
    )


def _job(endpoint: InferenceDeployment, revision: Revision, weights: WeightsReference) -> RepeatedJob:
    name = stage_job_name(endpoint, MERGE, weights.digest, revision.base_digest)

    def config(contract: int) -> MergeConfig:
        return MergeConfig(
            contract=contract,
            owner=owner_of_pod(endpoint),
            store=store_config(revision.store, revision.store_credentials),
            checkpoint=ArtifactRef(kind="checkpoints", digest=weights.digest),
            base_model=revision.base_digest,
            probe=weights.probe,
        )

    return RepeatedJob(
        owner=endpoint,
        name=name,
        stage=MERGE,
        profile=revision.profile,
        config=config,
        reason=Reason.MERGING,
        doing=f"Job {name} merges {weights.label} into its base model",
        failure_reason=Reason.MERGE_FAILED,
        failure=f"{weights.label} could not be merged",
    )
