# SPDX-License-Identifier: Apache-2.0
"""The chart's values that charts of other projects have too, rendered by the real Helm."""

from typing import Any

import pytest

from finetune_operator.runtime.settings import Settings
from tests.unit.test_chart_templates import Manifest, helm, named, rendered

OWN_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/instance"}


def deployment(*settings: str, values: Manifest | None = None) -> Manifest:
    (found,) = [m for m in rendered(*settings, values=values) if m["kind"] == "Deployment"]
    return found


def pod(*settings: str, values: Manifest | None = None) -> Manifest:
    spec: Manifest = deployment(*settings, values=values)["spec"]["template"]["spec"]
    return spec


def container(*settings: str, values: Manifest | None = None) -> Manifest:
    (found,) = pod(*settings, values=values)["containers"]
    made: Manifest = found
    return made


def process(*settings: str, values: Manifest | None = None) -> Settings:
    """The settings of the operator process."""
    found = container(*settings, values=values)
    environment = {each["name"]: each.get("value", "10.0.0.1") for each in found["env"]}
    return Settings.from_environment(environment, found.get("args", ()))


def images(*settings: str) -> tuple[str, str]:
    return container(*settings)["image"], process(*settings).trainer_image


def test_images_have_registries_of_their_own_or_one_for_both() -> None:
    assert images() == ("finetune-operator:0.1.0", "finetune-trainer:0.1.0")
    own = ("image.registry=a.example.com/x", "trainerImage.registry=b.example.com")
    assert images(*own) == (
        "a.example.com/x/finetune-operator:0.1.0",
        "b.example.com/finetune-trainer:0.1.0",
    )
    assert images(*own, "global.imageRegistry=mirror:5000") == (
        "mirror:5000/finetune-operator:0.1.0",
        "mirror:5000/finetune-trainer:0.1.0",
    )
    # The repository can be the whole name.
    assert images("image.repository=a.example.com/x/operator")[0] == "a.example.com/x/operator:0.1.0"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), ("IfNotPresent", "IfNotPresent")),
        (("image.pullPolicy=Always", "trainerImage.pullPolicy=Never"), ("Always", "Never")),
    ],
    ids=str,
)
def test_each_image_has_a_pull_policy_of_its_own(
    settings: tuple[str, ...], expected: tuple[str, str]
) -> None:
    assert (container(*settings)["imagePullPolicy"], process(*settings).image_pull_policy) == expected


@pytest.mark.parametrize(
    "secrets", [["a", "b"], [{"name": "a"}, {"name": "b"}], ["a", {"name": "b"}]], ids=str
)
def test_pull_secrets_are_names_or_references(secrets: list[Any]) -> None:
    expected = [{"name": "a"}, {"name": "b"}]
    assert pod(values={"imagePullSecrets": secrets})["imagePullSecrets"] == expected
    assert process(values={"imagePullSecrets": secrets}).runner_image_pull_secrets == ()
    assert process(values={"runner": {"imagePullSecrets": secrets}}).runner_image_pull_secrets == ("a", "b")
    both = {"global": {"imagePullSecrets": [{"name": "a"}]}, "imagePullSecrets": secrets}
    assert pod(values=both)["imagePullSecrets"] == expected
    assert process(values=both).runner_image_pull_secrets == ("a",)


def test_annotations_of_runners_reach_the_process() -> None:
    annotations = {"eks.amazonaws.com/role-arn": 'arn:aws:iam::1:role/"x"'}
    assert process(values={"runner": {"annotations": annotations}}).runner_annotations == annotations
    assert process().runner_annotations == {}


def names(manifests: list[Manifest]) -> set[str]:
    return {m["metadata"]["name"] for m in manifests} - {"default"}


