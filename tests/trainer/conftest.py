"""Settings of all tests of the trainer."""

import os

# As in the image; read when PyTorch is loaded. Spinning threads starve a machine that runs other things too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
