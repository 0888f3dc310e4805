# SPDX-License-Identifier: Apache-2.0
"""Manifests of an endpoint: a Deployment per revision, Services, the HTTPRoute, the PodDisruptionBudget.

A revision in preview has a Service of its own, because it gets no requests of the endpoint yet.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from finetune_operator.api.endpoint_access import EndpointGateway, GatewayReference
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import PROFILE, REVISION, RUN
from finetune_operator.engine.resources import HTTP_ROUTE, SERVICE
from finetune_operator.manifests.engines.engine_inputs import DRAIN_SECONDS, base_folder, serving_config
from finetune_operator.manifests.engines.engine_table import engine_image, engine_of, engine_resources
from finetune_operator.manifests.jobs import child_metadata, owner_reference
from finetune_operator.manifests.labels import (
    BASE_MODEL_JOB,
    CORRECTED,
    CREATED_SPEC,
    DEVICES,
    child_labels,
    stage_job_name,
)
from finetune_operator.manifests.model_cache import (
    cache_config,
    cache_volume,
    image_config,
    image_volume,
    whole_model,
)
from finetune_operator.manifests.pod_entries import apply_pod_entries
from finetune_operator.manifests.pod_origin import origin_annotations
from finetune_operator.manifests.pod_security import container_security, pod_security
from finetune_operator.manifests.pod_sizing import (
    MODELS_LIMIT,
    disk_volume,
    serving_resources,
    serving_shared_memory,
)
from finetune_operator.manifests.queueing import choose_queue, make_queue_labels
from finetune_operator.manifests.revision import Revision, api_keys_secret
from finetune_operator.manifests.trainer_config import choose_trainer, config_variable, store_config
from finetune_operator.manifests.volumes import key_volume, memory_volume, scratch_volume, store_volume
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import SERVE_PODS
from finetune_trainer.contract.environment import (
    CONFIG_ENV,
    MODELS_MOUNT,
    SCRATCH_MOUNT,
    SERVE_PORT,
    TERMINATION_MESSAGE_PATH,
)
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.serving import FetchConfig, FetchItem

ENGINE_CONTAINER: Final = "engine"
FETCH_CONTAINER: Final = "fetch"
SERVICE_PORT: Final = 80


def endpoint_url(endpoint: InferenceDeployment) -> str:
    """Base URL for an OpenAI client: at the gateway if it has a hostname, else in the cluster."""
    traffic = endpoint.spec.traffic
    public = traffic.gateway.url if traffic is not None else None
    return public or f"http://{endpoint.name}.{endpoint.namespace}.svc/v1"


def build_service(
    endpoint: InferenceDeployment, selector: Mapping[str, str], uid: str | None = None
) -> Manifest:
    """The Service, which selects the endpoint's pods with these labels.

    Args:
        uid: uid of the existing Service, if its selector changes.
    """
    metadata = child_metadata(endpoint, endpoint.name)
    if uid is not None:
        metadata["uid"] = uid
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": {RUN: endpoint.uid, **selector},
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": SERVE_PORT, "protocol": "TCP"}],
        },
    }


def build_replicas(deployment: Manifest, replicas: int) -> Manifest:
    """The fields of an existing Deployment that scaling changes."""
    metadata = deployment["metadata"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
        "spec": {"replicas": replicas},
    }


def build_correction(deployment: Manifest, spec: Manifest) -> Manifest:
    """An existing Deployment with this spec, and an annotation with the generation that is corrected."""
    metadata = deployment["metadata"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            **{key: metadata[key] for key in ("name", "namespace", "uid")},
            "annotations": {CORRECTED: str(metadata["generation"])},
        },
        "spec": spec,
    }


def build_deployment(
    endpoint: InferenceDeployment, revision: Revision, image: str, image_pull_policy: str
) -> Manifest:
    """The Deployment of one revision: an init container fetches and verifies the models, the engine serves.

    Args:
        image: the operator's default image, which the profile can replace.
    """
    labels = child_labels(
        endpoint,
        **{
            REVISION: revision.name,
            PROFILE: revision.profile.name,
            DEVICES: str(endpoint.spec.compute.devices),
        },
    )
    queueing = make_queue_labels(choose_queue("serve", revision.profile, endpoint.spec.compute))
    template = apply_pod_entries(
        {
            "metadata": {"labels": labels | queueing},
            "spec": _pod(endpoint, revision, image, image_pull_policy),
        },
        revision.profile,
        SERVE_PODS,
        {RUN: endpoint.uid, REVISION: revision.name},
    )
    spec = {
        "progressDeadlineSeconds": endpoint.spec.strategy.progress_deadline_seconds,
        "revisionHistoryLimit": 0,
        "selector": {"matchLabels": {RUN: endpoint.uid, REVISION: revision.name}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": template,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": revision.name,
            "namespace": endpoint.namespace,
            "labels": labels | queueing,
            "annotations": {
                CREATED_SPEC: json.dumps(spec, sort_keys=True),
                **origin_annotations(revision.profile, template),
                **({BASE_MODEL_JOB: job} if (job := revision.base_model_job) is not None else {}),
            },
            "ownerReferences": [owner_reference(endpoint)],
        },
        "spec": {"replicas": endpoint.spec.replicas, **spec},
    }


def _pod(endpoint: InferenceDeployment, revision: Revision, image: str, image_pull_policy: str) -> Manifest:
    trainer, profile = choose_trainer(revision.profile, image), revision.profile
    engine = engine_of(profile)
    config = serving_config(endpoint, revision, trainer.contract)
    store = store_config(revision.store, revision.store_credentials)
    stored = store_volume(store)
    in_place = cache_volume(revision.cache_claim) + image_volume(revision.model_image)
    fetch = fetch_config(endpoint, revision, trainer.contract, store)
    keys_and_memory = key_volume(api_keys_secret(endpoint)) + memory_volume(
        serving_shared_memory(profile, config.accelerators) if engine.has_processes else None
    )
    common = {
        "imagePullPolicy": image_pull_policy,
        "terminationMessagePath": TERMINATION_MESSAGE_PATH,
        "terminationMessagePolicy": "File",
        "securityContext": container_security(),
    }
    models, scratch = (
        {"name": "models", "mountPath": MODELS_MOUNT},
        {"name": "scratch", "mountPath": SCRATCH_MOUNT},
    )
    pod: Manifest = {
        **pod_security(),
        "terminationGracePeriodSeconds": DRAIN_SECONDS + config.finish_seconds,
        "initContainers": [
            {
                "name": FETCH_CONTAINER,
                "image": trainer.image,
                **common,
                "env": [
                    config_variable(fetch),
                    {"name": "HOME", "value": SCRATCH_MOUNT},
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "256Mi"}},
                "volumeMounts": [*stored.mounts, models, scratch, *in_place.mounts],
            }
        ],
        "containers": [
            {
                "name": ENGINE_CONTAINER,
                "image": engine_image(profile, trainer.image),
                **common,
                **engine.container(config),
                "resources": engine_resources(
                    profile, endpoint.spec.compute.devices, engine.default_resources
                ),
                "volumeMounts": [
                    {**models, "readOnly": True},
                    scratch,
                    *keys_and_memory.mounts,
                    *in_place.mounts,
                ],
            }
        ],
        "volumes": [
            *stored.volumes,
            disk_volume("models", serving_resources(profile), MODELS_LIMIT),
            scratch_volume(engine.scratch_limit),
            *keys_and_memory.volumes,
            *in_place.volumes,
        ],
    }
    return {**pod, **_spread(endpoint, revision)}


def _spread(endpoint: InferenceDeployment, revision: Revision) -> Manifest:
    availability = endpoint.spec.availability
    if availability is None or not availability.topology_spread:
        return {}
    selector = {"matchLabels": {RUN: endpoint.uid, REVISION: revision.name}}
    constraints = [{**each.to_dict(), "labelSelector": selector} for each in availability.topology_spread]
    return {"topologySpreadConstraints": constraints}


def fetch_config(
    endpoint: InferenceDeployment, revision: Revision, contract: int, store: StoreConfig
) -> FetchConfig:
    """The config of the init container. `contract` is the version that the trainer image knows."""
    engine = engine_of(revision.profile)
    rank = engine.max_lora_rank
    config = serving_config(endpoint, revision, contract)
    return FetchConfig(
        contract=contract,
        owner=config.serve.owner,
        store=store,
        items=_items(revision),
        cache=cache_config(claim) if (claim := revision.cache_claim) is not None else None,
        image=image_config(image) if (image := revision.model_image) is not None else None,
        engine=revision.profile.spec.serving.engine,
        max_lora_rank=rank(config) if rank is not None and config.adapters else None,
    )


def fetched_items(deployment: Manifest) -> tuple[FetchItem, ...]:
    """The folders that the pods of a Deployment fetch; none if their config cannot be read."""
    pod = deployment["spec"]["template"]["spec"]
    variables = {
        variable["name"]: variable.get("value", "")
        for container in pod.get("initContainers", ())
        if container["name"] == FETCH_CONTAINER
        for variable in container.get("env", ())
    }
    try:
        return FetchConfig.model_validate_json(variables.get(CONFIG_ENV, "")).items
    except ValidationError:
        return ()


def _items(revision: Revision) -> tuple[FetchItem, ...]:
    is_cached = revision.cache_claim is not None or revision.model_image is not None
    base = FetchItem(artifact=whole_model(revision), folder=base_folder(revision), in_cache=is_cached)
    models = tuple(
        FetchItem(
            artifact=weights.artifact,
            folder=name,
            probe=weights.probe,
            merged=weights.merged,
            in_cache=is_cached and revision.is_full,
        )
        for name, weights in revision.models
    )
    return models if revision.is_full else (base, *models)


def preview_name(endpoint: InferenceDeployment) -> str:
    """`<endpoint>-preview`."""
    return f"{endpoint.name}-preview"


def preview_url(endpoint: InferenceDeployment) -> str:
    """Base URL for an OpenAI client in the cluster."""
    return f"http://{preview_name(endpoint)}.{endpoint.namespace}.svc/v1"


def build_preview_service(endpoint: InferenceDeployment, revision: str, uid: str | None = None) -> Manifest:
    """The preview Service, which selects this revision.

    Args:
        endpoint: owner of the Service.
        revision: name of the revision.
        uid: uid of the existing Service, if its selector changes.
    """
    service = build_service(endpoint, {REVISION: revision}, uid=uid)
    service["metadata"]["name"] = preview_name(endpoint)
    return service


REVISION_HEADER: Final = "x-finetune-revision"
"""Header of a request that only the revision with this name may answer."""
OPTIONAL_FIELDS: Final = frozenset(
    {
        "filters",
        "headers",
        "method",
        "name",
        "namespace",
        "port",
        "queryParams",
        "retry",
        "sectionName",
        "sessionPersistence",
        "timeouts",
    }
)
"""Fields of the parts of an HTTPRoute that have no default. A part that was written without them has none."""
API_PREFIX: Final = "/v1"
"""Path of the API. Other paths of the pods, such as those of metrics, are not routed."""


def build_revision_service(endpoint: InferenceDeployment, revision: str) -> Manifest:
    """The Service of one revision. Its name is that of the revision."""
    service = build_service(endpoint, {REVISION: revision})
    service["metadata"] |= {"name": revision, "labels": child_labels(endpoint, **{REVISION: revision})}
    return service


def build_http_route(
    endpoint: InferenceDeployment,
    gateway: EndpointGateway,
    weights: Mapping[str, int],
    pinned: Iterable[str],
    uid: str | None = None,
) -> Manifest:
    """The HTTPRoute.

    All fields that the API server sets by default are given, so that a read route equals it until a newer
    Gateway API has more of them.

    Args:
        endpoint: owner of the route.
        gateway: gateways and hostnames.
        weights: percent of the requests by revision.
        pinned: revisions that a request can choose by REVISION_HEADER.
        uid: uid of the existing route.
    """
    metadata = child_metadata(endpoint, endpoint.name)
    if uid is not None:
        metadata["uid"] = uid
    rules = [_rule({name: 1}, {REVISION_HEADER: name}) for name in pinned]
    spec: Manifest = {
        "parentRefs": [_parent(each) for each in gateway.parent_refs],
        "hostnames": list(gateway.hostnames),
    }
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.kind,
        "metadata": metadata,
        "spec": {**spec, "rules": [*rules, _rule(weights, {})]},
    }


def has_only_defaults_added(read: Any, written: Any) -> bool:
    """Whether a part of a route differs from the written one only by fields that may be defaults.

    These are fields that this release of the operator does not know, of a newer Gateway API.
    """
    if isinstance(written, dict):
        return (
            isinstance(read, dict)
            and not (read.keys() - written.keys()) & OPTIONAL_FIELDS
            and all(key in read and has_only_defaults_added(read[key], written[key]) for key in written)
        )
    if isinstance(written, list):
        return (
            isinstance(read, list)
            and len(read) == len(written)
            and all(map(has_only_defaults_added, read, written))
        )
    return bool(read == written)


def _parent(reference: GatewayReference) -> Manifest:
    return {"group": HTTP_ROUTE.api_version.partition("/")[0], "kind": "Gateway", **reference.to_dict()}


def _rule(weights: Mapping[str, int], headers: Mapping[str, str]) -> Manifest:
    match: Manifest = {"path": {"type": "PathPrefix", "value": API_PREFIX}}
    if headers:
        match["headers"] = [
            {"type": "Exact", "name": name, "value": value} for name, value in headers.items()
        ]
    backends = [
        {"group": "", "kind": SERVICE.kind, "name": name, "port": SERVICE_PORT, "weight": weight}
        for name, weight in weights.items()
    ]
    return {"matches": [match], "backendRefs": backends}


DEFAULT_MAX_UNAVAILABLE: Final = 1


def build_disruption_budget(endpoint: InferenceDeployment, revision: str) -> Manifest:
    """The PodDisruptionBudget of the serving revision.

    It does not cover other revisions: the pods of a starting revision, which are not ready, would use up the
    budget, and no node could be drained. Pods that are not ready may always be evicted, because they serve no
    requests.
    """
    selector = {"matchLabels": {RUN: endpoint.uid, REVISION: revision}}
    return _budget(endpoint, selector, {"maxUnavailable": _max_unavailable(endpoint)})


def build_shared_budget(endpoint: InferenceDeployment, weights: Mapping[str, int]) -> Manifest:
    """The PodDisruptionBudget of revisions that share the requests.

    It states the ready pods that must stay, which pods that are starting do not change.

    Args:
        endpoint: owner of the pods.
        weights: percent of the requests by revision.
    """
    revisions = {"key": REVISION, "operator": "In", "values": sorted(weights)}
    selector = {"matchLabels": {RUN: endpoint.uid}, "matchExpressions": [revisions]}
    min_available = max(endpoint.spec.replicas - _max_unavailable(endpoint), 0)
    return _budget(endpoint, selector, {"minAvailable": min_available})


def _max_unavailable(endpoint: InferenceDeployment) -> int:
    availability = endpoint.spec.availability
    given = availability.max_unavailable if availability is not None else None
    return DEFAULT_MAX_UNAVAILABLE if given is None else given


def _budget(endpoint: InferenceDeployment, selector: Manifest, limit: Manifest) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(endpoint, stage_job_name(endpoint, "budget")),
        "spec": {**limit, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }
