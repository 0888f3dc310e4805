# SPDX-License-Identifier: Apache-2.0
"""The definitions on a real API server: structure, columns, names, defaults, scale."""

import pytest

from finetune_operator.api.crd import KINDS, KINDS_BY_NAME, Kind
from tests.integration.api import Api, Object, path_of
from tests.integration.rules import files
from tests.integration.rules.requests import NAMESPACE, try_create
from tests.integration.rules.schema import spec_schema
from tests.mergepatch import merged
from tools.cluster import ControlPlane

HEADERS = {
    "FineTuneJob": ["NAME", "PHASE", "PROGRESS", "LOSS", "SCORE", "ETA", "AGE"],
    "Dataset": ["NAME", "PHASE", "LATEST", "ROWS", "PROBLEMS", "AGE"],
    "DatasetVersion": ["NAME", "DATASET", "ROWS", "DIGEST", "AGE"],
    "Checkpoint": ["NAME", "MODEL-LINE", "STEP", "SCORE", "PROMOTED", "IN-USE", "AGE"],
    "Evaluation": ["NAME", "PHASE", "CHECKPOINTS", "SCORE", "AGE"],
    "FineTuneSweep": ["NAME", "PHASE", "TRIALS", "BEST", "LOSS", "DEVICE-HOURS", "AGE"],
    "FineTuneSchedule": ["NAME", "TRIGGERS", "LAST", "NEXT", "ACTIVE", "AGE"],
    "InferenceDeployment": ["NAME", "MODELS", "REVISION", "WEIGHT", "VERDICT", "READY", "URL", "AGE"],
    "ComputeProfile": ["NAME", "DEVICE", "MAX", "ENGINE", "AGE"],
}
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@by_kind
def test_the_definition_is_established_and_structural(api: Api, kind: Kind) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.plural}.finetune.dev"
    definition = api.request("GET", path).raise_for_status().json()
    conditions = {each["type"]: each["status"] for each in definition["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"


def test_kubectl_get_shows_each_kind_by_its_short_name_and_those_of_namespaces_by_the_category(
    api: Api, control_plane: ControlPlane, namespace: str
) -> None:
    for kind in KINDS:
        api.create(_minimal_in(kind, namespace))
    names = ",".join(kind.short_name for kind in KINDS)
    shown = control_plane.kubectl.run("get", "--namespace", namespace, names)
    headers = [line.split() for line in shown.splitlines() if line.startswith("NAME")]
    assert headers == list(HEADERS.values())
    category = control_plane.kubectl.run("get", "--namespace", namespace, "finetune", "--output=name")
    namespaced = {kind.name.lower() for kind in KINDS if kind.namespaced}
    assert {line.split(".")[0] for line in category.splitlines()} == namespaced


@by_kind
def test_a_new_object_has_the_status_of_one_that_nobody_has_seen(
    api: Api, kind: Kind, namespace: str
) -> None:
    created = api.create(_minimal_in(kind, namespace))
    assert created["status"] == {"observedGeneration": -1}
    read = kind.model.model_validate(created)
    assert (read.name, read.uid) == (created["metadata"]["name"], created["metadata"]["uid"])


@by_kind
def test_the_api_server_fills_in_the_defaults_of_the_models(api: Api, kind: Kind) -> None:
    for given in (files.minimal(kind), *files.complete(kind)):
        verdict = try_create(api, given)
        assert verdict.accepted, verdict.message
        assert verdict.obj["spec"] == kind.model.model_validate(given).to_dict()["spec"]
        assert kind.model.model_validate(verdict.obj).to_dict()["spec"] == verdict.obj["spec"]


def test_an_endpoint_is_scaled_through_the_scale_subresource(api: Api, namespace: str) -> None:
    kind = next(kind for kind in KINDS if kind.scale)
    name = api.create(_minimal_in(kind, namespace))["metadata"]["name"]
    api.patch(kind.name, namespace, name, {"status": {"replicas": 1, "selector": "a=b"}}, "status")
    scale = api.request("GET", f"{path_of(kind.name, namespace, name)}/scale").raise_for_status().json()
    assert scale["spec"]["replicas"] == 1
    assert scale["status"] == {"replicas": 1, "selector": "a=b"}
    api.patch(kind.name, namespace, name, {"spec": {"replicas": 3}}, "scale")
    endpoint = api.get(kind.name, namespace, name)
    assert endpoint is not None
    assert endpoint["spec"]["replicas"] == 3


def _minimal_in(kind: Kind, namespace: str) -> Object:
    """Give cluster-scoped objects unique names."""
    patch = {"namespace": namespace} if kind.namespaced else {"name": namespace}
    given = files.minimal(kind)
    assert given["metadata"].get("namespace", NAMESPACE) == NAMESPACE
    placed: Object = merged(given, {"metadata": patch})
    return placed


def test_a_template_of_runs_has_the_fields_and_the_rules_of_a_run() -> None:
    """So the tests of FineTuneJobs hold for it too."""
    run = spec_schema(KINDS_BY_NAME["FineTuneJob"])
    left_out = {"suspend", "cancel"}
    rules = [each for each in run["x-kubernetes-validations"] if "oldSelf" not in each["rule"]]
    for kind in ("FineTuneSweep", "FineTuneSchedule"):
        template = spec_schema(KINDS_BY_NAME[kind])["properties"]["template"]["properties"]["spec"]
        assert template["properties"] == {k: v for k, v in run["properties"].items() if k not in left_out}
        assert template["x-kubernetes-validations"] == rules
