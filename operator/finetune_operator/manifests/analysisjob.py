"""The Job that analyzes a revision of an endpoint."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.manifests.jobs import Placement, build_stage_job
from finetune_operator.manifests.labels import ANALYZED, RUN
from finetune_operator.manifests.podtemplate import CredentialsMount, Storage
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainerimage import TrainerImage, trainer_of
from finetune_operator.plan import Manifest
from finetune_trainer.contract.analysis import AnalysisGateBound
from finetune_trainer.contract.configs.analyze import MAX_ANALYZED_PODS, AnalyzeConfig
from finetune_trainer.contract.environment import SERVE_PORT
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.contract.vocabulary import ANALYZE

METRICS_PORT_NAME: Final = "metrics"
MIN_ANALYSIS_CONTRACT: Final = 2
"""Contract of the first trainer that analyzes."""


@dataclass(frozen=True, slots=True)
class AnalysisImage:
    """Image of the Job's pod."""

    name: str
    pull_policy: str


def analysis_trainer(revision: Revision, default_image: str) -> TrainerImage:
    """The trainer image of the Job: that of the revision's profile if it can analyze, else the operator's."""
    trainer = trainer_of(revision.profile, default_image)
    return trainer if trainer.contract >= MIN_ANALYSIS_CONTRACT else trainer_of(None, default_image)


def metrics_urls(pods: Iterable[Manifest]) -> tuple[str, ...]:
    """URLs of the metrics of pods with an address, of at most MAX_ANALYZED_PODS of them."""
    addressed = [pod for pod in pods if pod.get("status", {}).get("podIP")]
    addressed.sort(key=lambda pod: str(pod["metadata"]["name"]))
    return tuple(map(_metrics_url, addressed[:MAX_ANALYZED_PODS]))


def _metrics_url(pod: Manifest) -> str:
    address = pod["status"]["podIP"]
    host = f"[{address}]" if ":" in address else address
    ports = [port for container in pod["spec"].get("containers", ()) for port in container.get("ports", ())]
    own = (port["containerPort"] for port in ports if port.get("name") == METRICS_PORT_NAME)
    # The built-in engine has its metrics on the port of its API.
    return f"http://{host}:{next(own, SERVE_PORT)}/metrics"


def analyze_config(
    endpoint: InferenceDeployment,
    contract: int,
    pods: tuple[str, ...],
    stable_pods: tuple[str, ...],
    *,
    duration_seconds: int,
    bake_seconds: int | None,
) -> AnalyzeConfig:
    """The config of the Job.

    Args:
        endpoint: endpoint with `spec.strategy.analysis`.
        contract: version of the contract that the trainer reads.
        pods: URLs of the metrics of the new revision's pods.
        stable_pods: those of the stable revision.
        duration_seconds: seconds of the measurement before it can pass.
        bake_seconds: seconds of the bake, in which only the new revision gets requests; None in a step.
    """
    settings = endpoint.spec.strategy.analysis
    assert settings is not None  # noqa: S101 - the caller checks
    owner = Owner(
        kind="InferenceDeployment", namespace=endpoint.namespace, name=endpoint.name, uid=endpoint.uid
    )
    return AnalyzeConfig(
        contract=contract,
        owner=owner,
        run=endpoint.uid,
        store=StoreConfig(uri="", path=""),
        pods=pods,
        stable_pods=stable_pods,
        baseline="Concurrent" if bake_seconds is None else "Past",
        gates=tuple(AnalysisGateBound(**gate.model_dump()) for gate in settings.gates),
        duration_seconds=duration_seconds,
        max_duration_seconds=settings.max_duration_seconds if bake_seconds is None else bake_seconds,
        whole_duration=bake_seconds is not None,
        min_requests=settings.min_requests,
    )


def build_analysis_job(
    endpoint: InferenceDeployment,
    name: str,
    config: AnalyzeConfig,
    image: AnalysisImage,
    nonce_key: str,
) -> Manifest:
    """The Job. Its pod has no label that a Service of the endpoint selects, so it gets no requests.

    It has no profile, because it uses no devices and must not wait in a queue for them.
    """
    placement = Placement(
        image=image.name,
        image_pull_policy=image.pull_policy,
        profile=None,
        storage=Storage(store=None),
        credentials=CredentialsMount(),
    )
    job = build_stage_job(endpoint, name, config, ANALYZE, placement, nonce_key=nonce_key)
    metadata = job["spec"]["template"]["metadata"]
    labels = {key: value for key, value in metadata["labels"].items() if key != RUN}
    job["spec"]["template"]["metadata"] = {**metadata, "labels": {**labels, ANALYZED: endpoint.uid}}
    return job
