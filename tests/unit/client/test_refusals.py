# SPDX-License-Identifier: Apache-2.0
"""What the program says when a cluster cannot be reached or refuses."""

import json
import re
from pathlib import Path

import pytest
import yaml

from finetune_client.access import Access, refusal, role_with
from finetune_client.errors import OperationError

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


def test_an_api_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(
        yaml.safe_dump(
            {
                "current-context": "one",
                "clusters": [{"name": "one", "cluster": {"server": "http://127.0.0.1:1"}}],
                "contexts": [
                    {"name": "one", "context": {"cluster": "one", "user": "me", "namespace": "team"}}
                ],
                "users": [{"name": "me", "user": {"token": "t"}}],
            }
        )
    )
    access = Access("kubectl", kubeconfig=file)
    assert access.default_namespace == "team"
    with pytest.raises(
        OperationError, match=r"the API server http://127.0.0.1:1 cannot be reached: .*refused"
    ):
        access.objects("FineTuneJob", "team")
