# SPDX-License-Identifier: Apache-2.0
"""The rights that the end-to-end tests need not use, and the rights in the audit logs of their lanes."""

import json
from pathlib import Path

import pytest

from finetune_operator.reconcile.inputs.related_types import RELATED_TYPES
from tests import rights
from tests.e2e.sessions import LaneSession, left_in, usage_of_all
from tools.cluster.toolchain import HELM


def test_only_rights_that_the_chart_grants_are_excused() -> None:
    if not HELM.folder.exists():
        pytest.skip("helm is not built: run `make verify` with Go")
    granted = {str(right) for right in rights.granted(rights.rendered("finetune-system"))}
    assert granted >= rights.UNOBSERVABLE | rights.RARELY_USED


def test_the_chart_grants_what_every_secondary_type_is_read_by() -> None:
    if not HELM.folder.exists():
        pytest.skip("helm is not built: run `make verify` with Go")
    granted = {
        (right.group, right.resource, right.verb)
        for right in rights.granted(
            rights.rendered("finetune-system", "gatewayAPI.enabled=true", "kueue.enabled=true")
        )
    }
    for each in RELATED_TYPES:
        group = each.type.api_version.rpartition("/")[0]
        for verb in each.verbs:
            assert (group, each.resource, verb) in granted


USER = "system:serviceaccount:here:operator"


def line(verb: str, resource: str, *, role: str = rights.NAMESPACES, refused: bool = False) -> str:
    """A line of the audit log for one request that the role allowed: by default the chart's in namespaces."""
    annotations = {
        "authorization.k8s.io/decision": "forbid" if refused else "allow",
        "authorization.k8s.io/reason": f'by ClusterRoleBinding "a" of ClusterRole "{role}"',
    }
    about = {"resource": resource}
    event = {"user": {"username": USER}, "verb": verb, "objectRef": about, "annotations": annotations}
    return json.dumps(event) + "\n"


def lane(folder: Path, name: str, *modules: str, partial: bool = False) -> LaneSession:
    """A session whose log also has earlier requests."""
    log = folder / f"{name}.log"
    log.write_text(line("delete", "nodes"))
    return LaneSession(str(log), log.stat().st_size, [*modules], partial)


def write(session: LaneSession, text: str) -> None:
    with Path(session.audit_log).open("a") as log:
        log.write(text)


def used(usage: rights.RightsUsage | None) -> set[str]:
    assert usage is not None
    return {str(right) for right in usage.used}


def test_rights_that_one_lane_used_and_requests_that_another_was_refused_are_both_found(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "left"
    folder.mkdir()
    for name, text in (("first", line("create", "jobs")), ("second", line("get", "pods", refused=True))):
        session = lane(tmp_path, name, f"test_{name}.py")
        write(session, text)
        session.leave(folder, name)
    last = lane(tmp_path, "last", "test_rights.py")

    found = usage_of_all(
        (last, *left_in(folder)), ["test_first.py", "test_second.py", "test_rights.py"], USER
    )

    assert used(found) == {"create jobs"}
    assert found is not None
    assert found.refused == {"get pods in the cluster"}


def test_a_lane_that_has_left_nothing_is_an_error_and_a_part_of_the_suite_shows_nothing(
    tmp_path: Path,
) -> None:
    whole = ["test_first.py", "test_rights.py", "test_second.py"]
    first, last = lane(tmp_path, "first", "test_first.py"), lane(tmp_path, "last", "test_rights.py")

    with pytest.raises(AssertionError, match="no lane has left"):
        usage_of_all([last, first], whole, USER)
    assert usage_of_all([first], whole, USER) is None
    assert usage_of_all([lane(tmp_path, "some", *whole, partial=True)], whole, USER) is None


@pytest.mark.parametrize("role", [rights.CLUSTER, f"{rights.RELEASE}-profiles"])
def test_a_right_that_every_user_has_too_is_used_whichever_role_the_log_names(
    tmp_path: Path, role: str
) -> None:
    log = tmp_path / "audit.log"
    log.write_text(line("watch", "computeprofiles", role=role) + line("get", "pods", role="system:discovery"))
    assert rights.usage(log, 0, USER).used == {rights.Right(rights.CLUSTER, "", "computeprofiles", "watch")}
