# SPDX-License-Identifier: Apache-2.0
"""Cases of missing rights of the operator: the situation that needs the right, and where it is reported."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx

from finetune_operator.manifests.labels import FINALIZER, RUN_REQUESTED
from finetune_trainer.contract.environment import REPORT_AUDIENCE, REPORT_PATH
from tests.integration import manifests
from tests.integration.api import Api, Object, path_of
from tests.integration.manifests import is_true
from tests.integration.operators import Operator
from tests.waiting import eventually
from tools.fakepods import digest

LOG: Final = ""
"""Instead of a kind: only the operator's log reports the missing right."""
PROFILE: Final = "rights"
ROWS: Final = "tickets-1a2b3c4d5e6f"
CHECKPOINTS: Final = ("first", "second")
PATIENCE_SECONDS: Final = 60.0

Begin = Callable[[Api, str], None]
Action = Callable[[Api, str, Operator], None]


def nothing(_api: Api, _namespace: str) -> None:
    """No object is needed."""


def nothing_more(_api: Api, _namespace: str, _operator: Operator) -> None:
    """No action is needed."""


@dataclass(frozen=True)
class Case:
    """One right that is missing in a namespace.

    Attributes:
        reported_on: kind of the object whose condition reports it; LOG: the operator's log.
        begin: creates the objects.
        action: a later action of a user.
        repeat: whether to repeat the action until the right is needed, because that depends on timing.
        message: expected text if it is not the API server's usual one.
    """

    reported_on: str
    begin: Begin = nothing
    action: Action = nothing_more
    repeat: bool = False
    message: str = ""


def a_run(api: Api, namespace: str) -> None:
    """A Dataset, and a run on it that is promoted."""
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace, compute={"profile": PROFILE}))


def a_run_in_two_pods(api: Api, namespace: str) -> None:
    """A run whose pods find each other by a Service, which is deleted at the end of the run."""
    api.create(manifests.dataset(namespace))
    compute = {"profile": PROFILE, "nodes": 2}
    api.create(manifests.finetunejob(namespace, compute=compute, childrenTTLSeconds=0))


def a_run_of_its_own_rows(api: Api, namespace: str) -> None:
    """A run with rows of its own, which its first stage prepares."""
    rows = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    compute = {"profile": PROFILE}
    api.create(manifests.finetunejob(namespace, dataset=rows, compute=compute))


def a_sweep(api: Api, namespace: str) -> None:
    """A Dataset, and a sweep on it that makes a run."""
    api.create(manifests.dataset(namespace))
    run = manifests.finetunejob(namespace, compute={"profile": PROFILE})
    api.create(manifests.finetunesweep(namespace, run["spec"]))


def a_schedule(api: Api, namespace: str) -> None:
    """A Dataset, and a schedule on it that makes a run."""
    api.create(manifests.dataset(namespace))
    run = manifests.finetunejob(namespace, compute={"profile": PROFILE})
    schedule = manifests.finetuneschedule(namespace, run["spec"], triggers={})
    schedule["metadata"]["annotations"] = {RUN_REQUESTED: "once"}
    api.create(schedule)


def an_evaluation(api: Api, namespace: str) -> None:
    """An Evaluation of a Checkpoint on a Dataset."""
    checkpoint = _checkpoint(namespace, CHECKPOINTS[0])
    api.create(checkpoint)
    api.create(manifests.dataset(namespace, "questions"))
    api.create(manifests.evaluation(namespace, "last-month", CHECKPOINTS[0], profile=PROFILE))


def an_evaluation_with_delete(api: Api, namespace: str) -> None:
    """An Evaluation whose folders are removed with it."""
    api.create(_with_delete(manifests.evaluation(namespace, "last-month", CHECKPOINTS[0])))


def an_endpoint(api: Api, namespace: str) -> None:
    """An endpoint that is pinned to the first of two Checkpoints."""
    for name in CHECKPOINTS:
        api.create(_checkpoint(namespace, name))
    endpoint = manifests.inferencedeployment(namespace)
    endpoint["spec"] |= {"models": _pinned_to(CHECKPOINTS[0]), "compute": {"profile": PROFILE}}
    api.create(endpoint)


def a_protected_endpoint(api: Api, namespace: str) -> None:
    """An endpoint with a NetworkPolicy and a PodDisruptionBudget."""
    an_endpoint(api, namespace)
    spec = {"networkPolicy": {"allowFrom": [{"podSelector": {}}]}, "availability": {"maxUnavailable": 1}}
    api.patch("InferenceDeployment", namespace, "support", {"spec": spec})


