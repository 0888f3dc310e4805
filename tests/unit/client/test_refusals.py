# SPDX-License-Identifier: Apache-2.0
"""What the program says when a cluster cannot be reached or refuses."""

import json
import re
import socket
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
import yaml

from finetune_client.access import Access, refusal, role_with
from finetune_client.client import wait_for
from finetune_client.cluster import ClusterBackend
from finetune_client.errors import OperationError, ProgramExit, UnavailableError
from finetune_client.outcome import WaitFor
from tests.unit.client.decidedobjects import run_after

ROOT = Path(__file__).parents[3]
ROLES = ("view", "edit", "finetune-operator-approver", "admin")
LISTED_BY_ALL = "list computeprofiles"


def rights() -> dict[str, list[str]]:
    """The rights of docs/tenants.md with the roles that have them."""
    page = (ROOT / "docs" / "tenants.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| `(\w+ \S+)` \| \w+ \| (.*) \|$", page, re.MULTILINE)
    return {
        right: [role for role, has in zip(ROLES, cells.split(" | "), strict=True) if has == "yes"]
        for right, cells in rows
    }


def test_the_role_that_a_refusal_names_is_the_smallest_of_the_page_about_tenants() -> None:
    granted = rights()
    assert len(granted) > 20
    named = {right: role_with(*right.split()) for right in granted if right != LISTED_BY_ALL}
    assert named == {right: roles[0] if roles else None for right, roles in granted.items() if right in named}


def test_a_missing_right_names_verb_resource_role_and_the_command_for_an_administrator() -> None:
    message = (
        'finetunejobs.finetune.dev "a" is forbidden: User "ann b" cannot patch resource "finetunejobs" in API'
        ' group "finetune.dev" in the namespace "team-a"'
    )
    error = refusal(403, json.dumps({"kind": "Status", "message": message}).encode())
    assert str(error) == (
        "ann b may not patch finetunejobs in namespace team-a: the role edit has this right (docs/tenants.md)"
    )
    assert error.commands[1] == (
        "kubectl create rolebinding NAME --clusterrole=edit --user='ann b' --namespace=team-a"
    )


def test_without_a_cluster_the_program_says_which_verb_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(OperationError, match="no cluster is configured: `finetune run` needs none"):
        Access("kubectl")


def access_to(folder: Path, server: str) -> Access:
    file = folder / "config"
    file.write_text(
        yaml.safe_dump(
            {
                "current-context": "one",
                "clusters": [{"name": "one", "cluster": {"server": server}}],
                "contexts": [
                    {"name": "one", "context": {"cluster": "one", "user": "me", "namespace": "team"}}
                ],
                "users": [{"name": "me", "user": {"token": "t"}}],
            }
        )
    )
    return Access("kubectl", kubeconfig=file)


def test_an_api_server_that_does_not_answer_is_named_with_its_context(tmp_path: Path) -> None:
    access = access_to(tmp_path, "http://127.0.0.1:1")
    assert access.default_namespace == "team"
    with pytest.raises(
        OperationError,
        match=r"the API server http://127.0.0.1:1 of context one cannot be reached: .*refused",
    ):
        access.objects("FineTuneJob", "team")


class Answers:
    """A server that gives these answers, one after the other, and the last one again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(self.answers[0])
                    self.answers = self.answers[1:] or self.answers

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def http(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n"
    return f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body


RUN = json.dumps(run_after("run-ends-promoted")).encode()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (http(b"<html>Please log in</html>"), r"of context one answered .* not JSON.*: <html>Please log in"),
        (http(b'{"kind": ', length=1000), "the connection to .* broke"),
        (http(b"upstream is down", "502 Bad Gateway"), "the API server answered 502: upstream is down"),
    ],
    ids=["a login page", "a cut connection", "a load balancer"],
)
def test_what_answers_in_place_of_an_api_server_is_an_error_in_words(
    tmp_path: Path, answer: bytes, message: str
) -> None:
    with closing(Answers(answer)) as server, pytest.raises(OperationError, match=message):
        access_to(tmp_path, server.url).object("FineTuneJob", "team", "routing")


def test_a_wait_survives_that_the_api_server_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = http(b"starting", "503 Service Unavailable")
    with closing(Answers(gone, b"", gone, http(RUN))) as server:
        backend = ClusterBackend(access_to(tmp_path, server.url))
        outcome = wait_for(backend, "routing", WaitFor.TRAINED, 60.0, lambda _: None)
        assert outcome.exit_code is ProgramExit.DONE
        assert capsys.readouterr().err.count("trying again for 120 s") == 1

        monkeypatch.setattr("finetune_client.backend.OUTAGE_SECONDS", 0.0)
        server.answers = [gone]
        with pytest.raises(UnavailableError, match="answered 503"):
            wait_for(backend, "routing", WaitFor.TRAINED, 60.0, lambda _: None)
