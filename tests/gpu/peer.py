# SPDX-License-Identifier: Apache-2.0
"""python -m tests.gpu.peer MODEL ROWS TOKENS FOLDER CHECKPOINTING: LoRA with TRL's SFTTrainer.

Its best settings: Liger's kernels, packing without padding and FlashAttention where they are installed. The
tokens are those of `training.long_rows`. The last line of the output is JSON.
"""

import importlib.util
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.model.adapted_layers import linear_layers
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.tokens.encoding import RowEncoder
from tests.gpu.scene import excerpts, row_of


def main(model: str, rows: int, tokens: int, folder: str, checkpointing: bool) -> None:
    """Train one epoch, and print tokens per second after the first step, and peak memory."""
    encoder = RowEncoder(load_tokenizer(Path(model)))
    encoded = [
        encoder.encode(row_of(Method(type="LoRA"), text)) for text in itertools.islice(excerpts(tokens), rows)
    ]
    ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    flash = importlib.util.find_spec("flash_attn") is not None
    base = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.bfloat16,
        attn_implementation="flash_attention_2" if flash else "sdpa",
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
    )
    chosen = LoRA()
    settings: dict[str, Any] = {"packing": True, "padding_free": True} if flash else {}
    trainer = SFTTrainer(
        base,
        args=SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=8,
            learning_rate=1e-4,
            bf16=torch.cuda.is_available(),
            use_liger_kernel=importlib.util.find_spec("liger_kernel") is not None,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            max_length=tokens * 2,
            completion_only_loss=True,
            save_strategy="no",
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [row.input_ids for row in encoded],
                "completion_mask": [[int(label >= 0) for label in row.labels] for row in encoded],
            }
        ),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=chosen.r,
            lora_alpha=chosen.alpha,
            lora_dropout=chosen.dropout,
            target_modules=linear_layers(base),
        ),
    )
    trainer.train()
    read = sum(len(row.input_ids) for row in encoded) * (len(ends) - 1) / len(ends)
    print(
        json.dumps(
            {
                "tokens_per_second": read / (ends[-1] - ends[0]),
                "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
                "liger": importlib.util.find_spec("liger_kernel") is not None,
                "flash_attention": flash,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "True")
