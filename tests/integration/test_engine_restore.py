# SPDX-License-Identifier: Apache-2.0
"""etcd is restored while the operator runs: the operator continues from the restored objects."""

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.operators import Operator, Operators
from tests.waiting import eventually
from tools.cluster import ControlPlane

WRITES = 100
"""Number of lost versions: more than the control plane writes until the operator has listed again."""


def test_after_a_restore_of_etcd_the_operator_works_on_with_what_was_restored(
    control_plane: ControlPlane, api: Api, namespace: str, operators: Operators
) -> None:
    manifests.prepare_namespace(api, namespace)
    operator = operators.start().wait_active()
    kubelet = FakeKubelet(api, namespace)
    api.create(manifests.dataset(namespace))
    until_condition(api, (namespace, "Dataset", "tickets"), "Ready", operator)
    api.create(manifests.finetunejob(namespace, "kept", suspend=True))
    until_condition(api, (namespace, "FineTuneJob", "kept"), "Suspended", operator)
    kubelet.close()

    control_plane.save()
    eventually("the operator is active", operator.is_active, 60, lambda: operator.log)
    api.create(manifests.finetunejob(namespace, "lost"))
    eventually("the run works", lambda: jobs_of_stage(api, namespace, "preflight"), 60, lambda: operator.log)
    for number in range(WRITES):
        note = {"metadata": {"annotations": {"note": str(number)}}}
        api.patch("FineTuneJob", namespace, "kept", note)
    api.delete("FineTuneJob", namespace, "kept")
    eventually(
        "the operator knows one run", lambda: runs(operator, namespace) == 1, describe=lambda: operator.log
    )
    control_plane.restore()

    assert api.get("FineTuneJob", namespace, "lost") is None
    eventually(
        "the operator has noticed the restore",
        lambda: operator.metric("finetune_etcd_restores_total"),
        60,
        lambda: operator.log,
    )
    # The run that was deleted after the snapshot exists again, and trains.
    kubelet = FakeKubelet(api, namespace)
    api.patch("FineTuneJob", namespace, "kept", {"spec": {"suspend": False}})
    until_condition(api, (namespace, "FineTuneJob", "kept"), "Ready", operator)
    kubelet.close()
    assert runs(operator, namespace) == 1
    assert operator.process.poll() is None
    assert operator.status_of("healthz") == 200


def runs(operator: Operator, namespace: str) -> float:
    """FineTuneJobs of the namespace that the operator knows, in any phase."""
    return sum(
        value
        for sample, value in operator.samples("finetune_jobs").items()
        if f'namespace="{namespace}"' in sample
    )
