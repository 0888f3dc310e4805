# SPDX-License-Identifier: Apache-2.0
"""The Job that analyzes a revision of an endpoint."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import ANALYZED, RUN
from finetune_operator.api.rollout_analysis import RolloutAnalysis
from finetune_operator.manifests.jobs import JobInputs, build_stage_job
from finetune_operator.manifests.revision import Revision, api_keys_secret
from finetune_operator.manifests.trainer_config import owner_of_pod, store_config
from finetune_operator.manifests.volumes import key_volume, secret_mount
from finetune_operator.plan import Manifest
from finetune_trainer.contract.analysis import (
    DEFAULT_MIN_ROWS,
    AnalysisGateBound,
    PrometheusQuery,
    PrometheusSource,
)
from finetune_trainer.contract.configs import MAX_ANALYZED_PODS, AnalysisProbe, AnalyzeConfig, ProbedModel
from finetune_trainer.contract.environment import API_KEYS_MOUNT, CONFIG_ENV, SERVE_PORT, STORE_MOUNT
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.vocabulary import ANALYZE

METRICS_PORT_NAME: Final = "metrics"
DIGEST: Final = re.compile(r"\bsha256:[0-9a-f]{64}\b")


def api_urls(pods: Iterable[Manifest]) -> tuple[str, ...]:
    """Base URLs of the API of the same pods."""
    return tuple(f"http://{_host(pod)}:{SERVE_PORT}/v1" for pod in _analyzed(pods))


def metrics_urls(pods: Iterable[Manifest]) -> tuple[str, ...]:
    """URLs of the metrics of pods with an address, of at most MAX_ANALYZED_PODS of them."""
    return tuple(map(_metrics_url, _analyzed(pods)))


def served_digests(deployment: Manifest) -> tuple[str, ...]:
    """Digests in the configs of the pods of a revision: of all models that they serve, among others."""
    spec = deployment["spec"]["template"]["spec"]
    values = (
        variable.get("value", "")
        for part in ("initContainers", "containers")
        for container in spec.get(part, ())
        for variable in container.get("env", ())
        if variable["name"] == CONFIG_ENV
    )
    return tuple(sorted({digest for value in values for digest in DIGEST.findall(value)}))


def _analyzed(pods: Iterable[Manifest]) -> list[Manifest]:
    addressed = [pod for pod in pods if pod.get("status", {}).get("podIP")]
    addressed.sort(key=lambda pod: str(pod["metadata"]["name"]))
    return addressed[:MAX_ANALYZED_PODS]


def _host(pod: Manifest) -> str:
    address: str = pod["status"]["podIP"]
    return f"[{address}]" if ":" in address else address


def _metrics_url(pod: Manifest) -> str:
    ports = [port for container in pod["spec"].get("containers", ()) for port in container.get("ports", ())]
    own = (port["containerPort"] for port in ports if port.get("name") == METRICS_PORT_NAME)
    # The built-in engine has its metrics on the port of its API.
    return f"http://{_host(pod)}:{next(own, SERVE_PORT)}/metrics"


@dataclass(frozen=True, slots=True)
class MeasuredPods:
    """Ready pods of both revisions, and what the Job may send to them."""

    new: tuple[Manifest, ...]
    stable: tuple[Manifest, ...]
    probed: tuple[ProbedModel, ...] = ()
    """Models of the new revision, with the datasets whose test rows are sent to them."""
    digests: tuple[str, ...] = ()
    """Digests of the models that the pods of the new revision have, as `served_digests` returns them."""
    stable_digests: tuple[str, ...] = ()


def analyze_config(
    endpoint: InferenceDeployment,
    revision: Revision,
    contract: int,
    pods: MeasuredPods,
    *,
    stable: str,
    duration_seconds: int,
    bake_seconds: int | None,
) -> AnalyzeConfig:
    """The config of the Job.

    Args:
        endpoint: endpoint with `spec.strategy.analysis`.
        revision: the new revision.
        contract: version of the contract that the trainer reads.
        pods: the pods to measure.
        stable: name of the stable revision.
        duration_seconds: seconds of the measurement before it can pass.
        bake_seconds: seconds of the bake, in which only the new revision gets requests; None in a step.
    """
    settings = endpoint.spec.strategy.analysis
    assert settings is not None  # noqa: S101 - the caller checks
    owner = owner_of_pod(endpoint)
    store, probe = StoreConfig(uri="", path=""), None
    if settings.probe is not None:
        store = store_config(revision.store, revision.store_credentials)
        probe = AnalysisProbe(
            requests=settings.probe.requests,
            min_rows=settings.probe.min_rows or DEFAULT_MIN_ROWS,
            models=pods.probed,
            pods=api_urls(pods.new),
            stable_pods=api_urls(pods.stable),
            digests=pods.digests,
            stable_digests=pods.stable_digests,
            api_keys_path=API_KEYS_MOUNT if api_keys_secret(endpoint) is not None else None,
        )
    return AnalyzeConfig(
        contract=contract,
        owner=owner,
        run=endpoint.uid,
        store=store,
        pods=metrics_urls(pods.new),
        stable_pods=metrics_urls(pods.stable),
        baseline="Concurrent" if bake_seconds is None else "Past",
        gates=tuple(AnalysisGateBound(**gate.model_dump()) for gate in settings.gates),
        duration_seconds=duration_seconds,
        max_duration_seconds=settings.max_duration_seconds if bake_seconds is None else bake_seconds,
        whole_duration=bake_seconds is not None,
        min_requests=settings.min_requests,
        probe=probe,
        prometheus=_prometheus(endpoint, settings, revision, stable),
    )


def _prometheus(
    endpoint: InferenceDeployment, settings: RolloutAnalysis, revision: Revision, stable: str
) -> PrometheusSource | None:
    source = settings.prometheus
    if source is None:
        return None
    secret = source.credentials_secret_ref
    return PrometheusSource(
        address=source.address,
        credentials=secret_mount("prometheus", secret.name if secret else None),
        endpoint=endpoint.name,
        namespace=endpoint.namespace,
        revision=revision.name,
        stable_revision=stable,
        queries=tuple(PrometheusQuery(**query.model_dump()) for query in source.queries),
    )


def build_analysis_job(
    endpoint: InferenceDeployment, name: str, config: AnalyzeConfig, inputs: JobInputs
) -> Manifest:
    """The Job. Its pod has no label that a Service of the endpoint selects, so it gets no requests.

    Only with probes does it mount the store, read-only, and the API keys; with a Prometheus, its credentials.
    """
    job = build_stage_job(endpoint, name, ANALYZE, config, inputs)
    template = job["spec"]["template"]
    labels = {key: value for key, value in template["metadata"]["labels"].items() if key != RUN}
    template["metadata"] = {**template["metadata"], "labels": {**labels, ANALYZED: endpoint.uid}}
    (container,) = template["spec"]["containers"]
    if config.probe is not None:
        for mount in container["volumeMounts"]:
            if mount["mountPath"] == STORE_MOUNT:
                mount["readOnly"] = True
        keys = key_volume(api_keys_secret(endpoint))
        template["spec"]["volumes"] += keys.volumes
        container["volumeMounts"] += keys.mounts
    return job
