# SPDX-License-Identifier: Apache-2.0
"""kubectl, Helm and API requests reach the same cluster."""

from pathlib import Path

import pytest
import yaml

from finetune_client.access import Access
from finetune_client.errors import OperationError
from tools.demo.admin_access import AdminAccess


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """A file with the contexts `one`, which is the current one, and `two`."""
    names = ("one", "two")
    file = tmp_path / "config"
    file.write_text(
        yaml.safe_dump(
            {
                "current-context": "one",
                "clusters": [{"name": name, "cluster": {"server": f"https://{name}"}} for name in names],
                "contexts": [{"name": name, "context": {"cluster": name, "user": "me"}} for name in names],
                "users": [{"name": "me", "user": {"token": "t"}}],
            }
        )
    )
    return file


@pytest.fixture
def program(tmp_path: Path) -> str:
    """Prints its arguments, or fails with its input as message if `fail` is one of them."""
    file = tmp_path / "program"
    file.write_text('#!/bin/sh\ncase "$*" in *fail*) cat >&2; exit 1;; esac\nprintf %s "$*"\n')
    file.chmod(0o755)
    return str(file)


def host(access: Access) -> str:
    return access.server


def test_without_a_context_the_current_one_is_used(kubeconfig: Path, program: str) -> None:
    access = Access(program, kubeconfig=kubeconfig)
    assert host(access) == "https://one"
    assert access.kubectl("get", "pods") == f"--kubeconfig={kubeconfig} get pods"


def test_helm_kubectl_and_requests_use_the_named_context(kubeconfig: Path, program: str) -> None:
    access = AdminAccess(program, program, kubeconfig=kubeconfig, context="two", where="a test")
    assert host(access) == "https://two"
    assert access.kubectl("get", "pods") == f"--kubeconfig={kubeconfig} --context=two get pods"
    assert access.helm("list") == f"--kubeconfig={kubeconfig} --kube-context=two list"


def test_a_failure_names_the_command_without_the_options_that_select_the_cluster(
    kubeconfig: Path, program: str
) -> None:
    access = Access(program, kubeconfig=kubeconfig)
    with pytest.raises(OperationError) as error:
        access.kubectl("fail", "a b", text="no such thing\n")
    assert str(error.value) == "kubectl fail 'a b' failed: no such thing"


def test_a_context_that_does_not_exist_is_an_error(kubeconfig: Path, program: str) -> None:
    with pytest.raises(OperationError, match="three"):
        Access(program, kubeconfig=kubeconfig, context="three")
