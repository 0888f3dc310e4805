# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.train.peer MODEL WORKLOAD STEPS FOLDER: the same training with TRL's SFTTrainer.

SFTTrainer gets the rows as token ids with a completion mask, and packs batches without padding, like the
trainer.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.model.adapted_layers import linear_layers
from finetune_trainer.model.device import choose_device
from finetune_trainer.model.loading import load_base
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.tokens.encoding import IGNORE_INDEX, RowEncoder
from finetune_trainer.train.trainer import training_arguments
from tools.bench.train.workload import LORA, ROWS_PER_STEP, Stopwatch, hyperparameters, training_rows


def main(folder: Path, workload: str, steps: int, output: Path) -> None:
    """Train, and print steps, seconds and tokens."""
    device = choose_device()
    chosen = hyperparameters(steps, save_every_steps=steps)
    tokenizer = load_tokenizer(folder)
    encoder = RowEncoder(tokenizer)
    rows = [
        encoder.encode(row).truncate(chosen.max_sequence_length) for row in training_rows(workload, steps)
    ]
    model = load_base(folder, None, device)
    trainer = SFTTrainer(
        model,
        args=training_arguments(
            SFTConfig,
            chosen,
            device,
            output,
            per_device_train_batch_size=ROWS_PER_STEP,
            max_length=None,  # the rows are cut already
            completion_only_loss=True,
            padding_free=True,
        ),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [row.input_ids for row in rows],
                "completion_mask": [[int(label != IGNORE_INDEX) for label in row.labels] for row in rows],
            }
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=LORA.r,
            lora_alpha=LORA.alpha,
            lora_dropout=LORA.dropout,
            target_modules=linear_layers(model),
        ),
    )
    stopwatch = Stopwatch()
    trainer.train()
    tokens = sum(len(row.input_ids) for row in rows)
    print(json.dumps({"steps": stopwatch.steps, "seconds": stopwatch.seconds, "tokens": tokens}))


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
