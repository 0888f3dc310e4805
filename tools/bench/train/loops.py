# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.train.loops [STEPS] [ROUNDS]: compare transformers' Trainer with a plain torch loop.

Both train the tiny model on the same batches with the same loss, in alternation in one process, without saves
and callbacks. The difference is the overhead of the Trainer per step. See decision 24.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import set_seed

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import Method, MethodType
from finetune_trainer.distributed.process_group import ALONE
from finetune_trainer.model.completion_loss import completion_loss
from finetune_trainer.model.device import choose_device
from finetune_trainer.tokens.batching import pack, row_lengths, token_count
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow, RowEncoder
from finetune_trainer.train.batches import RowLimit, Steps
from finetune_trainer.train.collation import probe_head
from finetune_trainer.train.model_setup import Trainable, trainable_model
from finetune_trainer.train.trainer import MAX_GRADIENT_NORM, CompletionTrainer, StepSums
from tools.bench.train.workload import hyperparameters, training_rows
from tools.models import tiny

METHODS: Final[tuple[MethodType, ...]] = ("LoRA", "Full")

Train = Callable[[Trainable, Sequence[EncodedRow], Hyperparameters], None]


def with_trainer(model: Trainable, rows: Sequence[EncodedRow], chosen: Hyperparameters) -> None:
    """Train with the product's trainer."""
    with TemporaryDirectory() as folder:
        division = RowLimit(None)
        CompletionTrainer(
            model, rows, pack, chosen, Path(folder), division=division, device=model.device
        ).train()


def with_loop(model: Trainable, rows: Sequence[EncodedRow], chosen: Hyperparameters) -> None:
    """Train with a loop; order, loss, clipping, optimizer and schedule equal those of the Trainer."""
    set_seed(chosen.seed)
    head, sums = probe_head(model, rows), StepSums(model.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=chosen.learning_rate, weight_decay=0, fused=True)
    total, warm = chosen.total_steps, math.ceil(chosen.total_steps * chosen.warmup_ratio)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / warm if step < warm else (total - step) / max(1, total - warm)
    )
    steps = Steps(row_lengths(rows), chosen.batch_size, RowLimit(None), chosen.seed, ALONE)
    for epoch in range(chosen.epochs):
        steps.set_epoch(epoch)
        torch.empty((), dtype=torch.int64).random_()  # as a DataLoader does at the start of an epoch
        for (numbers,) in steps:
            model.train()
            batch = pack([rows[number] for number in numbers])
            labels = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            loss_sum, counted = completion_loss(model, inputs, head)
            sums.add(loss_sum, counted, token_count(inputs))
            (loss_sum / labels).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


WAYS: Final[dict[str, Train]] = {"Trainer": with_trainer, "loop": with_loop}


@contextmanager
def step_ends() -> Iterator[list[float]]:
    """End times of the optimizer steps in the block, in seconds."""
    ends: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        yield ends
    finally:
        hook.remove()


def main(steps: int = 200, rounds: int = 6) -> None:
    """Print the steps per second of both, and whether their final weights are equal."""
    device = choose_device()
    torch.set_num_threads(1)
    encoder = RowEncoder(load_tokenizer(tiny()))
    rows = [encoder.encode(row) for row in training_rows("ticket-routing", steps)]
    chosen = hyperparameters(steps, save_every_steps=steps)
    for method in METHODS:
        rates: dict[str, list[float]] = {name: [] for name in WAYS}
        ended: dict[str, list[torch.Tensor]] = {}
        for turn in range(rounds + 1):
            for name, train in WAYS.items():
                set_seed(chosen.seed)
                model = trainable_model(tiny(), Method(type=method), device)
                with step_ends() as ends:
                    train(model, rows, chosen)
                if turn > 0:  # the first round warms up
                    rates[name].append((len(ends) - 1) / (ends[-1] - ends[0]))
                ended[name] = [parameter.detach() for parameter in model.parameters()]
        same = all(torch.equal(one, other) for one, other in zip(*ended.values(), strict=True))
        ratios = [loop / trainer for trainer, loop in zip(*rates.values(), strict=True)]
        print(
            f"{method}: Trainer {median(rates['Trainer']):.1f} steps/s, loop {median(rates['loop']):.1f};"
            f" loop / Trainer {median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds);"
            f" weights {'bitwise equal' if same else 'differ'}"
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
