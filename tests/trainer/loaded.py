# SPDX-License-Identifier: Apache-2.0
"""The imports of a trainer process and their caches, for the server that forks the processes of tests.

TRL is excluded: importing it changes transformers, and most runs do not need it.
"""

import os

# As in the image and in the command: PyTorch reads both while it loads. Spinning threads starve a machine
# that runs other processes, too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.llama import modeling_llama  # of the tiny model

from finetune_trainer.distributed import distributed_group
from finetune_trainer.entrypoint import process
from finetune_trainer.evaluate import stage as evaluate
from finetune_trainer.preflight import stage as preflight
from finetune_trainer.prepare import stage as prepare
from finetune_trainer.serve import app, engine, loading
from finetune_trainer.train import stage as train
from tests.trainer.onethread import use_one_thread

use_one_thread()
# It compiles hundreds of regular expressions at its first call.
get_checkpoint_conversion_mapping("llama")  # type: ignore[no-untyped-call]

__all__ = [
    "app",
    "distributed_group",
    "engine",
    "evaluate",
    "loading",
    "modeling_llama",
    "preflight",
    "prepare",
    "process",
    "train",
]
