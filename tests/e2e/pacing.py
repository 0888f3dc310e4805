# SPDX-License-Identifier: Apache-2.0
"""A run whose training lasts as long as a test wants: its pods get little processor time until then."""

import json
from typing import Final

from finetune_client.backend import Object
from tests.e2e.team import Team, name_of

RESUMED: Final = "resuming after step"
SAVED: Final = "saved the state after step"
STEPS: Final = 900
LONG: Final = {
    "hyperparameters": {"epochs": STEPS // 3, "learningRate": 0.01},
    "checkpoints": {"stateEverySteps": 10},
    "method": {"type": "LoRA", "lora": {"r": 8, "alpha": 16, "dropout": 0.1}},
}
FAST: Final = {"requests": {"cpu": "200m"}, "limits": {"cpu": "2"}}
SLOW: Final = {"requests": {"cpu": "20m"}, "limits": {"cpu": "40m"}}
"""Processor time of a training pod, with which all steps take many minutes."""


def pace(team: Team, pod: Object, once_logged: str, resources: Object) -> str:
    """Wait until the pod logs this text, resize the pod, and return the line."""
    line = team.until_logged(pod, once_logged)
    resize(team, pod, resources)
    return line


def resize(team: Team, pod: Object, resources: Object) -> None:
    """Change the processor limit of a pod's containers without a restart."""
    containers = [{"name": each["name"], "resources": resources} for each in pod["spec"]["containers"]]
    patch = f"--patch={json.dumps({'spec': {'containers': containers}})}"
    team.kubectl("patch", "pod", name_of(pod), "--subresource=resize", patch)
