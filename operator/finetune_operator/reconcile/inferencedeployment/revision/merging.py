# SPDX-License-Identifier: Apache-2.0
"""Merge the adapter of a revision into its base model, before pods of the revision exist."""

from typing import Final

from pydantic import ValidationError

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import SecretReference
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.endpoint import FETCH_CONTAINER
from finetune_operator.manifests.engines.engine_inputs import endpoint_owner
from finetune_operator.manifests.jobs import CredentialsMount, Placement, Storage, build_stage_job
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainer_config import store_config, trainer_of
from finetune_operator.manifests.volumes import parse_store
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.observe.pod_status import stage_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.stages.attempts import AttemptFailed, follow, result
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import EventReason, Reason
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.serving import FetchConfig, FetchItem, MergeConfig, MergedWeights

MERGE: Final[JobStage] = "merge"


def merge_weights(
    draft: Draft, endpoint: InferenceDeployment, revision: Revision
) -> Revision | Working | Blocked:
    """Advance the Job that merges the adapter of this revision, and delete those for other adapters.

    Returns the revision with the digests of its merged weights, or how the pass ends until they are made. A
    revision without a merged adapter is returned as it is.
    """
    jobs = {name: job for name, job in draft.snapshot.children[JOB].items() if stage_of(job) == MERGE}
    weights = revision.merged
    name = stage_job_name(endpoint, MERGE, weights.digest, revision.base_digest) if weights else ""
    for other, job in jobs.items():
        if other != name:
            draft.remove(job, "Background")
    if weights is None:
        return revision
    doing = f"Job {name} merges {weights.label} into its base model"
    if name not in jobs:
        draft.event(EventReason.STAGE_STARTED, doing)
        draft.start_job(_build(draft, endpoint, revision, weights, name))
        return Working(Reason.MERGING, doing)
    halt = follow(draft, jobs[name], Reason.MERGING, doing)
    if isinstance(halt, AttemptFailed):
        message = f"{weights.label} could not be merged: {halt.message}; the operator retries every 5 minutes"
        return Blocked(Reason.MERGE_FAILED, message, halt.retry_seconds)
    if halt is not None:
        return halt
    merged = result(draft, jobs[name], MergedWeights, Reason.MERGING, doing)
    if isinstance(merged, Working):
        return merged
    return revision.with_merged(merged.weights, merged.probe)


def with_served_merge(revision: Revision, deployment: Manifest) -> Revision:
    """The revision with the digests of the merged weights that the pods of its Deployment fetch.

    Returns the revision as it is if the config of the pods cannot be read.
    """
    found = ((item.merged, item.probe) for item in fetched_items(deployment))
    return next(
        (revision.with_merged(weights, probe) for weights, probe in found if weights and probe), revision
    )


def fetched_items(deployment: Manifest) -> tuple[FetchItem, ...]:
    """The folders that the pods of a Deployment fetch; none if their config cannot be read."""
    pod = deployment["spec"]["template"]["spec"]
    variables = {
        variable["name"]: variable.get("value", "")
        for container in pod.get("initContainers", ())
        if container["name"] == FETCH_CONTAINER
        for variable in container.get("env", ())
    }
    try:
        return FetchConfig.model_validate_json(variables.get(CONFIG_ENV, "")).items
    except ValidationError:
        return ()


def _build(
    draft: Draft, endpoint: InferenceDeployment, revision: Revision, weights: WeightsReference, name: str
) -> Manifest:
    facts, secret = draft.snapshot.facts, revision.store_credentials
    trainer = trainer_of(revision.profile, facts.trainer_image)
    config = MergeConfig(
        contract=trainer.contract,
        owner=endpoint_owner(endpoint),
        store=store_config(revision.store, secret),
        checkpoint=ArtifactRef(kind="checkpoints", digest=weights.digest),
        base_model=revision.base_digest,
        probe=weights.probe,
    )
    return build_stage_job(
        endpoint,
        name,
        config,
        MERGE,
        Placement(
            image=trainer.image,
            image_pull_policy=facts.image_pull_policy,
            profile=revision.profile,
            storage=Storage(store=parse_store(revision.store)),
            credentials=CredentialsMount(store=SecretReference(name=secret) if secret else None),
        ),
        nonce_key=facts.nonce_key,
    )
