# SPDX-License-Identifier: Apache-2.0
"""Run the documented commands that only read the cluster, on objects that the other tests create.

The marker above such a block is `run by tests/e2e/test_documented_commands.py`.
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml

from finetune_client.backend import Object
from finetune_client.transfer.pod import TRANSFER
from tests.docsblocks import blocks
from tests.e2e.pods import Keeper
from tests.e2e.team import Team

RUN: Final = {"NAME": "routing", "ticket-routing": "routing", "POD": "keeper"}
ENDPOINT: Final = {"NAME": "support"}
PAGES: Final[dict[str, dict[str, str]]] = {
    "conditions.md": RUN,
    "failures.md": RUN,
    "promotion.md": RUN,
    "results.md": RUN,
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
def test_the_documented_commands_work(
    page: str, team: Team, environment: dict[str, str], tmp_path: Path
) -> None:
    names = {**PAGES[page], "NAMESPACE": team.namespace, "team-a": team.namespace}
    selected = [block for block in blocks() if block.page.name == page and block.marker == MARKER]
    assert selected
    for block in selected:
        text = block.text
        for name, replacement in names.items():
            text = re.sub(rf"(?<![\w-]){name}(?![\w-])", replacement, text)
        text = re.sub(r"^finetune ", f"{sys.executable} -m finetune_client ", text, flags=re.MULTILINE)
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        is_empty = "grep" in text.splitlines()[-1] and done.returncode == 1
        assert done.returncode == 0 or is_empty, f"{text}\n{done.stderr}"
        assert not FAILURE.search(done.stderr), f"{text}\n{done.stderr}"


def test_an_upload_reaches_the_claim_of_the_store_and_comes_back(
    team: Team, keeper: Keeper, environment: dict[str, str], tmp_path: Path
) -> None:
    """Through `kubectl exec`, in a namespace that enforces the level `restricted`."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "where", "completion": "here"}\n' * 50_000)
    arguments = ("upload", str(rows), "--to=pvc://artifacts", f"--namespace={team.namespace}")
    uris = [program(environment, tmp_path, *arguments) for _ in range(2)]
    assert uris[0] == uris[1]
    path = uris[0].strip().removeprefix("uri: pvc://artifacts/")
    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    assert path.startswith(f"uploads/{digest}/")
    assert keeper.run(f"sha256sum /store/{path}").split()[0] == digest
    keeper.run(f"rm -r /store/uploads/{digest}")

    program(environment, tmp_path, "download", "routing", "results", f"--namespace={team.namespace}")
    found = {file.name for file in (tmp_path / "results").rglob("*")}
    assert {"adapter_model.safetensors", "report.html", "evaluation.html", "predictions.jsonl"} <= found
    assert team.kubectl("get", "pods", f"--selector={TRANSFER}", "--output=name") == ""


def program(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    """Output of a verb of `finetune`."""
    done = subprocess.run(
        [sys.executable, "-m", "finetune_client", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
