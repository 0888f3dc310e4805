"""What is left of a run: the best and the final weights, as checkpoints in the store."""

import shutil

from finetune_trainer.contract import CheckpointResult
from finetune_trainer.manifest import MANIFEST_NAME
from finetune_trainer.store import Store
from finetune_trainer.train.ledger import Ledger
from finetune_trainer.train.states import States
from finetune_trainer.train.weights import Weights


def publish_checkpoints(
    store: Store,
    states: States,
    ledger: Ledger,
    weights: Weights,
    *,
    step: int,
    epoch: float,
) -> tuple[CheckpointResult, ...]:
    """Publish the weights after `step` as the final ones, and before them the best if those are others.

    Best is the lowest validation loss; without validation the final weights are the best known.
    Raises StageFailure (STORE_UNAVAILABLE).
    """
    best = ledger.best
    final_is_best = best is None or best.step == step
    published: list[CheckpointResult] = []
    if best is not None and not final_is_best:
        with store.staging() as staging:
            for path in states.best_folder(best.step).iterdir():
                if path.name != MANIFEST_NAME:
                    shutil.copyfile(path, staging / path.name)
            published.append(
                CheckpointResult(
                    digest=store.publish("checkpoints", staging),
                    type=weights.type,
                    best=True,
                    **best.model_dump(),
                )
            )
    with store.staging() as staging:
        weights.write(staging)
        published.append(
            CheckpointResult(
                digest=store.publish("checkpoints", staging),
                type=weights.type,
                step=step,
                epoch=epoch,
                train_loss=ledger.train_loss,
                validation_loss=ledger.validation_loss,
                **ledger.reward_figures(),
                best=final_is_best,
                final=True,
            )
        )
    return tuple(published)
