# SPDX-License-Identifier: Apache-2.0
"""Settings for the tests with programs of peers."""

import os

# As in the image. PyTorch reads it while loading. Spinning threads starve a machine with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
