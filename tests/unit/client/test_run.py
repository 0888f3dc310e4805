# SPDX-License-Identifier: Apache-2.0
"""`finetune run` with containers that end as a test says: exit codes, interruptions, and what is refused."""

import fcntl
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_client.client import read_manifests
from finetune_client.errors import ProgramExit
from finetune_client.local import backend, machine_checks, profile
from finetune_client.local.backend import LocalBackend
from finetune_client.local.kubelet import free_port
from finetune_client.local.persistence import Folder
from finetune_client.local.session import Session
from finetune_client.program import main
from finetune_trainer.contract.environment import SERVE_PORT
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from tests.unit.client.localprocesses import (
    EXAMPLE,
    FILES,
    STAGES,
    FakeProcess,
    Killed,
    Machine,
    Outcome,
    fail,
    score_badly,
    succeed,
)

DEADLINE_SECONDS = 60.0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_run_is_promoted_and_a_second_call_trains_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.run("--no-serve") == ProgramExit.DONE
    assert machine.stages == STAGES
    printed = capsys.readouterr().out
    assert "exact_match 1" in printed
    assert "FineTuneJob ticket-routing: Promoted" in printed

    assert machine.run("--no-serve") == ProgramExit.DONE
    assert machine.stages == STAGES


def test_each_container_sees_folders_in_place_of_its_mounts(machine: Machine) -> None:
    machine.run("--no-serve")
    prepare, preflight = machine.started[:2]
    text = prepare.launch.config.read_text() + preflight.launch.config.read_text()
    assert "/mnt/" not in text
    config = json.loads(preflight.launch.config.read_text())
    assert config["baseModelPath"] == str(machine.folder / "models" / "gemma-3-270m")
    assert config["store"]["path"] == str(machine.folder / ".finetune" / "claims" / "artifacts")


def changed_example(machine: Machine, change: Callable[[dict[str, Any]], None]) -> tuple[str, str]:
    """The files of the example without its endpoint, with a changed spec of the run, in the folder."""
    for name in ("kustomization.yaml", "dataset.yaml"):
        shutil.copy(EXAMPLE / name, machine.folder)
    shutil.copytree(EXAMPLE / "data", machine.folder / "data")
    manifest = yaml.safe_load((EXAMPLE / "finetunejob.yaml").read_text())
    change(manifest["spec"])
    (machine.folder / "finetunejob.yaml").write_text(yaml.safe_dump(manifest))
    return "dataset.yaml", "finetunejob.yaml"


def test_a_text_that_begins_with_a_mount_path_is_not_changed(machine: Machine) -> None:
    text = "/mnt/store/teams.md has the rules: name the team that must handle the message."

    def change(spec: dict[str, Any]) -> None:
        spec["evaluation"]["prompted"]["systemPrompt"] = text

    machine.run("--no-serve", files=changed_example(machine, change))

    config = json.loads(machine.started[-1].launch.config.read_text())
    assert (config["stage"], config["prompted"]["systemPrompt"]) == ("evaluate", text)