def test_names_can_be_overridden() -> None:
    assert all(name.startswith("finetune-operator") for name in names(rendered()))
    assert all(name.startswith("mine") for name in names(rendered("fullnameOverride=mine")))
    found = rendered("nameOverride=tuning")
    assert all(name.startswith("finetune-operator-tuning") for name in names(found))
    made = named(found, "Deployment", "finetune-operator-tuning")
    selector, labels = made["spec"]["selector"]["matchLabels"], made["spec"]["template"]["metadata"]["labels"]
    assert selector["app.kubernetes.io/name"] == "tuning"
    assert selector.items() <= labels.items()
    assert process("fullnameOverride=mine").lease_name == "mine"
    assert process("fullnameOverride=mine").report_service == "mine-report"


def test_every_object_has_the_common_labels_and_they_replace_none_of_the_charts() -> None:
    labels = {"team": "platform", "app.kubernetes.io/name": "other"}
    everything = ("monitors.enabled=true", "alerts.enabled=true", "dashboard.enabled=true", "replicas=2",
                  "networkPolicies.operator=true", "watchNamespaces={a}")  # fmt: skip
    for manifest in rendered(*everything, values={"commonLabels": labels, "podLabels": labels}):
        found = manifest["metadata"]["labels"]
        assert (found["team"], found["app.kubernetes.io/name"]) == ("platform", "finetune-operator"), manifest
    made = deployment(values={"commonLabels": labels, "podLabels": {"pod": "yes"}})
    assert (
        made["spec"]["template"]["metadata"]["labels"].items() >= {"team": "platform", "pod": "yes"}.items()
    )
    assert set(made["spec"]["selector"]["matchLabels"]) == OWN_LABELS


def test_the_roles_are_bound_to_the_account_of_the_pods() -> None:
    def accounts(*settings: str) -> set[str]:
        subjects = [s for m in rendered(*settings) for s in m.get("subjects", ())]
        return {each["name"] for each in subjects if each["kind"] == "ServiceAccount"}

    for settings, name in (
        ((), "finetune-operator"),
        (("serviceAccount.name=mine",), "mine"),
        (("serviceAccount.name=theirs", "serviceAccount.create=false"), "theirs"),
        (("fullnameOverride=short", "watchNamespaces={a}"), "short"),
    ):
        assert accounts(*settings) == {name}
        assert pod(*settings)["serviceAccountName"] == name
    made = {m["kind"] for m in rendered("serviceAccount.name=theirs", "serviceAccount.create=false")}
    assert "ServiceAccount" not in made
    assert "serviceAccount.name is needed" in helm("serviceAccount.create=false").stderr
    annotations = {"serviceAccount": {"annotations": {"role": "x"}}}
    assert named(rendered(values=annotations), "ServiceAccount")["metadata"]["annotations"] == {"role": "x"}


def test_openshift_may_choose_the_ids() -> None:
    spec = pod("podSecurityContext.runAsUser=null", "podSecurityContext.runAsGroup=null")
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_a_pod_can_be_extended() -> None:
    values = {
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraArgs": ["--relist-seconds=300"],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
        "livenessProbe": {"failureThreshold": 9},
    }
    spec, made = pod(values=values), container(values=values)
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in made["env"]
    assert process(values=values).relist_seconds == 300
    assert [volume["name"] for volume in spec["volumes"]] == ["tmp", "ca"]
    assert made["volumeMounts"][1:] == [{"name": "ca", "mountPath": "/ca"}]
    assert made["livenessProbe"] == {
        "httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 20, "timeoutSeconds": 15,
        "failureThreshold": 9,
    }  # fmt: skip


def test_a_busy_node_does_not_get_the_operator_restarted() -> None:
    def patience(probe: str) -> int:
        timing: dict[str, int] = container()[probe]
        return timing["periodSeconds"] * timing["failureThreshold"]

    assert patience("startupProbe") >= 600
    assert patience("livenessProbe") >= 120
    assert all(container()[probe]["timeoutSeconds"] >= 10 for probe in ("startupProbe", "livenessProbe"))


