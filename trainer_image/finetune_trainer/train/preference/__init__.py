"""DPO, KTO and ORPO: TRL computes the loss; rows, tokens, figures and resume states are our own."""

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # TRL warns about its experimental ORPO at import.
