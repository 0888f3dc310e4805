# SPDX-License-Identifier: Apache-2.0
"""Texts of rows and credentials, planted on claims, in Secrets and in uris, are in no record of the cluster.

Rows are on a claim only, so no key of etcd may have their words, in its history neither. A credential is in
its Secret, so all other objects are searched for it.
"""

import json
from pathlib import Path
from typing import Final

import pytest

from finetune_client.backend import Object
from finetune_client.errors import OperationError
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, condition_of
from tools.cluster import TestCluster
from tools.demo.admin_access import CONTEXT
from tools.demo.install import RELEASE, SYSTEM

WORD: Final = "quokkaberry"
"""Occurs in every text of every row, in names of fields, and in the header of a table."""
TOKEN: Final = "ghp_kN3mQ8rT5vX2zB7dF4gH9jL6pS1wY0aC3eUq"
"""Occurs in rows, and is the credential of the web source."""
SIGNATURE: Final = "5ebc0d1a9f72c483e6b1"
"""Occurs in the query of a uri in the spec, but must not occur in a status, event or log."""

SECRET: Final = f'{WORD} password = "{TOKEN}"'
TAKEN: Final = "".join(
    json.dumps({"prompt": f"{WORD} {number}?", "completion": SECRET, f"a {WORD}": WORD}) + "\n"
    for number in range(30)
)
REFUSED: Final = "\n".join(
    [
        json.dumps({"messages": [{"role": WORD, "content": WORD}, {"role": "assistant", "content": WORD}]}),
        json.dumps({f"{WORD}: {TOKEN}": WORD}),
        f'{{"prompt": "{WORD}',
    ]
)
HEADLESS: Final = "".join(f"Where is {WORD} {number}?,{WORD} {TOKEN}\n" for number in range(30))
UNKNOWN: Final = f"{WORD} {TOKEN}\n"


LINKS: Final = ("environment", "token")
"""Datasets whose file is a link out of the claim. They are retried, like any missing source."""


def on_claim(name: str, path: str) -> Object:
    return manifests.of("Dataset", name, {"sources": [{"uri": f"pvc://models/{path}"}]})


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create all objects with the planted texts."""
    folder = request.getfixturevalue("tmp_path_factory").mktemp("planted")
    for name, text in (
        ("taken.jsonl", TAKEN),
        ("refused.jsonl", REFUSED),
        ("headless.csv", HEADLESS),
        ("unknown.jsonl", UNKNOWN),
    ):
        (folder / name).write_text(text)
    keeper.copy(folder, "/models/canary")
    keeper.run("ln -sf /var/run/finetune/report/token /models/canary/token.jsonl")
    keeper.run("ln -sf /proc/self/environ /models/canary/environment.jsonl")
    secret = manifests.credentials("canary")
    secret["stringData"] = {"endpoint": "https://127.0.0.1:1", "token": TOKEN}
    team.apply(
        secret,
        on_claim("canary-taken", "canary/taken.jsonl"),
        on_claim("canary-refused", "canary/refused.jsonl"),
        on_claim("canary-headless", "canary/headless.csv"),
        on_claim("canary-unknown", "canary/unknown.jsonl"),
        on_claim("canary-token", "canary/token.jsonl"),
        on_claim("canary-environment", "canary/environment.jsonl"),
        manifests.of(
            "Dataset",
            "canary-remote",
            {
                "sources": [
                    {
                        "uri": f"https://169.254.169.254/rows.jsonl?sig={SIGNATURE}",
                        "credentialsSecretRef": {"name": "canary"},
                    }
                ]
            },
        ),
    )


@pytest.fixture(scope="module")
def looked_at(team: Team, begun: None) -> None:
    """Wait until all Datasets are prepared or refused."""
    team.until("Dataset", "canary-taken", "Ready")
    for name in ("refused", "headless", "unknown", "token", "environment", "remote"):
        condition = "Reconciling" if name in LINKS else "Stalled"
        team.until("Dataset", f"canary-{name}", condition, "SourceNotFound" if name in LINKS else None)


def test_a_link_to_what_only_the_pod_may_read_is_named_and_not_followed(team: Team, looked_at: None) -> None:
    for name in LINKS:
        dataset = team.until("Dataset", f"canary-{name}", "Reconciling", "SourceNotFound")

        message = condition_of(dataset, "Reconciling")["message"]
        assert f"{name}.jsonl leads out of the volume" in message
        assert "eyJ" not in json.dumps(dataset["status"])


def test_no_word_of_a_row_is_in_etcd(looked_at: None) -> None:
    if CONTEXT:
        pytest.skip("the etcd of another cluster is out of reach")
    files = [path for path in Path(TestCluster().layout.etcd).rglob("*") if path.is_file()]
    assert files

    for path in files:
        assert WORD.encode() not in path.read_bytes(), path.name


def test_no_word_of_a_row_and_no_credential_is_in_an_object_of_the_namespace(
    team: Team, looked_at: None
) -> None:
    kinds = team.access.kubectl(
        "api-resources", "--namespaced", "--verbs=list", "--output=name", "--cached=false"
    )
    searched = 0
    for kind in kinds.split():
        if kind == "secrets" or kind.endswith("metrics.k8s.io"):
            continue
        for found in json.loads(team.kubectl("get", kind, "--output=json"))["items"]:
            text = json.dumps(found)
            searched += 1
            assert WORD not in text, f"{kind} {found['metadata']['name']}"
            assert TOKEN not in text, f"{kind} {found['metadata']['name']}"
            said = json.dumps([found.get(part) for part in ("status", "message", "note", "reason")])
            assert SIGNATURE not in said, f"{kind} {found['metadata']['name']}"
    assert searched > 7


def log_of(team: Team, pod: str) -> str:
    """The log of a pod; empty if the operator has deleted the pod since, for the next attempt."""
    try:
        return team.kubectl("logs", pod, "--all-containers", "--tail=-1")
    except OperationError as error:
        if "(NotFound)" in str(error):
            return ""
        raise


def test_no_word_of_a_row_and_no_credential_is_in_a_log(team: Team, looked_at: None) -> None:
    started = "--field-selector=status.phase!=Pending"
    pods = team.kubectl("get", "pods", started, "--output=name").split()
    logs = {pod: log_of(team, pod) for pod in pods}
    assert any(logs.values())
    logs["operator"] = team.access.kubectl(
        "logs", f"--namespace={SYSTEM}", f"--selector=app.kubernetes.io/instance={RELEASE}", "--tail=-1"
    )

    for pod, text in logs.items():
        for planted in (WORD, TOKEN, SIGNATURE):
            assert planted not in text, f"{planted} in the log of {pod}"