def a_record_of_rows(api: Api, namespace: str) -> None:
    """A DatasetVersion whose content is deleted with it."""
    api.create(_version(namespace, ROWS))


def _version(namespace: str, name: str) -> Object:
    rows = digest("rows", namespace, name)
    spec = {
        "dataset": "tickets",
        "digest": rows,
        "sourceDigest": rows,
        "preparationDigest": rows,
        "ruleVersion": 1,
        "format": "PromptCompletion",
        "rows": 1,
        "splits": [{"name": "train", "rows": 1, "digest": rows}],
        "deletionPolicy": "Delete",
    }
    return manifests.of("DatasetVersion", namespace, name, spec)


def a_terminating_record(api: Api, namespace: str) -> None:
    record = _version(namespace, "terminating-1a2b3c4d5e6f")
    record["metadata"]["finalizers"] = [FINALIZER]
    api.create(record)
    api.delete("DatasetVersion", namespace, "terminating-1a2b3c4d5e6f")


def a_checkpoint(api: Api, namespace: str) -> None:
    """A Checkpoint whose content is deleted with it."""
    api.create(_with_delete(_checkpoint(namespace, CHECKPOINTS[0])))


def rows_with_delete(api: Api, namespace: str) -> None:
    """A Dataset whose records are deleted with it."""
    api.create(_with_delete(manifests.dataset(namespace)))


def a_run_with_delete(api: Api, namespace: str) -> None:
    """A run whose Checkpoints are deleted with it; none is promoted, because promoted ones are kept."""
    api.create(manifests.dataset(namespace))
    run = manifests.finetunejob(namespace, compute={"profile": PROFILE}, promotion={"mode": "Manual"})
    api.create(_with_delete(run))


def _with_delete(manifest: Object) -> Object:
    return {**manifest, "spec": {**manifest["spec"], "deletionPolicy": "Delete"}}


def deleted(kind: str, name: str) -> Action:
    """A user deletes the object when it is Ready."""

    def action(api: Api, namespace: str, _operator: Operator) -> None:
        eventually(
            f"{kind} {name} is Ready",
            lambda: is_true(api.get(kind, namespace, name), "Ready"),
            PATIENCE_SECONDS,
        )
        api.delete(kind, namespace, name)

    return action


def suspended(api: Api, namespace: str, _operator: Operator) -> None:
    """A user suspends the run while its first stage runs."""
    eventually("the first stage has a Job", lambda: api.list("Job", namespace), PATIENCE_SECONDS)
    api.patch("FineTuneJob", namespace, "routing", {"spec": {"suspend": True}})


def scaled(api: Api, namespace: str, _operator: Operator) -> None:
    _until_serving(api, namespace)
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"replicas": 2}})


def moved(api: Api, namespace: str, _operator: Operator) -> None:
    """A user selects another Checkpoint: the Service switches to a new revision; the old one is deleted."""
    _until_serving(api, namespace)
    models = _pinned_to(CHECKPOINTS[1])
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"models": models}})


def unprotected(api: Api, namespace: str, _operator: Operator) -> None:
    """A user removes the NetworkPolicy and the PodDisruptionBudget from the spec."""
    _until_serving(api, namespace)
    availability = {"maxUnavailable": None, "disruptionBudget": "None"}
    spec = {"networkPolicy": None, "availability": availability}
    api.patch("InferenceDeployment", namespace, "support", {"spec": spec})


def stripped(kind: str) -> Action:
    """A user removes the labels of a child, so that the operator's cache loses it."""

    def action(api: Api, namespace: str, _operator: Operator) -> None:
        _until_serving(api, namespace)
        (child,) = api.list(kind, namespace)
        labels = dict.fromkeys(child["metadata"].get("labels", ()))
        api.patch(kind, namespace, child["metadata"]["name"], {"metadata": {"labels": labels}})

    return action


def edited(kind: str, name: str) -> Action:
    """A user makes many edits: one of them happens between the operator's pass and its write."""

    def action(api: Api, namespace: str, _operator: Operator) -> None:
        for policy in ("Delete", "Retain") * 5:
            api.patch(kind, namespace, name, {"spec": {"deletionPolicy": policy}})

    return action


def _until_serving(api: Api, namespace: str) -> Object:
    def serving() -> Object | None:
        found = api.get("InferenceDeployment", namespace, "support")
        return found if is_true(found, "Ready") else None

    return eventually("the endpoint serves", serving, PATIENCE_SECONDS)


