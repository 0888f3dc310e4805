# SPDX-License-Identifier: Apache-2.0
"""The chart, rendered by the real Helm. Skipped if `make cluster` or `make verify` has not built Helm."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.crd import KINDS
from finetune_operator.reconcile.inputs.indexes import BY_PROFILE
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.runtime.process import INSTALLATION_MARK
from finetune_operator.runtime.settings import Settings
from hack.version import version
from tests.networkpolicies import Pod, admits
from tools.cluster.toolchain import program

CHART = Path(__file__).parents[2] / "charts" / "finetune-operator"

Manifest = dict[str, Any]


def helm(
    *settings: str, values: Manifest | None = None, chart: Path = CHART
) -> subprocess.CompletedProcess[str]:
    if not program("helm").exists():
        pytest.skip("helm is not built: run `make verify` with Go")
    command = [
        str(program("helm")),
        "template",
        "finetune-operator",
        str(chart),
        "--namespace=finetune-system",
        "--values=-",
    ]
    command += [f"--set={setting}" for setting in settings]
    text = yaml.safe_dump(values or {})
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def rendered(*settings: str, values: Manifest | None = None, chart: Path = CHART) -> list[Manifest]:
    done = helm(*settings, values=values, chart=chart)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def named(manifests: list[Manifest], kind: str, name: str = "finetune-operator") -> Manifest:
    return next(m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name))


def rules(manifests: list[Manifest]) -> list[Manifest]:
    return [rule for m in manifests if m["kind"] in {"ClusterRole", "Role"} for rule in m["rules"]]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return rendered()


def test_a_version_with_the_digest_of_the_chart_makes_valid_labels(tmp_path: Path) -> None:
    """As Flux installs a chart from a registry."""
    chart = tmp_path / CHART.name
    shutil.copytree(CHART, chart)
    facts = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**facts, "version": f"{version()}+6fba8c802ca4"}))

    manifests = rendered(chart=chart)

    labels = {each["metadata"]["labels"]["helm.sh/chart"] for each in manifests}
    assert labels == {f"{CHART.name}-{version()}_6fba8c802ca4"}


def test_no_role_has_a_wildcard(manifests: list[Manifest]) -> None:
    for rule in rules(manifests):
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]


def test_the_operator_may_write_routes_only_where_the_gateway_api_is_enabled(
    manifests: list[Manifest],
) -> None:
    assert not [rule for rule in rules(manifests) if "httproutes" in rule["resources"]]
    (rule,) = [
        rule for rule in rules(rendered("gatewayAPI.enabled=true")) if "httproutes" in rule["resources"]
    ]
    assert rule["apiGroups"] == ["gateway.networking.k8s.io"]
    assert set(rule["verbs"]) == {"get", "list", "create", "patch", "delete"}


def test_the_operator_may_read_objects_of_kueue_only_where_it_is_enabled(manifests: list[Manifest]) -> None:
    assert not [rule for rule in rules(manifests) if "kueue.x-k8s.io" in rule["apiGroups"]]
    found = [rule for rule in rules(rendered("kueue.enabled=true")) if "kueue.x-k8s.io" in rule["apiGroups"]]
    assert {rule["resources"][0]: rule["verbs"] for rule in found} == {
        "localqueues": ["get"],
        "workloads": ["list"],
    }


def test_the_operator_reads_no_secret_but_its_own(manifests: list[Manifest]) -> None:
    secrets = [rule for rule in rules(manifests) if "secrets" in rule["resources"]]
    granted = sorted((rule["verbs"], rule.get("resourceNames")) for rule in secrets)
    own = (["get"], ["finetune-operator-report-tls"])
    # In other namespaces it creates the keys of runs with several pods, but cannot read them.
    assert granted == [(["create"], None), (["create"], None), own]
    for name in ("finetune-operator", "finetune-operator-cluster"):
        role = named(manifests, "ClusterRole", name)
        of_secrets = [rule["verbs"] for rule in role["rules"] if "secrets" in rule["resources"]]
        assert of_secrets == ([["create"]] if name == "finetune-operator" else [])


def test_people_and_the_operator_have_rights_on_every_kind(manifests: list[Manifest]) -> None:
    plurals = {kind.plural for kind in KINDS}
    operator = {
        resource
        for name in ("finetune-operator", "finetune-operator-cluster")
        for rule in named(manifests, "ClusterRole", name)["rules"]
        if rule["apiGroups"] == ["finetune.dev"] and "watch" in rule["verbs"]
        for resource in rule["resources"]
    }
    people = {
        resource
        for rule in named(manifests, "ClusterRole", "finetune-operator-view")["rules"]
        if "watch" in rule["verbs"]
        for resource in rule["resources"]
    }
    assert operator == people == plurals


def granted(manifests: list[Manifest], verb: str, *roles: str, suffix: str = "") -> set[str]:
    """Plurals of the kinds on which these ClusterRoles grant the verb, or on whose subresource."""
    of_kinds = {f"{kind.plural}{suffix}": kind.plural for kind in KINDS}
    return {
        of_kinds[resource]
        for name in roles
        for rule in named(manifests, "ClusterRole", name)["rules"]
        if rule["apiGroups"] == ["finetune.dev"] and verb in rule["verbs"]
        for resource in rule["resources"]
        if resource in of_kinds
    }


def test_the_rights_on_a_kind_follow_from_its_row(manifests: list[Manifest]) -> None:
    operator = ("finetune-operator", "finetune-operator-cluster")
    rows = KIND_ROWS.values()
    namespaced = {row.type.plural for row in rows if row.type.namespaced}
    records = {row.type.plural for row in rows if row.is_record}
    # Runs of schedules and sweeps have no owner.
    owners = namespaced - records - {"finetuneschedules", "finetunesweeps"}
    assert granted(manifests, "patch", *operator, suffix="/status") == {row.type.plural for row in rows}
    assert granted(manifests, "create", *operator) == records | {"finetunejobs"}
    assert granted(manifests, "update", *operator, suffix="/finalizers") == owners
    assert granted(manifests, "create", "finetune-operator-edit") == namespaced - records
    assert granted(manifests, "delete", "finetune-operator-edit") == namespaced
    definitions = next(
        rule["resourceNames"]
        for rule in named(manifests, "ClusterRole", operator[1])["rules"]
        if rule["resources"] == ["customresourcedefinitions"] and rule["verbs"] == ["get"]
    )
    assert definitions == sorted(f"{row.type.plural}.finetune.dev" for row in rows)


def test_the_policy_of_profiles_checks_every_kind_that_names_one(manifests: list[Manifest]) -> None:
    policy = named(manifests, "ValidatingAdmissionPolicy", "finetune-operator-profile-use")
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert rule["resources"] == sorted(
        row.type.plural for row in KIND_ROWS.values() if BY_PROFILE in row.indexers
    )


def test_admins_and_approvers_may_approve_and_nobody_else(manifests: list[Manifest]) -> None:
    approvers = [m for m in manifests if any("approve" in rule["verbs"] for rule in m.get("rules", ()))]
    assert [m["metadata"]["name"] for m in approvers] == ["finetune-operator-approver"]
    labels = approvers[0]["metadata"]["labels"]
    joined = {name: value for name, value in labels.items() if "aggregate-to-" in name}
    assert joined == {"rbac.authorization.k8s.io/aggregate-to-admin": "true"}
    policy = named(manifests, "ValidatingAdmissionPolicy", "finetune-operator-approval")
    binding = named(manifests, "ValidatingAdmissionPolicyBinding", "finetune-operator-approval")
    assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}


def test_without_aggregation_not_even_admins_may_approve() -> None:
    approver = named(rendered("rbac.aggregate=false"), "ClusterRole", "finetune-operator-approver")
    assert approver["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"] == "false"


def test_without_approval_nothing_of_the_policy_is_left(manifests: list[Manifest]) -> None:
    def of_approval(found: list[Manifest]) -> set[str]:
        return {
            m["kind"]
            for m in found
            if m["metadata"]["name"].endswith("-approval") or "approve" in str(m.get("rules"))
        }

    everything = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ClusterRole"}
    assert of_approval(manifests) == everything
    assert of_approval(rendered("rbac.approval=false")) == set()


def test_the_policy_of_profiles_goes_with_its_value(manifests: list[Manifest]) -> None:
    def policies(found: list[Manifest]) -> list[str]:
        kind = "ValidatingAdmissionPolicy"
        return [m["metadata"]["name"] for m in found if m["kind"] == kind]

    assert "finetune-operator-profile-use" in policies(manifests)
    assert policies(rendered("rbac.checkProfiles=false")) == ["finetune-operator-approval"]


def test_the_pod_satisfies_the_restricted_policy_with_a_read_only_root(manifests: list[Manifest]) -> None:
    pod = named(manifests, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_every_variable_of_the_pod_is_a_setting_that_the_process_reads(manifests: list[Manifest]) -> None:
    (container,) = named(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value", "10.0.0.1") for variable in container["env"]}
    assert {name.lower() for name in environment} <= set(Settings.model_fields)
    settings = Settings.from_environment(environment)
    assert settings.trainer_image == f"finetune-trainer:{version()}"
    assert settings.report_service == "finetune-operator-report"


def test_the_report_service_selects_nothing_because_the_active_process_leads_it(
    manifests: list[Manifest],
) -> None:
    assert "selector" not in named(manifests, "Service", "finetune-operator-report")["spec"]


def test_without_reports_nothing_of_them_is_left() -> None:
    manifests = rendered("report.enabled=false")
    assert [m["metadata"]["name"] for m in manifests if m["kind"] == "Service"] == [
        "finetune-operator-metrics"
    ]
    granted = {resource for rule in rules(manifests) for resource in rule["resources"]}
    assert granted.isdisjoint({"endpointslices", "tokenreviews"})
    assert [rule["verbs"] for rule in rules(manifests) if "secrets" in rule["resources"]] == [["create"]]
    (container,) = named(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert {"POD_IP", "REPORT_SERVICE"}.isdisjoint(variable["name"] for variable in container["env"])


def test_watching_two_namespaces_gives_rights_in_these_two_only() -> None:
    manifests = rendered("watchNamespaces={team-a,team-b}")
    bindings = [
        (m["kind"], m["metadata"].get("namespace"))
        for m in manifests
        if m["kind"].endswith("RoleBinding") and m["roleRef"]["name"] == "finetune-operator"
    ]
    assert bindings == [("RoleBinding", "team-a"), ("RoleBinding", "team-b")]


def test_a_restricted_operator_may_post_events_about_profiles(manifests: list[Manifest]) -> None:
    restricted = rendered("watchNamespaces={team-a}")
    role = named(restricted, "Role", "finetune-operator-events")
    assert role["metadata"]["namespace"] == "default"
    assert role["rules"] == [{"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]
    assert not any(m["metadata"]["name"] == "finetune-operator-events" for m in manifests)


def test_all_users_may_list_the_profiles_unless_the_values_say_otherwise(manifests: list[Manifest]) -> None:
    binding = named(manifests, "ClusterRoleBinding", "finetune-operator-profiles")
    assert [subject["name"] for subject in binding["subjects"]] == ["system:authenticated"]
    (rule,) = named(manifests, "ClusterRole", "finetune-operator-profiles")["rules"]
    assert (rule["resources"], rule["verbs"]) == (["computeprofiles"], ["get", "list", "watch"])
    names = {m["metadata"]["name"] for m in rendered("rbac.listProfiles=false")}
    assert "finetune-operator-profiles" not in names


@pytest.mark.parametrize(
    ("settings", "watched"),
    [((), frozenset("*")), (("watchNamespaces={team-a,team-b}",), frozenset(("team-a", "team-b")))],
    ids=["all namespaces", "some"],
)
def test_a_binding_that_only_administrators_may_write_marks_the_installation(
    settings: tuple[str, ...], watched: frozenset[str]
) -> None:
    manifests = rendered(*settings)
    (marked,) = [m for m in manifests if INSTALLATION_MARK.label in m["metadata"].get("labels", {})]
    assert marked["kind"] == "ClusterRoleBinding"
    (pod,) = [m for m in manifests if m["kind"] == "Deployment"]
    environment = pod["spec"]["template"]["spec"]["containers"][0]["env"]
    (lease,) = [each["value"] for each in environment if each["name"] == "LEASE_NAME"]
    assert INSTALLATION_MARK.read(marked) == (("finetune-system", lease), watched)


def test_images_can_be_named_by_digest() -> None:
    digest = "sha256:" + "a" * 64
    manifests = rendered(f"image.digest={digest}", f"trainerImage.digest={digest}", "image.tag=v1")
    (container,) = named(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"finetune-operator:v1@{digest}"
    trainer = next(v["value"] for v in container["env"] if v["name"] == "TRAINER_IMAGE")
    assert trainer.endswith(f"@{digest}")


def test_the_default_profile_outlives_the_release(manifests: list[Manifest]) -> None:
    profile = named(manifests, "ComputeProfile", "default")
    assert profile["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_default_profile_is_one_and_readable_by_the_operator(manifests: list[Manifest]) -> None:
    profiles = [ComputeProfile.model_validate(m) for m in manifests if m["kind"] == "ComputeProfile"]
    assert [(profile.name, profile.is_default) for profile in profiles] == [("default", True)]
    assert profiles[0].spec.store is not None
    assert profiles[0].spec.store.uri == "pvc://artifacts"
    assert not any(m["kind"] == "ComputeProfile" for m in rendered("defaultProfile.create=false"))


@pytest.mark.parametrize(
    ("setting", "misspelt"),
    [
        ("imagge.tag=1", "imagge"),
        ("image.tagg=1", "tagg"),
        ("defaultProfile.spec.accelerator.most=2", "most"),
    ],
)
def test_helm_refuses_a_misspelt_value_by_its_name(setting: str, misspelt: str) -> None:
    done = helm(setting)
    assert done.returncode != 0
    assert misspelt in done.stderr


def selected(manifest: Manifest) -> dict[str, str]:
    labels: dict[str, str] = manifest["metadata"]["labels"]
    return {key: labels[key] for key in ("app.kubernetes.io/name", "app.kubernetes.io/instance")}


def test_one_process_has_no_budget_and_two_lose_one_at_a_time(manifests: list[Manifest]) -> None:
    assert not [m for m in manifests if m["kind"] == "PodDisruptionBudget"]
    budget = named(rendered("replicas=2"), "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"] == selected(budget)
    off = rendered("replicas=2", "podDisruptionBudget.enabled=false")
    assert not [m for m in off if m["kind"] == "PodDisruptionBudget"]


def test_replicas_are_spread_and_replaced_as_the_values_say(manifests: list[Manifest]) -> None:
    assert "strategy" not in named(manifests, "Deployment")["spec"]
    assert "topologySpreadConstraints" not in named(manifests, "Deployment")["spec"]["template"]["spec"]
    zone = "topologySpreadConstraints[0]"
    deployment = named(
        rendered(
            f"{zone}.topologyKey=topology.kubernetes.io/zone",
            f"{zone}.maxSkew=1",
            f"{zone}.whenUnsatisfiable=DoNotSchedule",
            "strategy.type=RollingUpdate",
            "strategy.rollingUpdate.maxUnavailable=0",
        ),
        "Deployment",
    )
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
    assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"] == [
        {
            "labelSelector": {"matchLabels": selected(deployment)},
            "topologyKey": "topology.kubernetes.io/zone",
            "maxSkew": 1,
            "whenUnsatisfiable": "DoNotSchedule",
        }
    ]


def test_the_operators_network_policy_can_be_left_out() -> None:
    manifests = rendered("networkPolicies.operator=false")
    assert not [m for m in manifests if m["kind"] == "NetworkPolicy"]


def test_by_default_only_monitoring_reaches_the_metrics_and_only_pods_of_runs_the_reports(
    manifests: list[Manifest],
) -> None:
    policy = named(manifests, "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == selected(policy)
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    managed = {"matchLabels": {"app.kubernetes.io/managed-by": "finetune-operator"}}
    assert policy["spec"]["ingress"] == [
        {
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "ports": [{"port": 8080, "protocol": "TCP"}],
        },
        {
            "from": [{"podSelector": managed, "namespaceSelector": {}}],
            "ports": [{"port": 8443, "protocol": "TCP"}],
        },
    ]


def test_the_operators_network_policy_knows_its_namespaces_and_whether_anything_reports() -> None:
    policy = named(
        rendered(
            "watchNamespaces={a,b}",
            "networkPolicies.monitoringNamespace=*",
        ),
        "NetworkPolicy",
    )
    metrics, reports = policy["spec"]["ingress"]
    assert metrics["from"] == [{"namespaceSelector": {}}]
    (peer,) = reports["from"]
    assert peer["namespaceSelector"] == {
        "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}]
    }
    silent = named(rendered("report.enabled=false"), "NetworkPolicy")
    assert len(silent["spec"]["ingress"]) == 1


def test_the_monitoring_namespace_of_the_process_is_that_of_the_values() -> None:
    (container,) = named(rendered(), "Deployment")["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value", "10.0.0.1") for variable in container["env"]}
    assert Settings.from_environment(environment).monitoring_namespace == "monitoring"


def test_a_security_floor_reaches_the_process() -> None:
    deployment = named(rendered("trainerImage.securityFloor=0.2.0"), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "TRAINER_IMAGE_FLOOR", "value": "0.2.0"} in container["env"]
    assert "securityFloor" in helm("trainerImage.securityFloor=newest").stderr


@pytest.mark.parametrize(
    ("source", "port", "admitted"),
    [
        (Pod("monitoring", {"app": "prometheus"}), 8080, True),
        (Pod("monitoring", {"app": "prometheus"}), 8443, False),
        (Pod("a", {"app.kubernetes.io/managed-by": "finetune-operator"}), 8443, True),
        (Pod("a", {"app.kubernetes.io/managed-by": "finetune-operator"}), 8080, False),
        (Pod("b", {"app.kubernetes.io/managed-by": "finetune-operator"}), 8443, False),
        (Pod("a", {"app": "stranger"}), 8443, False),
        (Pod("finetune-system", {"app": "stranger"}), 8080, False),
    ],
    ids=str,
)
def test_the_operators_network_policy_means_what_it_says(source: Pod, port: int, *, admitted: bool) -> None:
    manifests = rendered("watchNamespaces={a}")
    labels = named(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    policies = [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    assert admits(policies, Pod("finetune-system", labels), source, port) is admitted
