"""What a trainer process imports, for the server that the processes of tests are forked from.

TRL is left out: it changes transformers when it is imported, and most runs do without it.
"""

import os

# As in the image, and as the command does: both are read while PyTorch is loaded. Spinning threads starve a
# machine that runs other things too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from finetune_trainer.distributed import members
from finetune_trainer.entrypoint import cli
from finetune_trainer.evaluate import stage as evaluate
from finetune_trainer.preflight import stage as preflight
from finetune_trainer.prepare import stage as prepare
from finetune_trainer.serve import app, engine, loading
from finetune_trainer.train import stage as train

__all__ = ["app", "cli", "engine", "evaluate", "loading", "members", "preflight", "prepare", "train"]
