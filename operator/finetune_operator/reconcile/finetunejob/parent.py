# SPDX-License-Identifier: Apache-2.0
"""The Checkpoint that a run continues from, by name or as a champion, and its base model."""

from typing import Final

from pydantic import JsonValue

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.references import ChampionReference
from finetune_operator.manifests.configs import checkpoint_type
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.reconcile.finetunejob.identity import uids
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.lines.checkpointrules import is_rejected
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import ADAPTER

FIELD: Final = "spec.baseModel.checkpoint"


def parent(run: Run) -> Halt | None:
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


def _champion(run: Run, reference: ChampionReference) -> Halt | None:
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


def _continue(run: Run, checkpoint: Checkpoint, described: str) -> Halt | None:
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


def _template_arguments(run: Run, checkpoint: Checkpoint) -> dict[str, JsonValue] | None:
    """The run's own arguments for the chat template if it sets any, else those of the Checkpoint."""
    own = run.job.spec.chat_template_kwargs
    return checkpoint.spec.lineage.chat_template_kwargs if own is None else own


def _live(run: Run, name: str) -> Checkpoint | Blocked:
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


def _refused(run: Run, checkpoint: Checkpoint, described: str) -> Failed | None:
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
