# SPDX-License-Identifier: Apache-2.0
"""History limits on a real API server, with real field managers and deletions."""

from copy import deepcopy

from finetune_operator.api.labels import OPERATOR
from finetune_operator.manifests.labels import RECORDED_AT
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object, path_of
from tests.integration.chain import until_condition, until_settled
from tests.integration.operators import Operators
from tests.waiting import eventually
from tools.cluster.audit import AuditLog


def recorded_earlier(api: Api, checkpoint: Object, name: str, manager: str) -> None:
    """Another Checkpoint of the same run, created by this field manager."""
    older = deepcopy(checkpoint)
    del older["status"]
    older["metadata"] = {
        "name": name,
        "namespace": checkpoint["metadata"]["namespace"],
        "labels": checkpoint["metadata"]["labels"],
        "annotations": {RECORDED_AT: "2020-01-01T00:00:00.000+00:00"},
    }
    older["spec"] |= {"step": 1, "digest": f"sha256:{'0' * 64}"}
    path = path_of("Checkpoint", older["metadata"]["namespace"])
    api.request("POST", f"{path}?fieldManager={manager}", older).raise_for_status()


def test_what_a_limit_leaves_no_room_for_goes_and_what_others_have_made_stays(
    api: Api, namespace: str, operators: Operators, audit: AuditLog
) -> None:
    manifests.prepare_namespace(api, namespace)
    kubelet = FakeKubelet(api, namespace)
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    until_settled(audit, operators.user)
    assert operator.terminate() == 0
    kubelet.close()
    promoted = job["status"]["checkpoints"][0]["name"]
    checkpoint = api.get("Checkpoint", namespace, promoted)
    assert checkpoint is not None
    recorded_earlier(api, checkpoint, "older", OPERATOR)
    recorded_earlier(api, checkpoint, "of-somebody", "somebody")
    profile = manifests.profile_name(namespace)
    api.patch("ComputeProfile", "", profile, {"spec": {"limits": {"checkpoints": 1}}})

    mark = audit.mark()
    again = operators.start().wait_active()
    eventually(
        "the older Checkpoint is gone",
        lambda: api.get("Checkpoint", namespace, "older") is None,
        describe=lambda: again.log,
    )
    until_settled(audit, operators.user)
    assert {each["metadata"]["name"] for each in api.list("Checkpoint", namespace)} == {
        promoted,
        "of-somebody",
    }
    deleted = [each.name for each in audit.writes(mark, operators.user) if each.verb == "delete"]
    assert deleted == ["older"]