def test_objects_and_templates_of_objects_are_created_with_the_release() -> None:
    def configmap(name: str) -> Manifest:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}

    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-b'}\n"
    found = rendered(values={"extraObjects": [configmap("a"), text]})
    assert [m["metadata"]["name"] for m in found if m["kind"] == "ConfigMap"] == ["a", "finetune-operator-b"]


def test_monitors_are_scraped_as_the_values_say() -> None:
    relabeling = {"action": "drop", "sourceLabels": ["__name__"], "regex": "python_.*"}
    values = {
        "monitors": {
            "enabled": True,
            "annotations": {"owner": "sre"},
            "scrapeTimeout": "9s",
            "metricRelabelings": [relabeling],
        }
    }
    monitors = [m for m in rendered(values=values) if m["kind"] in {"ServiceMonitor", "PodMonitor"}]
    assert len(monitors) == 3
    for monitor in monitors:
        assert monitor["metadata"]["annotations"] == {"owner": "sre"}
        endpoints = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        for each in endpoints:
            assert (each["interval"], each["scrapeTimeout"]) == ("30s", "9s")
            assert each["metricRelabelings"] == [relabeling]


def test_protected_metrics_have_a_port_rights_and_a_role_for_readers() -> None:
    everything = ("metrics.secure=true", "monitors.enabled=true", "networkPolicies.operator=true")
    manifests = rendered(*everything)
    assert process(*everything).metrics_port == 8444
    assert process(*everything).metrics_service == "finetune-operator-metrics"
    (port,) = named(manifests, "Service", "finetune-operator-metrics")["spec"]["ports"]
    ports = {each["name"]: each["containerPort"] for each in container(*everything)["ports"]}
    assert ports[port["targetPort"]] == port["port"] == 8444
    (endpoint,) = named(manifests, "ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["scheme"]) == (port["name"], "https")
    assert endpoint["tlsConfig"] == {"insecureSkipVerify": True}
    scrapes = named(manifests, "NetworkPolicy")["spec"]["ingress"][0]
    assert scrapes["ports"] == [{"port": 8444, "protocol": "TCP"}]
    granted = named(manifests, "ClusterRole", "finetune-operator-cluster")["rules"]
    reviews = {rule["resources"][0] for rule in granted if rule["verbs"] == ["create"]}
    assert reviews >= {"tokenreviews", "subjectaccessreviews"}
    reader = named(manifests, "ClusterRole", "finetune-operator-metrics-reader")
    assert reader["rules"] == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]


def test_open_metrics_have_neither_another_port_nor_the_right_of_reviews() -> None:
    manifests = rendered("monitors.enabled=true")
    assert process().metrics_port == 0
    (port,) = named(manifests, "Service", "finetune-operator-metrics")["spec"]["ports"]
    assert (port["name"], port["port"]) == ("http", 8080)
    assert "scheme" not in named(manifests, "ServiceMonitor")["spec"]["endpoints"][0]
    assert "subjectaccessreviews" not in str([m["rules"] for m in manifests if m["kind"] == "ClusterRole"])
    assert "finetune-operator-metrics-reader" not in names(manifests)


def test_the_certificate_of_metrics_can_come_from_a_secret() -> None:
    settings = ("metrics.secure=true", "metrics.certificateSecret=metrics-tls", "monitors.enabled=true")
    spec, made = pod(*settings), container(*settings)
    (volume,) = [each for each in spec["volumes"] if each["name"] == "metrics"]
    assert volume["secret"] == {"secretName": "metrics-tls"}
    (mount,) = [each for each in made["volumeMounts"] if each["name"] == "metrics"]
    assert process(*settings).metrics_certificate == mount["mountPath"]
    (endpoint,) = named(rendered(*settings), "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["tlsConfig"] == {
        "ca": {"secret": {"name": "metrics-tls", "key": "ca.crt"}},
        "serverName": "finetune-operator-metrics.finetune-system.svc",
    }
