# SPDX-License-Identifier: Apache-2.0
"""The verbs of decisions: what they change, print and refuse."""

import sys
from typing import Any

import pytest

from finetune_client.errors import ProgramExit
from finetune_client.program import main
from finetune_client.verbs import options
from tests.unit.client.decidedobjects import MemoryBackend, golden, run_after

MADE = "tickets-v1-0b5e7-40-cccccccc"
CHECKPOINT = golden("run-on-cpus", f"Checkpoint/{MADE}", {"status": {"promotedAt": None}})
DESK = golden(
    "endpoint",
    "InferenceDeployment/desk",
    {"spec": {"models": {"router": {"follow": {"modelLine": "ticket-routing"}}}}},
)
GIT = {
    "metadata": {
        "labels": {"kustomize.toolkit.fluxcd.io/name": "runs", "kustomize.toolkit.fluxcd.io/namespace": "n"}
    }
}


def running(**patch: Any) -> dict[str, Any]:
    found = run_after("run-shows-progress")
    return {**found, "metadata": {**found["metadata"], **patch.get("metadata", {})}}


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Connect the verbs with a namespace of these objects."""

    def connect(*objects: Any) -> MemoryBackend:
        backend = MemoryBackend(*objects)
        monkeypatch.setattr(options, "connect", lambda **_: backend)
        return backend

    return connect


def end(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", [MADE, "tickets-v1"])
def test_a_checkpoint_is_approved_by_its_name_or_that_of_its_run(
    name: str, connected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = connected(CHECKPOINT, DESK, run_after("run-misses-its-gates"))
    assert end("approve", name, "--reason", "read 50 answers") == 0
    approval = {"state": "Approved", "reason": "read 50 answers"}
    assert backend.patches == [("Checkpoint", MADE, {"spec": {"approval": approval}})]
    assert capsys.readouterr().out == (
        f"Checkpoint {MADE} is approved: read 50 answers\n"
        "  The operator promotes it within seconds: it becomes the champion of model line ticket-routing.\n"
        "  Endpoints that follow ticket-routing take the champion if it meets their minScores: desk.\n"
    )


def test_an_approver_who_may_not_read_endpoints_approves_and_is_told_what_is_left_out(
    connected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = connected(CHECKPOINT, DESK)
    backend.forbidden = {"InferenceDeployment", "FineTuneJob"}
    assert end("approve", MADE, "--reason", "fine") == 0
    assert len(backend.patches) == 1
    assert "Its endpoints are not named: ann may not list InferenceDeployment" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_a_decision_needs_a_reason(verb: str, connected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    backend = connected(CHECKPOINT)
    assert end(verb, MADE) == ProgramExit.INVALID
    assert end(verb, MADE, "--reason", " ") == ProgramExit.INVALID
    assert backend.patches == []
    assert "--reason" in capsys.readouterr().err


def test_a_name_that_is_neither_a_checkpoint_nor_a_run_is_refused(
    connected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    connected(CHECKPOINT)
    assert end("reject", "nope", "--reason", "x") == ProgramExit.INVALID
    assert "namespace team has neither a Checkpoint nor a FineTuneJob nope" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "objects", "change"),
    [
        (("approve", MADE, "--reason", "x"), (CHECKPOINT,), "approval:"),
        (("cancel", "tickets-v1"), (running(),), "cancel: true"),
        (("suspend", "tickets-v1"), (running(),), "suspend: true"),
        (("rollback", "desk"), (DESK,), "decision:"),
    ],
)
def test_what_git_owns_is_not_changed_and_the_change_is_printed(
    arguments: tuple[str, ...],
    objects: tuple[Any, ...],
    change: str,
    connected: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owned = [{**each, "metadata": {**each["metadata"], **GIT["metadata"]}} for each in objects]
    backend = connected(*owned)
    assert end(*arguments) == ProgramExit.OWNED_BY_GIT
    assert backend.patches == []
    printed = capsys.readouterr().err
    assert "applied from Git by Flux (Kustomization n/runs)" in printed
    assert change in printed


@pytest.mark.parametrize(
    ("answer", "options", "cancelled"),
    [("n", (), False), ("y", (), True), (None, ("--yes",), True)],
)
def test_on_a_terminal_cancel_asks_first(
    answer: str | None,
    options: tuple[str, ...],
    *,
    cancelled: bool,
    connected: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = connected(running())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_: {"n": False, "y": True}[answer or ""])
    assert end("cancel", "tickets-v1", *options) == (0 if cancelled else ProgramExit.INTERRUPTED)
    assert bool(backend.patches) is cancelled


def test_a_script_is_not_asked_and_a_finished_run_is_left_alone(
    connected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = connected(running())
    assert end("cancel", "tickets-v1") == 0
    assert backend.patches == [("FineTuneJob", "tickets-v1", {"spec": {"cancel": True}})]
    assert "Its Checkpoints stay." in capsys.readouterr().out
    finished = connected(run_after("run-ends-promoted"))
    assert end("cancel", "tickets-v1") == 0
    assert finished.patches == []
    assert capsys.readouterr().out == (
        "FineTuneJob tickets-v1 has already succeeded: there is nothing to cancel.\n"
    )


def test_a_missing_object_is_named_with_those_that_exist(
    connected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    connected(running())
    assert end("suspend", "ticket-v1") == ProgramExit.INVALID
    assert "FineTuneJob ticket-v1 does not exist in namespace team; there are: tickets-v1" in (
        capsys.readouterr().err
    )
