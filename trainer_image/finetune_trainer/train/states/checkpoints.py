"""Publishes the best, final and kept weights of a run as checkpoints in the store."""

from pathlib import Path

from finetune_trainer.beneath import copy_file, names_in
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.results import CheckpointResult
from finetune_trainer.contract.vocabulary import CheckpointType
from finetune_trainer.manifest import MANIFEST_NAME
from finetune_trainer.model.bundle import Bundle
from finetune_trainer.store import Store
from finetune_trainer.train.states.ledger import RunLedger
from finetune_trainer.train.states.resume import ResumeStates
from finetune_trainer.train.states.retention import Retention


def publish_checkpoints(
    store: Store,
    states: ResumeStates,
    ledger: RunLedger,
    final: Path,
    retention: Retention,
    *,
    weights_type: CheckpointType,
    bundle: Bundle,
    step: int,
    epoch: float,
) -> tuple[CheckpointResult, ...]:
    """Publish the weights after `step`, from the staging folder `final`, and the best and the kept weights.

    The best weights are those with the lowest validation loss; without validation, the final ones. Each
    digest is published once, because a kept step may also be the best. Each checkpoint gets the files of
    `bundle`. The result is sorted by step.
    Raises StageFailure (STORE_UNAVAILABLE).
    """
    best = ledger.best
    final_is_best = best is None or best.step == step
    published: dict[Digest, CheckpointResult] = {}

    def add(checkpoint: CheckpointResult) -> None:
        same = published.get(checkpoint.digest)
        if same is not None:
            flags = {"best": same.best or checkpoint.best, "final": same.final or checkpoint.final}
            checkpoint = checkpoint.model_copy(update=flags)
        published[checkpoint.digest] = checkpoint

    for kept in retention.published(ledger.kept, step):
        if best is None or kept.step != best.step:
            digest = _publish_folder(store, states.kept_folder(kept.step), bundle)
            add(CheckpointResult(digest=digest, type=weights_type, **kept.model_dump()))
    if best is not None and not final_is_best:
        digest = _publish_folder(store, states.best_folder(best.step), bundle)
        add(CheckpointResult(digest=digest, type=weights_type, best=True, **best.model_dump()))
    bundle.write(final)
    add(
        CheckpointResult(
            digest=store.publish("checkpoints", final),
            type=weights_type,
            step=step,
            epoch=epoch,
            train_loss=ledger.final_train_loss,
            validation_loss=ledger.validation_loss,
            **ledger.reward_figures(),
            best=final_is_best,
            final=True,
        )
    )
    return tuple(sorted(published.values(), key=lambda checkpoint: checkpoint.step))


def _publish_folder(store: Store, folder: Path, bundle: Bundle) -> Digest:
    with store.staging() as staging:
        for name in names_in(folder, folder):
            if name != MANIFEST_NAME:
                copy_file(folder / name, staging / name, folder)
        bundle.write(staging)
        return store.publish("checkpoints", staging)