def test_an_approval_and_a_rejection_are_effective_at_once(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["promotion"]["mode"] = "Manual"

    files = changed_example(machine, change)
    assert machine.run("--no-serve", files=files) == ProgramExit.DONE
    assert "AwaitingApproval" in capsys.readouterr().out

    def finetune(*arguments: str) -> None:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--local", ".finetune"])
        assert end.value.code == 0

    def promoted() -> tuple[str, str]:
        (checkpoint,) = LocalBackend().objects("Checkpoint")
        found = {each["type"]: each for each in checkpoint["status"]["conditions"]}["Promoted"]
        return found["status"], found["reason"]

    finetune("approve", "ticket-routing", "--reason", "read 50 answers")
    assert promoted() == ("True", "Promoted")
    finetune("wait", "ticket-routing", "--timeout", "1s")
    assert "is promoted" in capsys.readouterr().out
    finetune("reject", "ticket-routing", "--reason", "wrong team names")
    assert promoted() == ("False", "Rejected")
    assert machine.stages == STAGES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cluster", "--until", "preflight"), "--until: a run carries out all stages"),
        (("--cluster", "--secret", "a=."), "kubectl create secret generic NAME --from-file=FOLDER"),
        (("--cluster", "--claim", "models=."), "finetune upload FOLDER --to pvc://NAME"),
        (("--cluster", "--folder", "elsewhere"), "--claim, --folder: only for a run on this machine"),
        (("--namespace", "team"), "--namespace: a run on this machine has no cluster; add --cluster"),
    ],
)
def test_options_that_a_place_does_not_have_are_refused_with_what_it_has(
    machine: Machine, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.run(*options) == ProgramExit.INVALID
    assert message in capsys.readouterr().err
    assert machine.stages == []


def test_a_kustomization_that_changes_its_objects_is_left_to_kubectl(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    changed_example(machine, lambda _: None)
    kustomization = machine.folder / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text() + "namePrefix: a-\n")

    assert machine.run("--no-serve", files=(str(machine.folder),)) == ProgramExit.INVALID
    error = capsys.readouterr().err
    assert "does not carry out namePrefix of a kustomization" in error
    assert f"kubectl kustomize {machine.folder} > objects.yaml" in error


def test_failed_gates_have_an_exit_code_and_nothing_is_served(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.outcomes["evaluate"] = [score_badly]
    assert machine.run() == ProgramExit.GATES_FAILED
    assert machine.stages == STAGES
    assert "is not promoted" in capsys.readouterr().err


def test_bad_rows_name_their_log_and_mended_rows_continue(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "row 17 of tickets.jsonl has no field completion"
    machine.outcomes["prepare"] = [fail(FailureReason.INVALID_DATA, message, ExitCode.BAD_DATA)]
    assert machine.run("--no-serve") == ProgramExit.INVALID
    assert machine.stages == ["prepare"]
    errors = capsys.readouterr().err
    assert message in errors
    log = errors.partition("log: ")[2].strip()
    assert Path(log) == machine.started[0].launch.log

    assert machine.run("--no-serve") == ProgramExit.DONE
    assert machine.stages == ["prepare", *STAGES]


@pytest.mark.parametrize(
    ("codes", "pods", "exit_code"),
    [
        pytest.param([1], 2, ProgramExit.DONE, id="a crash is retried"),
        pytest.param([1] * 4, 4, ProgramExit.FAILED, id="backoffLimit ends the Job"),
        pytest.param([20] * 6, 7, ProgramExit.DONE, id="a saved preemption never counts"),
        pytest.param([137] * 3, 4, ProgramExit.DONE, id="a kill counts as a crash"),
        pytest.param([10], 1, ProgramExit.INVALID, id="a bad config fails at once"),
        pytest.param([12], 1, ProgramExit.FAILED, id="a lost store fails a stage with devices at once"),
    ],
)
def test_exit_codes_mean_what_they_mean_in_a_cluster(
    machine: Machine, codes: list[int], pods: int, exit_code: int
) -> None:
    machine.outcomes["train"] = [*codes]
    assert machine.run("--no-serve") == exit_code
    assert machine.stages.count("train") == pods


def interrupt_once(machine: Machine, stage: str) -> Callable[[Session], None]:
    def pause(session: Session) -> None:
        if machine.stages[-1:] == [stage] and not machine.started[-1].signals:
            session.interrupt()

    return pause


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_saves_and_the_same_command_continues(machine: Machine, stage: str) -> None:
    machine.held = {stage}
    machine.on_pause = interrupt_once(machine, stage)
    assert machine.run("--no-serve") == ProgramExit.INTERRUPTED
    assert machine.started[-1].signals == ["SIGTERM"]

    machine.held, machine.on_pause = set(), lambda _: None
    assert machine.run("--no-serve") == ProgramExit.DONE
    begun = STAGES[: STAGES.index(stage) + 1]
    assert machine.stages == [*begun, *STAGES[STAGES.index(stage) :]]


def test_a_second_ctrl_c_kills(machine: Machine) -> None:
    machine.held = {"train"}

    def pause(session: Session) -> None:
        if machine.stages[-1:] == ["train"]:
            machine.started[-1].at_sigterm = None
            session.interrupt()

    machine.on_pause = pause
    assert machine.run("--no-serve") == ProgramExit.INTERRUPTED
    assert machine.started[-1].signals == ["SIGTERM", "SIGKILL"]


def crash(machine: Machine, writes: int) -> bool:
    """Run a program that is killed before this write; returns whether it came so far."""
    with pytest.MonkeyPatch.context() as patch:
        machine.crash_after(writes).install(patch)
        try:
            machine.run("--no-serve")
        except Killed:
            return True
    return False


# A sample here; the full suite has each write.
@pytest.mark.parametrize("writes", [0, 3, 11, 23, 37])
def test_a_program_killed_between_two_writes_continues(machine: Machine, writes: int) -> None:
    assert crash(machine, writes)
    assert machine.run("--no-serve") == ProgramExit.DONE
    job = LocalBackend().get("FineTuneJob", "ticket-routing")
    assert job is not None
    assert job["status"]["evaluation"]["checkpoint"].startswith("ticket-routing-")
    assert len(LocalBackend().objects("Checkpoint")) == 1
    assert len(LocalBackend().objects("DatasetVersion")) == 1


@pytest.mark.full
def test_a_program_killed_before_any_write_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for writes in range(500):
        machine = Machine(tmp_path / str(writes), monkeypatch)
        was_killed = crash(machine, writes)
        assert machine.run("--no-serve") == ProgramExit.DONE
        if not was_killed:
            return
    raise AssertionError("the program never came to its end")


def test_a_second_program_in_the_same_folder_is_refused(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    with Folder(Path(".finetune")).locked():
        assert machine.run() == ProgramExit.INVALID
    assert "another `finetune run`" in capsys.readouterr().err
    assert machine.started == []


def test_the_endpoint_is_served_until_ctrl_c(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    urls: list[str | None] = []

    def pause(session: Session) -> None:
        if session.kubelet.serves and (url := session.url("ticket-routing")) is not None:
            urls.append(url)
            session.interrupt()

    machine.on_pause = pause
    assert machine.run() == ProgramExit.DONE
    assert machine.stages == [*STAGES, "fetch", "serve"]
    port = json.loads(machine.started[-1].launch.config.read_text())["port"]
    assert urls[0] == f"http://127.0.0.1:{port}/v1"
    assert f"serving ticket-routing at {urls[0]}" in capsys.readouterr().out
    assert machine.started[-1].signals == ["SIGTERM"]


def test_a_port_in_use_is_passed_over_and_named(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    def pause(session: Session) -> None:
        if session.kubelet.serves and session.url("ticket-routing") is not None:
            session.interrupt()

    machine.on_pause = pause
    with socket.socket() as taken:
        # Closed connections of an earlier server may wait there, which does not hold the port.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Another program of this machine may already listen there, which is as good.
        with suppress(OSError):
            taken.bind(("127.0.0.1", SERVE_PORT))
            taken.listen()
        assert free_port(SERVE_PORT) > SERVE_PORT
        assert machine.run() == ProgramExit.DONE

    said = capsys.readouterr().out
    assert re.search(r"at http://127\.0\.0\.1:80\d\d/v1   \(port 8000 is in use; Ctrl-C stops\)", said), said


@pytest.mark.parametrize(
    ("until", "stages"), [(stage, STAGES[: index + 1]) for index, stage in enumerate(STAGES)]
)
def test_until_ends_after_a_stage_and_the_command_without_it_continues(
    machine: Machine, until: str, stages: list[str]
) -> None:
    assert machine.run("--until", until) == ProgramExit.DONE
    assert machine.stages == stages
    assert machine.run("--no-serve") == ProgramExit.DONE
    assert machine.stages == STAGES


def test_preflight_says_what_another_machine_would_say(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    # As docs/local-runs.md shows.
    h100 = str(EXAMPLE.parent / "profiles" / "nvidia-h100.yaml")
    assert machine.run("--until", "preflight", "--profile", h100) == ProgramExit.DONE
    printed = capsys.readouterr().out
    assert "31 of 80 GiB" in printed
    assert "EUR" in printed


def changed(folder: Path, name: str, change: Callable[[dict[str, object]], None]) -> str:
    """A copy of a file of the example with a change, next to its kustomization."""
    target = folder / "changed"
    if not target.exists():
        shutil.copytree(EXAMPLE, target)
    manifest = yaml.safe_load((target / name).read_text())
    change(manifest["spec"])
    (target / name).write_text(yaml.safe_dump(manifest))
    return str(target / name)


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        pytest.param({"nodes": 2}, "compute.nodes is 2", id="several nodes"),
        pytest.param({"devices": 64}, "compute.devices is 64", id="more devices than there are"),
    ],
)
def test_what_one_machine_cannot_do_is_refused_by_name(
    machine: Machine, capsys: pytest.CaptureFixture[str], compute: dict[str, int], words: str
) -> None:
    job = changed(machine.folder, "finetunejob.yaml", lambda spec: spec.update(compute=compute))
    assert machine.run(files=(FILES[0], job)) == ProgramExit.INVALID
    errors = capsys.readouterr().err
    assert words in errors
    assert "--until preflight" in errors
    assert machine.started == []


def test_what_changes_no_verdict_is_ignored_by_name(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = changed(machine.folder, "inferencedeployment.yaml", lambda spec: spec.update(replicas=3))
    assert machine.run("--no-serve", files=(*FILES[:2], endpoint)) == ProgramExit.DONE
    assert "one process serves in place of 3 replicas" in capsys.readouterr().out


def test_a_run_that_names_a_profile_of_a_cluster_uses_this_machine(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    job = changed(machine.folder, "finetunejob.yaml", lambda spec: spec.update(compute={"profile": "h100"}))
    assert machine.run("--no-serve", files=(FILES[0], job)) == ProgramExit.DONE
    assert "compute.profile h100 is ignored" in capsys.readouterr().out


def test_a_profile_for_other_devices_or_another_engine_needs_until_preflight(
    machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "profile.yaml"
    for spec, words in (
        ({"accelerator": {"resource": "apple.com/mps"}}, "devices apple.com/mps"),
        ({"serving": {"engine": "VLLM"}, "images": {"engine": "vllm"}}, "the engine VLLM"),
    ):
        manifest = {"apiVersion": "finetune.dev/v1alpha1", "kind": "ComputeProfile"}
        path.write_text(yaml.safe_dump({**manifest, "metadata": {"name": "mine"}, "spec": spec}))
        assert machine.run("--profile", str(path)) == ProgramExit.INVALID
        assert words in capsys.readouterr().err
    assert machine.started == []


def test_a_finished_run_with_another_spec_needs_another_name(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.run("--no-serve") == ProgramExit.DONE
    job = changed(machine.folder, "finetunejob.yaml", lambda spec: spec.update(hyperparameters={"epochs": 9}))
    assert machine.run("--no-serve", files=(FILES[0], job)) == ProgramExit.INVALID
    assert "another hyperparameters" in capsys.readouterr().err


def test_a_missing_folder_names_the_option(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(machine.folder / "models")
    assert machine.run() == ProgramExit.INVALID
    assert "--claim" in capsys.readouterr().err
    (machine.folder / "models").mkdir()
    files = tuple(str(shutil.copy(file, machine.folder)) for file in FILES)
    assert machine.run(files=files) == ProgramExit.INVALID
    assert "--configmap ticket-rows=FOLDER" in capsys.readouterr().err


def test_a_model_larger_than_the_memory_is_refused_before_any_stage(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = profile.Machine(cores=2, memory_bytes=4)
    monkeypatch.setattr("finetune_client.verbs.local_run.this_machine", lambda: small)
    (machine.folder / "models" / "gemma-3-270m" / "model.safetensors").write_bytes(b"weights")
    assert machine.run() == ProgramExit.INVALID
    assert "needs 0.0 GiB of memory" in capsys.readouterr().err
    assert machine.started == []


def test_training_that_needs_more_memory_than_predicted_does_not_start(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = profile.Machine(cores=2, memory_bytes=1 << 29)
    monkeypatch.setattr("finetune_client.verbs.local_run.this_machine", lambda: small)
    assert machine.run() == ProgramExit.INVALID
    assert "training needs 1.0 GiB of memory, and this machine has 0.5 GiB" in capsys.readouterr().err
    assert "train" not in machine.stages


def test_without_torch_the_program_says_what_to_install(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: None if name == "torch" else name)
    assert machine.run() == ProgramExit.INVALID
    assert "finetune-operator[local]" in capsys.readouterr().err


def write_log(text: str) -> Outcome:
    """A container that logs something and succeeds."""

    def end(process: FakeProcess) -> int:
        process.launch.log.write_text(text)
        return succeed(process)

    return end


def test_logs_are_followed_across_stages_and_restarts_until_the_run_ends(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "FOLLOW_SECONDS", 0.0)
    machine.held = {"train"}
    machine.outcomes = {"evaluate": [write_log("evaluated\n")]}
    lines: list[str] = []
    is_shown = threading.Event()

    def follow() -> None:
        for line in LocalBackend().logs("ticket-routing", follow=True):
            lines.append(line.text)
            is_shown.set()

    with ThreadPoolExecutor(1) as pool:
        followed: list[Future[None]] = []

        def interrupt(_: Session) -> None:
            process = machine.started[-1] if machine.started else None
            if process is None or process.launch.stage != "train" or followed:
                return
            process.launch.log.write_text("step 1\nste")
            followed.append(pool.submit(follow))
            assert is_shown.wait(DEADLINE_SECONDS)
            process.launch.log.write_text("step 1\nstep 2\n")
            machine.held.clear()
            machine.outcomes["train"] = [write_log("resumed\n")]
            process.terminate()

        machine.on_pause = interrupt
        assert machine.run("--no-serve") == ProgramExit.DONE
        followed[0].result(DEADLINE_SECONDS)

    assert lines == ["step 1", "step 2", "resumed", "evaluated"]


def test_the_backend_reads_objects_logs_and_events_and_changes_objects(machine: Machine) -> None:
    machine.run("--no-serve")
    folder = LocalBackend()
    for process in machine.started:
        process.launch.log.write_text(f"log of {process.launch.stage}\n")
    assert [line.text for line in folder.logs("ticket-routing", "train")] == ["log of train"]
    assert [line.text for line in folder.logs("ticket-routing")] == [f"log of {each}" for each in STAGES[1:]]
    assert "Promoted" in {event["reason"] for event in folder.events()}
    changed = folder.patch("FineTuneJob", "ticket-routing", {"metadata": {"labels": {"team": "desk"}}})
    assert changed["metadata"]["labels"]["team"] == "desk"
    assert folder.get("FineTuneJob", "ticket-routing") == changed


def test_a_lock_of_an_ended_program_does_not_count(machine: Machine) -> None:
    Path(".finetune").mkdir()
    with Path(".finetune/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert machine.run("--no-serve") == ProgramExit.DONE


ROWS = "message,team\n" + "".join(f"Where is parcel {number}?,dispatch\n" for number in range(30))


def test_a_file_of_rows_becomes_yaml_that_runs_and_the_same_command_trains_nothing_again(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tickets.csv").write_text(ROWS)
    command = ("--model", "pvc://models/gemma-3-270m", "--gate", "exact_match >= 0.8", "--no-serve")
    assert machine.run(*command, files=("tickets.csv",)) == ProgramExit.DONE
    assert machine.stages == STAGES
    printed = capsys.readouterr().out
    assert "columns guessed by their names: prompt = message, completion = team" in printed
    assert "wrote tickets.yaml: Dataset, FineTuneJob" in printed
    source = machine.started[0].config.to_dict()
    assert ROWS in [path.read_text() for path in (machine.folder / ".finetune").rglob("tickets.csv")]
    assert "/mnt/" not in json.dumps(source)

    assert machine.run(*command, files=("tickets.csv",)) == ProgramExit.DONE
    assert machine.run("--no-serve", files=("tickets.yaml",)) == ProgramExit.DONE
    assert machine.stages == STAGES


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (("tickets.csv",), (), "tickets.csv is a file of rows: name its base model"),
        (FILES, ("--gate", "loss <= 1"), "--gate belongs to --model and a file of rows"),
        (("tickets.csv", *FILES), ("--model", "hf://org/name"), "--model needs one file of rows"),
    ],
)
def test_rows_and_yaml_are_told_apart(
    machine: Machine,
    files: tuple[str, ...],
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("tickets.csv").write_text(ROWS)
    assert machine.run(*options, files=files) == ProgramExit.INVALID
    assert message in capsys.readouterr().err
    assert machine.stages == []


def test_a_number_is_the_one_that_kubectl_would_send(machine: Machine) -> None:
    file = Path("finetunejob.yaml")
    file.write_text(
        (EXAMPLE / "finetunejob.yaml").read_text().replace("learningRate: 0.001", "learningRate: 2e-4")
    )
    assert machine.run("--no-serve", files=(FILES[0], str(file))) == ProgramExit.DONE
    stored = LocalBackend(Path(".finetune")).get("FineTuneJob", "ticket-routing")
    assert stored is not None
    (submitted,) = read_manifests(file)
    for each in (stored, submitted):
        assert each["spec"]["hyperparameters"]["learningRate"] == 2e-4


def test_a_file_that_is_not_yaml_is_named_with_the_line(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.yaml").write_text("kind: Dataset\nspec:\n\tsources: []\n")
    assert machine.run(files=("broken.yaml",)) == ProgramExit.INVALID
    assert "broken.yaml:3: the YAML cannot be read: a tab in the indentation" in capsys.readouterr().err
