# SPDX-License-Identifier: Apache-2.0
"""Run the command of docs/ownership.md that removes old runs."""

import os
import re
import subprocess
from pathlib import Path

from tests.integration import manifests
from tests.integration.api import Api, path_of
from tests.waiting import eventually
from tools.cluster import ControlPlane, program

PAGE = Path(__file__).parents[2] / "docs" / "ownership.md"
NAMESPACE = "team"
"""Namespace on the page."""
STATES = {"Ready": "Promoted", "Stalled": "GateFailed", "Reconciling": "Training", "Suspended": "Suspended"}


def command() -> str:
    (found,) = (
        block
        for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "head -n -" in block
    )
    return str(found)


def kept_by(text: str) -> int:
    return int(text.partition("head -n -")[2].split()[0])


def create_run(api: Api, name: str, state: str = "Ready") -> str:
    """Create a run in this state; returns its creation time."""
    made = api.create(manifests.finetunejob(NAMESPACE, name))
    condition = {
        "type": state,
        "status": "True",
        "reason": STATES[state],
        "message": "",
        "lastTransitionTime": "2030-01-01T00:00:00Z",
    }
    status = {"observedGeneration": 1, "conditions": [condition]}
    api.patch("FineTuneJob", NAMESPACE, name, {"status": status}, subresource="status")
    return str(made["metadata"]["creationTimestamp"])


def wait_until_later_than(api: Api, moment: str) -> None:
    """Wait until a new object would have a later creation time, which is in whole seconds."""
    path = f"{path_of('FineTuneJob', NAMESPACE)}?dryRun=All"
    trial = manifests.finetunejob(NAMESPACE, "trial")
    eventually(
        "another second",
        lambda: api.request("POST", path, trial).json()["metadata"]["creationTimestamp"] > moment,
    )


def names(api: Api) -> set[str]:
    return {each["metadata"]["name"] for each in api.list("FineTuneJob", NAMESPACE)}


def test_the_documented_command_removes_the_oldest_runs_that_have_succeeded_and_no_other(
    api: Api, control_plane: ControlPlane, tmp_path: Path
) -> None:
    text = command()
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}}).raise_for_status()
    others = {state.lower() for state in STATES if state != "Ready"}
    for state in STATES:
        create_run(api, state.lower() if state != "Ready" else "oldest", state)
    wait_until_later_than(api, create_run(api, "older"))
    newest = {f"newest-{number}" for number in range(kept_by(text))}
    for name in newest:
        create_run(api, name)
    # Not reconciled yet: it has no conditions.
    api.create(manifests.finetunejob(NAMESPACE, "new"))

    kubectl = program("kubectl")
    environment = {
        "PATH": f"{kubectl.parent}:{os.environ['PATH']}",
        "KUBECONFIG": str(control_plane.kubeconfig),
        "HOME": str(tmp_path),
    }
    for _ in range(2):
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], env=environment, check=True)
        assert names(api) == newest | others | {"new"}
