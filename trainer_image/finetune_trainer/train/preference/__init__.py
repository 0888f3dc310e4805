"""DPO, KTO and ORPO: TRL computes the loss; rows, tokens, figures and resume states are ours."""

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # It warns of its own ORPO, as it is imported.
