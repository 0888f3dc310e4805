# SPDX-License-Identifier: Apache-2.0
"""python -m tests.gpu.peer TASK: LoRA with TRL's SFTTrainer, for the `PeerTask` in JSON.

Its best settings: Liger's kernels, packing without padding and FlashAttention where they are installed. The
last line of the output is JSON.
"""

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.model.adapted_layers import linear_layers
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.tokens.encoding import RowEncoder
from tests.gpu.measured import read_times, seconds_per_step
from tests.gpu.scene import PeerTask, excerpts, row_of
from tests.gpu.stage_process import record_step_times


def main(task: PeerTask) -> None:
    """Train one epoch, and print tokens per second after the warm-up, and peak memory."""
    encoder = RowEncoder(load_tokenizer(Path(task.model)))
    texts = itertools.islice(excerpts(task.longest, task.shortest), task.rows)
    encoded = [encoder.encode(row_of(Method(type="LoRA"), text)) for text in texts]
    times = Path(task.folder) / "times"
    times.parent.mkdir(parents=True, exist_ok=True)
    record_step_times(times)
    flash = importlib.util.find_spec("flash_attn") is not None
    liger = torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None
    base = AutoModelForCausalLM.from_pretrained(
        task.model,
        dtype=torch.bfloat16,
        attn_implementation="flash_attention_2" if flash else "sdpa",
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
    )
    chosen = LoRA()
    settings: dict[str, Any] = {"packing": True, "padding_free": True} if flash else {}
    trainer = SFTTrainer(
        base,
        args=SFTConfig(
            output_dir=task.folder,
            num_train_epochs=1,
            per_device_train_batch_size=task.rows_at_once,
            gradient_accumulation_steps=math.ceil(task.rows_per_step / task.rows_at_once),
            learning_rate=1e-4,
            bf16=torch.cuda.is_available(),
            use_liger_kernel=liger,
            gradient_checkpointing=task.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            max_length=task.longest * 2,
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
        processing_class=AutoTokenizer.from_pretrained(task.model),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=chosen.r,
            lora_alpha=chosen.alpha,
            lora_dropout=chosen.dropout,
            target_modules=linear_layers(base),
        ),
    )
    trainer.train()
    ends = read_times(times)
    tokens_per_step = sum(len(row.input_ids) for row in encoded) / len(ends)
    print(
        json.dumps(
            {
                "tokens_per_second": tokens_per_step / seconds_per_step(ends),
                "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
                "rows_at_once": task.rows_at_once,
                "liger": liger,
                "flash_attention": flash,
            }
        )
    )


if __name__ == "__main__":
    main(PeerTask(**json.loads(sys.argv[1])))
