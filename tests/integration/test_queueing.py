# SPDX-License-Identifier: Apache-2.0
"""A run in a queue on an API server without Kueue."""

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.manifests import condition, profile_name
from tests.integration.operators import Operators
from tests.waiting import eventually

WAIT_SECONDS = 60


def test_without_kueue_nothing_starts_outside_of_its_quota_until_the_profile_has_no_queue(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start().wait_active()
    api.patch(
        "ComputeProfile", "", profile_name(namespace), {"spec": {"kueue": {"queues": {"train": "gpus"}}}}
    )
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    found = eventually(
        "the run says that Kueue is missing",
        lambda: (
            shown
            if (shown := condition(api.get("FineTuneJob", namespace, "routing"), "Reconciling")).get("reason")
            == "KueueNotInstalled"
            else None
        ),
        WAIT_SECONDS,
        lambda: operator.log[-4000:],
    )
    assert found["message"].startswith("kueue.queues.train of ComputeProfile")
    assert not jobs_of_stage(api, namespace, "preflight")
    api.patch("ComputeProfile", "", profile_name(namespace), {"spec": {"kueue": {"queues": None}}})
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
