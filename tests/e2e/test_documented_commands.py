# SPDX-License-Identifier: Apache-2.0
"""Run the documented commands that only read the cluster, on objects that the other tests create.

The marker above such a block is `run by tests/e2e/test_documented_commands.py`.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from finetune_client.backend import Object
from tests.docsblocks import blocks
from tests.e2e.pods import Keeper
from tests.e2e.team import Team

RUN: Final = {"NAME": "routing", "ticket-routing": "routing", "POD": "keeper"}
ENDPOINT: Final = {"NAME": "support"}
PAGES: Final[dict[str, dict[str, str]]] = {
    "conditions.md": RUN,
    "failures.md": RUN,
    "promotion.md": RUN,
    "troubleshooting.md": RUN,
    "FineTuneBlocked.md": RUN,
    "FineTuneBudgetExhausted.md": RUN,
    "FineTuneBudgetNearlyExhausted.md": RUN,
    "FineTuneCheckpointStale.md": RUN,
    "FineTuneEndpointErrors.md": ENDPOINT,
    "FineTuneEndpointOverloaded.md": ENDPOINT,
    "FineTuneEndpointWithoutModel.md": ENDPOINT,
    "FineTuneJobStuck.md": RUN,
    "FineTuneOperatorInactive.md": RUN,
    "FineTuneReportEndpointDown.md": RUN,
    "FineTuneRevisionSlower.md": ENDPOINT,
    "FineTuneRolloutRolledBack.md": ENDPOINT,
    "FineTuneRolloutWithoutCapacity.md": ENDPOINT,
    "FineTuneRouteNotAccepted.md": ENDPOINT,
    "FineTuneDeviceTimeLost.md": RUN,
    "FineTuneSeriesDropped.md": RUN,
    "FineTuneStagesFailing.md": RUN,
    "FineTuneStorageUnavailable.md": RUN,
    "FineTuneWatchStale.md": RUN,
}
"""Names on a page, and the names of objects that replace them."""
MARKER: Final = "run by tests/e2e/test_documented_commands.py"
FAILURE: Final = re.compile(r"^(?:error|Error|Unable|bash:)", re.MULTILINE)
"""Beginning of an error message of kubectl or bash."""


@pytest.fixture(scope="module")
def environment(
    team: Team, keeper: Keeper, routing: Object, support: Object, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Environment in which plain `kubectl` uses the team's namespace, where the named objects exist."""
    configuration = yaml.safe_load(team.kubectl("config", "view", "--raw", "--minify", "--flatten"))
    configuration["contexts"][0]["context"]["namespace"] = team.namespace
    folder = tmp_path_factory.mktemp("kubectl")
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(configuration))
    kubectl = Path(team.access.kubectl_command()[0])
    path = f"{kubectl.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "KUBECONFIG": str(kubeconfig), "HOME": str(folder)}


@pytest.mark.parametrize("page", PAGES)
def test_the_documented_commands_work(page: str, team: Team, environment: dict[str, str]) -> None:
    names = {**PAGES[page], "NAMESPACE": team.namespace}
    selected = [block for block in blocks() if block.page.name == page and block.marker == MARKER]
    assert selected
    for block in selected:
        text = block.text
        for name, replacement in names.items():
            text = re.sub(rf"(?<![\w-]){name}(?![\w-])", replacement, text)
        done = subprocess.run(
            ["bash", "-c", text], env=environment, capture_output=True, text=True, check=False
        )
        is_empty = "grep" in text.splitlines()[-1] and done.returncode == 1
        assert done.returncode == 0 or is_empty, f"{text}\n{done.stderr}"
        assert not FAILURE.search(done.stderr), f"{text}\n{done.stderr}"
