# SPDX-License-Identifier: Apache-2.0
"""The verb chat: which model a name means, how it is reached, with which key, and what a script gets."""

import io
import sys
from base64 import b64encode
from typing import Any

import pytest

from finetune_client import endpoint
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.program import main
from finetune_client.verbs import chat, options
from finetune_operator.api.inference_deployment import InferenceDeployment
from tests.unit.client.decidedobjects import MemoryBackend, golden, run_after
from tests.unit.client.openaiserver import OpenAIServer, serving

FIRST = golden("endpoint", "Checkpoint/first")
KEYS = {"serving": {"apiKeysSecretRef": {"name": "keys"}}}
SECRET = {
    "kind": "Secret",
    "metadata": {"name": "keys"},
    "data": {"empty": "", "shop": b64encode(b"sk-1\n").decode()},
}


def desk(spec: Any = None, **status: Any) -> dict[str, Any]:
    return golden("endpoint", "InferenceDeployment/desk", {"spec": spec or {}, "status": status})


def end(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_server_is_asked_by_its_url_one_question_from_the_arguments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving() as endpoint:
        url = endpoint.url.removesuffix("/v1")
        arguments = ("--model", "routing", "--with", "base", "--temperature", "0", "--system", "Be brief.")
        assert end("chat", url, "Who?", *arguments, "--key", "sk-2") == 0
        assert capsys.readouterr().out == "routing:\nrouting\n answers\nbase:\nbase\n answers\n"
        assert OpenAIServer.keys == ["Bearer sk-2"] * 2
        assert OpenAIServer.bodies[0]["temperature"] == 0
        assert OpenAIServer.bodies[0]["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?"},
        ]


def test_a_script_asks_by_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as endpoint:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Who\nfixes this?\n"))
        assert end("chat", endpoint.url, "--model", "routing") == 0
        assert OpenAIServer.bodies[-1]["messages"][-1]["content"] == "Who\nfixes this?"
        monkeypatch.setattr(sys, "stdin", io.StringIO(" "))
        assert end("chat", endpoint.url, "--model", "routing") == ProgramExit.INVALID
    assert "the question is empty" in capsys.readouterr().err


def test_a_model_that_does_not_answer_ends_a_script_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as endpoint:
        assert end("chat", endpoint.url, "Who?", "--model", "missing") == ProgramExit.FAILED
    assert "missing did not answer" in capsys.readouterr().err


def test_a_request_that_is_refused_because_of_load_is_sent_again(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as endpoint:
        assert end("chat", endpoint.url, "Who?", "--model", "busy") == 0
    assert capsys.readouterr().out == "busy\n answers\n"


def test_an_endpoint_of_local_runs_is_asked_at_its_own_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as endpoint:
        backend = MemoryBackend(desk(url="http://desk.local.svc/v1"))
        backend.url = lambda name: {"desk": endpoint.url}[name]  # type: ignore[attr-defined]
        monkeypatch.setattr(options, "connect", lambda **_: backend)
        assert end("chat", "desk", "Who?") == 0
    assert capsys.readouterr().out == "router\n answers\n"


@pytest.mark.parametrize("name", ["desk", "first"])
def test_an_endpoint_or_the_checkpoint_that_it_serves_means_its_model(name: str) -> None:
    target = chat.find_target(MemoryBackend(desk(), FIRST), name)
    assert (target.endpoint.name, target.model) == ("desk", "router")


def test_a_run_means_the_checkpoint_that_it_evaluated() -> None:
    made = golden("run-on-cpus", "Checkpoint/tickets-v1-0b5e7-40-cccccccc")
    models = {"router": {"checkpoint": made["metadata"]["name"]}}
    backend = MemoryBackend(desk(models=models), made, run_after("run-ends-promoted"))
    assert chat.find_target(backend, "tickets-v1").model == "router"


def test_an_endpoint_without_a_ready_replica_says_what_it_does() -> None:
    with pytest.raises(OperationError, match="desk has no ready replica: RollingOut: revision desk-c819e97f"):
        chat.find_target(MemoryBackend(desk(readyReplicas=0)), "desk")


def test_a_checkpoint_that_nothing_serves_says_how_to_serve_it() -> None:
    second = golden("endpoint", "Checkpoint/first", {"metadata": {"name": "second"}})
    with pytest.raises(OperationError, match="no endpoint serves Checkpoint second") as refused:
        chat.find_target(MemoryBackend(desk(), second), "second")
    assert refused.value.details == (
        "apiVersion: finetune.dev/v1alpha1",
        "kind: InferenceDeployment",
        "metadata:",
        "  name: tickets",
        "spec:",
        "  models:",
        "  - name: tickets",
        "    pin:",
        "      checkpoint: second",
    )
    assert refused.value.commands == (
        "finetune approve second -n team --reason TEXT  # desk follows tickets",
        "kubectl -n team apply -f FILE",
    )


def test_a_name_that_nothing_has_lists_the_endpoints() -> None:
    with pytest.raises(
        OperationError, match="no InferenceDeployment, Checkpoint or FineTuneJob nope; endpoints: desk"
    ):
        chat.find_target(MemoryBackend(desk()), "nope")


def key_of(backend: MemoryBackend, spec: Any = None) -> str:
    return endpoint.key_of(backend, InferenceDeployment.model_validate(desk(spec)))


def test_the_key_of_an_endpoint_is_in_the_secret_that_it_names() -> None:
    assert key_of(MemoryBackend()) == ""
    assert key_of(MemoryBackend(SECRET), KEYS) == "sk-1"


def test_a_key_that_cannot_be_read_must_be_given() -> None:
    with pytest.raises(OperationError, match="set FINETUNE_API_KEY or --key; its Secret keys has no key"):
        key_of(MemoryBackend(), KEYS)
    backend = MemoryBackend(SECRET)
    backend.forbidden = {"Secret"}
    with pytest.raises(OperationError, match="its Secret keys cannot be read: ann may not get Secret"):
        key_of(backend, KEYS)
