# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.train.ours MODEL WORKLOAD STEPS FOLDER: run the train stage as in a pod."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.rows import SPLIT_FILES
from finetune_trainer.runtime.progress import Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import Store, open_store
from finetune_trainer.train import stage
from finetune_trainer.train.states.resume_states import ResumeStates
from tools.bench.train.workload import LORA, Stopwatch, hyperparameters, training_rows

OWNER: Final = Owner(kind="FineTuneJob", namespace="bench", name="bench", uid="bench")


class Pauses:
    """Collects how long training waits for each save, which is written in the background."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        begin_save = ResumeStates.begin_save

        def timed(*arguments: Any) -> None:
            began_at = time.monotonic()
            begin_save(*arguments)
            self.seconds.append(time.monotonic() - began_at)

        ResumeStates.begin_save = timed  # type: ignore[method-assign, assignment]


def main(model: Path, workload: str, steps: int, folder: Path) -> None:
    """Train, and print steps, seconds, tokens and the pause of each save."""
    (folder / "store").mkdir()
    store = open_store(StoreConfig(uri="pvc://bench", path=str(folder / "store")))
    config = TrainConfig(
        owner=OWNER,
        run="bench",
        store=StoreConfig(uri="pvc://bench", path=str(folder / "store")),
        base_model=_base_model(store, model),
        dataset=_dataset(store, workload, steps),
        method=Method(lora=LORA),
        hyperparameters=hyperparameters(steps, save_every_steps=max(1, steps // 4)),
        metrics_port=0,
    )
    pauses = Pauses()
    stopwatch = Stopwatch()
    reporter = Reporter(None, OWNER, "train")
    result = stage.run(config, StageContext(store=store, reporter=reporter, stop=Stop()))
    # The last save follows the last step, so the time of the steps does not include it.
    *between, _ = pauses.seconds
    print(
        json.dumps(
            {
                "steps": stopwatch.steps,
                "seconds": stopwatch.seconds - sum(between),
                "tokens": result.tokens,
                "save_seconds": pauses.seconds,
            }
        )
    )


def _base_model(store: Store, model: Path) -> str:
    with store.staging() as staging:
        shutil.copytree(model, staging, dirs_exist_ok=True)
        return store.publish("models", staging)


def _dataset(store: Store, workload: str, steps: int) -> str:
    with store.staging() as staging:
        rows = training_rows(workload, steps)
        (staging / SPLIT_FILES["train"]).write_text("".join(f"{row.to_line()}\n" for row in rows))
        return store.publish("datasets", staging)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
