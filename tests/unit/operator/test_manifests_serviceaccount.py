# SPDX-License-Identifier: Apache-2.0
"""What service accounts of pods get when the operator creates them."""

from datetime import UTC, datetime

from finetune_operator.manifests.labels import ISOLATED, RUNNER
from finetune_operator.manifests.pod_security import AccountSettings, build_service_account
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, Snapshot
from finetune_operator.reconcile.passes import PlanBuilder

SETTINGS = AccountSettings({"eks.amazonaws.com/role-arn": "arn"}, ("registry", "mirror"))


def test_both_accounts_get_the_pull_secrets_and_only_the_runner_the_annotations() -> None:
    runner, isolated = (build_service_account("team-a", name, SETTINGS) for name in (RUNNER, ISOLATED))
    assert runner["metadata"]["annotations"] == SETTINGS.annotations
    assert "annotations" not in isolated["metadata"]
    for account in (runner, isolated):
        assert account["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]
        assert account["automountServiceAccountToken"] is False


def test_each_namespace_can_have_a_role_of_its_own() -> None:
    settings = AccountSettings({"iam.example.com/role": "finetune-{namespace}", "note": "{other} {"})
    account = build_service_account("team-a", RUNNER, settings)
    assert account["metadata"]["annotations"] == {
        "iam.example.com/role": "finetune-team-a",
        "note": "{other} {",
    }


def test_without_settings_an_account_has_neither() -> None:
    account = build_service_account("team-a", RUNNER, AccountSettings())
    assert account.keys() == {"apiVersion", "kind", "metadata", "automountServiceAccountToken"}
    assert "annotations" not in account["metadata"]


def test_the_account_of_a_first_job_gets_the_settings_of_the_process() -> None:
    facts = OperatorFacts("finetune-system", "trainer:1", "0f", accounts=SETTINGS)
    draft = PlanBuilder(Snapshot(datetime.now(UTC), facts))
    pod = {"serviceAccountName": RUNNER}
    draft.start_job({"metadata": {"namespace": "team-a"}, "spec": {"template": {"spec": pod}}})
    assert draft.create[0].manifest == build_service_account("team-a", RUNNER, SETTINGS)
