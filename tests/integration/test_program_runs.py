# SPDX-License-Identifier: Apache-2.0
"""The verbs that follow runs, as in docs/program.md, on a real API server with an operator and fake pods."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from finetune_client import Client
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.program import main
from finetune_trainer.contract.configs import EvaluateConfig, StageConfig
from finetune_trainer.contract.results import StageResult
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.operators import Operators
from tools.cluster import ControlPlane
from tools.fakepods import succeeded

ESCAPES = "\x1b[31mred\x1b]0;owned\x07 [bold]markup[/] [link=http://x]y[/link]"


class Program:
    """`finetune` as a user of the test's namespace runs it."""

    def __init__(self, kubeconfig: Path, namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._options = [f"--kubeconfig={kubeconfig}", "--namespace", namespace]
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, line: str, *, code: int = 0) -> str:
        """Run one command line, expect its exit code, and return what it printed."""
        with pytest.raises(SystemExit) as end:
            main([*shlex.split(line), *self._options])
        self.out, self.err = self._capsys.readouterr()
        assert (end.value.code or 0) == code, self.out + self.err
        return self.out


@pytest.fixture
def program(control_plane: ControlPlane, namespace: str, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(control_plane.client("user"), namespace, capsys)


@pytest.fixture
def file(namespace: str, tmp_path: Path) -> Path:
    """A Dataset and a run that uses it, the run first and without namespaces."""
    objects = [manifests.finetunejob(namespace), manifests.dataset(namespace)]
    for each in objects:
        each["metadata"].pop("namespace")
    path = tmp_path / "finetune.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    return path


def suspended(namespace: str, name: str) -> Object:
    return manifests.finetunejob(namespace, name, suspend=True)


def test_a_submitted_run_is_followed_to_its_promotion(
    program: Program, file: Path, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operators.start().wait_active()
    shown = program(f"submit --wait {file}")
    assert shown.index("Dataset tickets applied") < shown.index(
        "FineTuneJob routing applied: waits for a version of Dataset tickets"
    )
    assert "FineTuneJob routing is promoted" in shown
    assert "✔ evaluate" in shown
    assert program("wait routing").startswith("FineTuneJob routing is promoted")
    assert program("wait routing --for trained").startswith("FineTuneJob routing is trained")
    assert "routing" in program("ls").splitlines()[1]


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Callable[[StageConfig], StageResult | None]:
    """Evaluations whose scores miss the gates, where a test asks for it."""
    worst = getattr(request, "param", None)

    def result(config: StageConfig) -> StageResult | None:
        found = succeeded(config)
        if worst and isinstance(config, EvaluateConfig) and found.evaluate is not None:
            scores = tuple(each.model_copy(update={"value": 0.1}) for each in found.evaluate.scores)
            evaluated = found.evaluate.model_copy(update={"scores": scores})
            return found.model_copy(update={"evaluate": evaluated})
        return found

    return result


@pytest.mark.parametrize("outcome", ["worst"], indirect=True)
def test_a_run_that_misses_its_gates_ends_the_wait_with_their_exit_code(
    program: Program, file: Path, operators: Operators, kubelet: FakeKubelet
) -> None:
    operators.start().wait_active()
    program(f"submit {file}")
    program("wait routing", code=ProgramExit.GATES_FAILED)
    assert "FineTuneJob routing ended with GateFailed: " in program.err
    assert "is not promoted: exact_match 0.1 < 0.8" in program.err


def test_a_wait_ends_in_time_and_names_a_missing_run(program: Program, api: Api, namespace: str) -> None:
    api.create(suspended(namespace, "slow"))
    program("wait slow --timeout 0.2s", code=ProgramExit.TIMED_OUT)
    assert "FineTuneJob slow is not promoted after 0.2 s" in program.err
    program("wait absent", code=ProgramExit.INVALID)
    assert f"FineTuneJob absent does not exist in namespace {namespace}" in program.err


def test_runs_are_listed_in_pages_by_label_and_in_the_formats_of_kubectl(
    program: Program, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_client.cluster.PAGE_ROWS", 2)
    for name in ("a", "b", "c"):
        run = suspended(namespace, name)
        run["metadata"]["labels"] = {"team": "x" if name == "b" else "y"}
        api.create(run)
    assert [line.split()[0] for line in program("ls").splitlines()] == ["NAME", "a", "b", "c"]
    assert program("ls -l team=x -o name").split() == ["finetunejob.finetune.dev/b"]
    assert "PREDICTED" in program("ls -o wide").splitlines()[0]
    assert [item["metadata"]["name"] for item in json.loads(program("ls -o json"))["items"]] == [
        "a",
        "b",
        "c",
    ]
    assert yaml.safe_load(program("ls -o yaml"))["items"][1]["metadata"]["name"] == "b"


def test_a_field_that_the_definitions_would_drop_is_refused_by_name(
    program: Program, file: Path, api: Api, namespace: str
) -> None:
    run, rows = yaml.safe_load_all(file.read_text())
    run["spec"]["ofTomorrow"] = 1
    file.write_text(yaml.safe_dump_all([run, rows]))
    program(f"submit {file}", code=ProgramExit.INVALID)
    assert "FineTuneJob routing: the definitions of the cluster have no" in program.err
    assert "spec.ofTomorrow" in program.err
    assert api.get("FineTuneJob", namespace, "routing") is None


def test_texts_of_a_status_do_not_control_the_terminal(program: Program, api: Api, namespace: str) -> None:
    api.create(suspended(namespace, "evil"))
    condition = {
        "type": "Stalled", "status": "True", "reason": "Evil", "message": ESCAPES,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    status = {"phase": "Failed", "display": {"progress": ESCAPES}, "conditions": [condition]}
    api.patch("FineTuneJob", namespace, "evil", {"status": status}, "status")
    for line, code in (("ls", 0), ("watch evil", 5), ("wait evil", 5), ("logs evil", 0)):
        program(line, code=code)
        printed = program.out + program.err
        assert "\x1b" not in printed
        assert "\x07" not in printed
        assert "[bold]markup[/] [link=http://x]y[/link]" in printed


def test_a_client_in_python_reads_and_cancels_a_run(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    client = Client(namespace, kubeconfig=control_plane.client("user"))
    [run] = client.submit([manifests.dataset(namespace), suspended(namespace, "mine")])
    assert [each.name for each in client.runs("ticket-routing")] == ["mine"]
    assert client.runs("other") == []
    assert (run.scores(), run.loss_curve(), run.progress) == ((), (), None)
    run.cancel()
    assert client.run("mine").job.spec.cancel is True
    with pytest.raises(OperationError, match="not promoted after"):
        run.wait("promoted", timeout=0.1)
