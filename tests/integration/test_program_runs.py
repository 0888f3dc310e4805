# SPDX-License-Identifier: Apache-2.0
"""The verbs that follow runs, as in docs/program.md, on a real API server with an operator and fake pods."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from finetune_client import Client
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.program import main
from finetune_operator.api.compute_profile import DEFAULT_PROFILE_LABEL
from finetune_trainer.contract.configs import EvaluateConfig, StageConfig
from finetune_trainer.contract.results import StageResult
from tests.docsblocks import ROOT, assert_prints, transcript
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


@pytest.mark.usefixtures("kubelet")
def test_a_submitted_run_is_followed_to_its_promotion(
    program: Program, file: Path, namespace: str, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators.start().wait_active()
    monkeypatch.chdir(file.parent)
    steps = list(transcript("docs/program.md", f"run by {Path(__file__).relative_to(ROOT)}"))
    assert [command.split()[1] for command, _ in steps] == ["submit", "wait"]
    for command, lines in steps:
        output = program(command.removeprefix("finetune "))
        assert_prints(command, output.replace(namespace, "team-a"), lines)
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


ROWS = "message,team\nMy bill is wrong,billing\nWhere is my parcel?,delivery\n"


@pytest.fixture
def default_profile(api: Api, namespace: str, kubelet: FakeKubelet) -> Iterator[None]:
    """The profile of the test's namespace is the default of the cluster."""
    name = manifests.profile_name(namespace)
    mark = {"metadata": {"annotations": {DEFAULT_PROFILE_LABEL: "true"}}}
    api.patch("ComputeProfile", "", name, mark)
    api.patch("ComputeProfile", "", name, {"spec": {"store": {"uri": "pvc://artifacts"}}})
    yield
    api.patch("ComputeProfile", "", name, {"metadata": {"annotations": {DEFAULT_PROFILE_LABEL: None}}})


@pytest.mark.usefixtures("default_profile")
def test_rows_become_an_endpoint_in_the_cluster_by_one_command(
    program: Program, tmp_path: Path, api: Api, namespace: str, operators: Operators
) -> None:
    operators.start().wait_active()
    rows = tmp_path / "tickets.csv"
    rows.write_text(ROWS)
    line = f"run --cluster {rows} --model pvc://models/tiny --gate 'exact_match >= 0.8'"

    shown = program(line)

    (configmap,) = [each for each in api.list("ConfigMap", namespace) if each.get("immutable")]
    name = configmap["metadata"]["name"]
    assert configmap["data"] == {"tickets.csv": ROWS}
    dataset, _, endpoint = yaml.safe_load_all((tmp_path / "tickets.yaml").read_text())
    assert dataset["spec"]["sources"][0] == {
        "uri": f"configmap://{name}/tickets.csv",
        "columns": {"prompt": "message", "completion": "team"},
    }
    assert "columns guessed by their names: prompt = message, completion = team" in shown
    assert "FineTuneJob tickets is promoted" in shown
    assert "exact_match" in shown[shown.index("is promoted") :]
    assert f"InferenceDeployment tickets serves: finetune chat tickets -n {namespace}" in shown
    before = api.get("FineTuneJob", namespace, "tickets")

    again = program(line)

    assert "kept " in again
    assert "FineTuneJob tickets is promoted" in again
    after = api.get("FineTuneJob", namespace, "tickets")
    assert before is not None
    assert after is not None
    assert before["spec"] == after["spec"]
    assert before["metadata"]["uid"] == after["metadata"]["uid"]
    assert endpoint["spec"]["models"] == [{"name": "tickets", "follow": {"modelLine": "tickets"}}]


@pytest.mark.parametrize("outcome", ["worst"], indirect=True)
def test_a_run_in_the_cluster_that_misses_its_gates_is_reported_with_the_exit_code_of_wait(
    program: Program, file: Path, tmp_path: Path, operators: Operators, kubelet: FakeKubelet
) -> None:
    operators.start().wait_active()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')

    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "artifacts"}}
    file.write_text(f"{file.read_text()}---\n{yaml.safe_dump(claim)}")

    shown = program(
        f"run --cluster {file} --configmap tickets={tmp_path / 'rows'}", code=ProgramExit.GATES_FAILED
    )

    assert "PersistentVolumeClaim artifacts is not applied: use kubectl" in shown
    assert "ConfigMap tickets applied" in shown
    assert "exact_match" in shown
    assert "is not promoted: exact_match 0.1 < 0.8" in program.err


def test_rows_that_a_run_in_the_cluster_would_not_find_are_named_before_anything_is_applied(
    program: Program, file: Path, api: Api, namespace: str
) -> None:
    program(f"run --cluster {file}", code=ProgramExit.INVALID)
    assert f"configmap://tickets: namespace {namespace} has no ConfigMap tickets" in program.err
    assert "--configmap tickets=FOLDER" in program.err
    assert api.list("Dataset", namespace) == []


def test_all_objects_that_the_cluster_refuses_are_named_and_none_is_applied(
    program: Program, file: Path, tmp_path: Path, api: Api, namespace: str
) -> None:
    for name in ("routing", "again"):
        api.create(suspended(namespace, name))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    run, rows = yaml.safe_load_all(file.read_text())
    run["spec"]["modelLine"] = "another"
    again = {**run, "metadata": {"name": "again"}}
    file.write_text(yaml.safe_dump_all([rows, run, again]))

    program(f"run --cluster {file} --configmap tickets={tmp_path}", code=ProgramExit.INVALID)

    assert "the API server refuses 2 objects, and nothing was applied" in program.err
    assert "FineTuneJob routing: " in program.err
    assert "FineTuneJob again: " in program.err
    assert api.list("Dataset", namespace) == []
    assert api.get("ConfigMap", namespace, "tickets") is None


def test_an_invalid_file_is_refused_with_its_line_as_by_validate(program: Program, file: Path) -> None:
    text = file.read_text().replace("modelLine:", "modelLin:")
    file.write_text(text)
    line = text[: text.index("modelLin:")].count("\n") + 1

    program(f"run --cluster {file}", code=ProgramExit.INVALID)

    assert "the files are not valid" in program.err
    assert f"{file}:{line}: FineTuneJob/routing: spec.modelLin: unknown field; did you mean" in program.err
