# SPDX-License-Identifier: Apache-2.0
"""Reading the audit log: answered requests, or all events."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import rights
from tests.rights import NAMESPACES, Right
from tools.cluster.audit import AuditLog


def line(verb: str, stage: str, name: str = "") -> dict[str, Any]:
    return {
        "stage": stage,
        "verb": verb,
        "requestURI": "/",
        "stageTimestamp": "2026-01-01T00:00:00.000000Z",
        "user": {"username": "operator"},
        "objectRef": {"apiGroup": "batch", "resource": "jobs", "namespace": "team", "name": name},
        "responseStatus": {"code": 200},
        "annotations": {
            "authorization.k8s.io/decision": "allow",
            "authorization.k8s.io/reason": f'allowed by ClusterRoleBinding "x" of ClusterRole "{NAMESPACES}"',
        },
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log with a request that was not authenticated, an open watch, two answered requests, and an
    incomplete line."""
    path = tmp_path / "audit.log"
    lines = (
        line("update", "ResponseStarted") | {"user": {}},
        line("watch", "ResponseStarted"),
        line("create", "ResponseComplete", "one"),
        line("delete", "ResponseComplete", "two"),
    )
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines) + '{"stage": "Resp')
    return path


def test_only_what_was_answered_is_a_request_and_reading_goes_on_at_its_mark(path: Path) -> None:
    log = AuditLog(path)
    (one, mark), (two, end) = log.read(0)
    assert (one.verb, one.name, two.verb, two.name) == ("create", "one", "delete", "two")
    assert list(log.since(mark)) == [two]
    assert list(log.since(end)) == []


def test_a_right_counts_as_used_while_a_watch_is_open(path: Path) -> None:
    used = rights.usage(path, 0, "operator").used
    assert used == {Right(NAMESPACES, "batch", "jobs", verb) for verb in ("watch", "create", "delete")}
    assert rights.usage(path, 0, "somebody").used == frozenset()


def test_a_request_that_was_not_authenticated_has_no_user(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    event = line("update", "ResponseComplete") | {"user": {}, "responseStatus": {"code": 401}}
    path.write_text(f"{json.dumps(event)}\n")
    ((request, _),) = AuditLog(path).read(0)
    assert (request.user, request.code) == ("", 401)
