"""What the condition Trained says of a run's training."""

from finetune_operator.api.finetunejobstatus import ResolvedHyperparameters
from finetune_trainer.contract import TrainResult


def trained_message(trained: TrainResult, hyperparameters: ResolvedHyperparameters) -> str:
    """Steps, checkpoints and restarts; whether it ended early, and what to do where it overfits."""
    steps = f"{trained.steps} steps"
    if trained.stopped_early:
        patience = hyperparameters.early_stopping_patience or 0
        steps = (
            f"{trained.steps} of {hyperparameters.total_steps} steps (stopped early: no lower validation loss"
            f" for {_count(patience, 'epoch')})"
        )
    restarts = f", {trained.restarts} restarts" if trained.restarts else ""
    return f"{steps}, {_count(len(trained.checkpoints), 'checkpoint')}{restarts}{_overfitting(trained)}"


def _overfitting(trained: TrainResult) -> str:
    best = next((checkpoint for checkpoint in trained.checkpoints if checkpoint.best), None)
    final = next((checkpoint for checkpoint in trained.checkpoints if checkpoint.final), None)
    if not trained.overfit or best is None or final is None:
        return ""
    return (
        f"; validation loss rose from {best.validation_loss or 0:.2f} after epoch {best.epoch:g} to"
        f" {final.validation_loss or 0:.2f} while training loss fell: the run overfits; the best checkpoint"
        f" is that of step {best.step}; fewer epochs or more rows help"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
