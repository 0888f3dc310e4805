# SPDX-License-Identifier: Apache-2.0
"""`Client` and `Run`: how a notebook shows them, and local runs that work while Python waits."""

import warnings
from pathlib import Path

import pytest

from finetune_client import Client, OperationError
from finetune_client.errors import ProgramExit
from finetune_client.local import worker
from finetune_client.local.persistence import Folder
from tests.unit.client.decidedobjects import MemoryBackend, run_after
from tests.unit.client.localprocesses import EXAMPLE, STAGES, Machine, score_badly

HOSTILE = "<script>alert(1)</script>"


def test_a_notebook_shows_a_run_with_its_scores_and_every_text_is_escaped() -> None:
    job = run_after("run-ends-promoted")
    for condition in job["status"]["conditions"]:
        condition["message"] = HOSTILE
    client = Client(backend=MemoryBackend(job))
    run = client.run(job["metadata"]["name"])
    shown = run._repr_html_()
    assert f"<b>FineTuneJob {run.name}</b>" in shown
    assert shown.count("<tr>") == len(run.scores()) + 1
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert run.name in client.compare(run.name, run.name)._repr_mimebundle_([], [])["text/html"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path, monkeypatch)
    monkeypatch.setattr(worker, "Session", machine._session)
    models = tmp_path / ".finetune" / "claims" / "models"
    models.parent.mkdir(parents=True)
    (tmp_path / "models").rename(models)
    return machine


def submitted(machine: Machine) -> Client:
    client = Client(local=machine.folder / ".finetune")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.submit(EXAMPLE)
    return client


def test_a_wait_carries_out_a_local_run_once(machine: Machine) -> None:
    client = submitted(machine)
    assert machine.stages == []
    (run,) = client.runs()
    assert "is promoted" in run.wait().message
    assert machine.stages == STAGES
    assert submitted(machine).run(run.name).wait().exit_code is ProgramExit.DONE
    assert machine.stages == STAGES


def test_a_wait_ends_with_the_exit_code_of_the_run(machine: Machine) -> None:
    machine.outcomes["evaluate"] = [score_badly]
    (run,) = submitted(machine).runs()
    with pytest.raises(OperationError) as ended:
        run.wait()
    assert ended.value.exit_code is ProgramExit.GATES_FAILED


def test_a_wait_polls_while_another_program_works(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = submitted(machine).runs()
    slept: list[float] = []
    with Folder(machine.folder / ".finetune").locked():
        monkeypatch.setattr("finetune_client.client.time.sleep", slept.append)
        with pytest.raises(OperationError, match=r"is not promoted after 0\.2 s") as ended:
            run.wait(timeout=0.2)
    assert ended.value.exit_code is ProgramExit.TIMED_OUT
    assert slept
    assert machine.stages == []


def test_a_local_endpoint_serves_during_the_block(machine: Machine) -> None:
    client = submitted(machine)
    client.runs()[0].wait()
    with client.openai("ticket-routing") as openai:
        assert str(openai.base_url).startswith("http://127.0.0.1:")
    assert machine.started[-1].signals == ["SIGTERM"]
    with pytest.raises(OperationError, match="InferenceDeployment nope does not exist"):
        client.openai("nope").__enter__()


def test_rows_and_models_that_are_missing_are_named(machine: Machine) -> None:
    client = Client(local=machine.folder / ".finetune")
    dataset = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": "rows"},
        "spec": {"sources": [{"uri": "configmap://rows/rows.csv"}]},
    }
    with pytest.raises(OperationError, match=r"configmap://rows: .*name them pvc://artifacts/"):
        client.submit([dataset])
    dataset["spec"] = {"sources": [{"uri": "pvc://other/rows.csv"}]}
    with pytest.raises(OperationError, match=r"pvc://other: folder .*/claims/other does not exist"):
        client.submit([dataset])
