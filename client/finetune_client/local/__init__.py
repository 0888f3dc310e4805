# SPDX-License-Identifier: Apache-2.0
"""Runs without a cluster: the operator's reconcilers over objects in a folder, and pods as processes."""

from pathlib import Path
from typing import Final, Literal

ROOT: Final = Path(".finetune")
"""Folder of local runs, in the working directory."""
Until = Literal["prepare", "preflight", "train", "evaluate"]
"""Stages that can be the last one of a program."""