def _pinned_to(name: str) -> list[Object]:
    return [{"name": "routing", "pin": {"checkpoint": name}}]


def _checkpoint(namespace: str, name: str) -> Object:
    weights, base = digest("weights", namespace, name), digest("base", namespace)
    return manifests.of(
        "Checkpoint",
        namespace,
        name,
        {
            "modelLine": "ticket-routing",
            "digest": weights,
            "type": "Adapter",
            "step": 1,
            "epoch": 1,
            "uri": f"pvc://artifacts/checkpoints/{weights.removeprefix('sha256:')}",
            "lineage": {
                "baseModel": {"uri": "pvc://models/tiny", "digest": base},
                "datasetVersion": ROWS,
                "job": {"name": name, "uid": name},
                "method": {"objective": "SFT", "type": "LoRA"},
                "adapter": {"r": 16},
                "hyperparameters": manifests.HYPERPARAMETERS,
                "trainerImage": "trainer:1",
            },
        },
    )


def reported_by_an_unknown_pod(api: Api, namespace: str, operator: Operator) -> None:
    """A pod without the operator's labels reports with its token."""
    container = {"name": "c", "image": "registry.example/none:1"}
    metadata = {"name": "unknown", "namespace": namespace}
    pod = api.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}
    )
    reference = {"apiVersion": "v1", "kind": "Pod", "name": "unknown", "uid": pod["metadata"]["uid"]}
    spec = {"audiences": [REPORT_AUDIENCE], "expirationSeconds": 600, "boundObjectRef": reference}
    path = f"{path_of('ServiceAccount', namespace, 'default')}/token"
    answer = api.request("POST", path, {"spec": spec}).raise_for_status()
    _report(operator, answer.json()["status"]["token"])


def reported(_api: Api, _namespace: str, operator: Operator) -> None:
    """A client reports with an invalid token."""
    operator.wait_active()
    _report(operator, "token")


def _report(operator: Operator, token: str) -> None:
    with httpx.Client(verify=False, trust_env=False, timeout=30) as client:  # noqa: S501 - only the request matters
        url = f"https://127.0.0.1:{operator.report_port}{REPORT_PATH}"
        client.post(url, content="{}", headers={"Authorization": f"Bearer {token}"})


def repriced(api: Api, _namespace: str, operator: Operator) -> None:
    """The platform team edits the profile ten times, and every operator writes its status."""
    operator.wait_active()
    for price in range(1, 11):
        api.patch("ComputeProfile", "", PROFILE, {"spec": {"cost": {"pricePerDeviceHour": price}}})


OWNER: Final = "an ownerReference refers to a resource you can't set finalizers on"

RECORDS: Final = ("checkpoints", "datasetversions")
KINDS: Final = (
    *RECORDS,
    "datasets",
    "evaluations",
    "finetunejobs",
    "finetuneschedules",
    "finetunesweeps",
    "inferencedeployments",
)
CHILDREN: Final = ("jobs", "pods", "deployments", "services", "networkpolicies", "poddisruptionbudgets")
WATCHED: Final = (*KINDS, *CHILDREN)

IN_A_NAMESPACE: Final[dict[str, Case]] = {
    "get finetunejobs": Case("FineTuneJob", a_run),
    "get datasets": Case("Dataset", a_run),
    "get evaluations": Case("Evaluation", an_evaluation),
    "get finetuneschedules": Case("FineTuneSchedule", a_schedule),
    "get finetunesweeps": Case("FineTuneSweep", a_sweep),
    "get inferencedeployments": Case("InferenceDeployment", an_endpoint),
    "get datasetversions": Case(LOG, a_record_of_rows, edited("DatasetVersion", ROWS), repeat=True),
    "get checkpoints": Case(LOG, an_endpoint, edited("Checkpoint", CHECKPOINTS[1]), repeat=True),
    "patch finetunejobs/status": Case(LOG, a_run),
    "patch datasets/status": Case(LOG, a_run),
    "patch evaluations/status": Case(LOG, an_evaluation),
    "patch finetuneschedules/status": Case(LOG, a_schedule),
    "patch finetunesweeps/status": Case(LOG, a_sweep),
    "patch inferencedeployments/status": Case(LOG, an_endpoint),
    "patch datasetversions/status": Case(LOG, a_run),
    "patch checkpoints/status": Case(LOG, a_run),
    "create finetunejobs": Case("FineTuneSweep", a_sweep),
    "create datasetversions": Case("Dataset", a_run),
    "create checkpoints": Case("FineTuneJob", a_run),
    "delete datasetversions": Case("Dataset", rows_with_delete, deleted("Dataset", "tickets")),
    # The conditions of a run that has ended do not change.
    "delete checkpoints": Case(LOG, a_run_with_delete, deleted("FineTuneJob", "routing")),
    "update finetunejobs/finalizers": Case("FineTuneJob", a_run, message=OWNER),
    "update datasets/finalizers": Case("Dataset", a_run, message=OWNER),
    "update evaluations/finalizers": Case("Evaluation", an_evaluation, message=OWNER),
    "update inferencedeployments/finalizers": Case("InferenceDeployment", an_endpoint, message=OWNER),
    "get jobs": Case("FineTuneJob", a_run),
    "create jobs": Case("Dataset", a_run),
    "delete jobs": Case("FineTuneJob", a_run_of_its_own_rows, suspended),
    "get deployments": Case("InferenceDeployment", an_endpoint, stripped("Deployment")),
    "create deployments": Case("InferenceDeployment", an_endpoint),
    "patch deployments": Case("InferenceDeployment", an_endpoint, scaled),
    "delete deployments": Case("InferenceDeployment", an_endpoint, moved),
    "get services": Case("InferenceDeployment", an_endpoint, stripped("Service")),
    "create services": Case("InferenceDeployment", an_endpoint),
    "patch services": Case("InferenceDeployment", an_endpoint, moved),
    # The conditions of a run that has ended do not change.
    "delete services": Case(LOG, a_run_in_two_pods),
    "create secrets": Case("FineTuneJob", a_run_in_two_pods),
    "get networkpolicies": Case("InferenceDeployment", a_protected_endpoint),
    "create networkpolicies": Case("InferenceDeployment", a_protected_endpoint),
    "patch networkpolicies": Case("InferenceDeployment", a_protected_endpoint),
    "delete networkpolicies": Case("InferenceDeployment", a_protected_endpoint, unprotected),
    "get poddisruptionbudgets": Case("InferenceDeployment", a_protected_endpoint),
    "create poddisruptionbudgets": Case("InferenceDeployment", a_protected_endpoint),
    "patch poddisruptionbudgets": Case("InferenceDeployment", a_protected_endpoint),
    "delete poddisruptionbudgets": Case("InferenceDeployment", a_protected_endpoint, unprotected),
    "get serviceaccounts": Case("Dataset", a_run),
    "create serviceaccounts": Case("Dataset", a_run),
    "get persistentvolumeclaims": Case("Dataset", a_run),
    "create events": Case(LOG, a_run),
    "get pods": Case(LOG, action=reported_by_an_unknown_pod),
    **{f"watch {resource}": Case(LOG) for resource in WATCHED},
}
"""Rights in a namespace: one process watches one namespace per right, in which this right is missing."""

FINALIZERS: Final[dict[str, Case]] = {
    "patch checkpoints": Case(LOG, a_checkpoint),
    "patch datasets": Case(LOG, rows_with_delete),
    "patch datasetversions": Case(LOG, a_record_of_rows),
    "patch finetunejobs": Case(LOG, a_run_with_delete),
    "patch evaluations": Case(LOG, an_evaluation_with_delete),
    "get namespaces": Case(LOG, a_terminating_record),
}
"""Rights on objects with a finalizer: one process lacks all of them."""

UNREPORTED: Final = frozenset({"list events"})
"""Rights that only add details to messages: without them, a message is more general."""

UNATTENDED: Final = frozenset({"delete jobs", "get pods"})
"""Rights in whose namespaces no pod starts, because there is no fake kubelet."""

IN_A_PROCESS: Final[dict[str, Case]] = {
    "list computeprofiles": Case(LOG),
    "watch computeprofiles": Case(LOG),
    "get computeprofiles": Case(LOG, action=repriced, repeat=True),
    "patch computeprofiles/status": Case(LOG, action=repriced, repeat=True),
    "create tokenreviews": Case(LOG, action=reported),
    "get leases": Case(LOG),
    "create leases": Case(LOG),
    "list clusterrolebindings": Case(LOG),
    "update leases": Case(LOG),
    "get customresourcedefinitions": Case(LOG),
    "get secrets": Case(LOG),
    "create secrets": Case(LOG),
    "get endpointslices": Case(LOG),
    "create endpointslices": Case(LOG),
    "patch endpointslices": Case(LOG),
}
"""Rights of a process as a whole: one process per right lacks it."""
