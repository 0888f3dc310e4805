# SPDX-License-Identifier: Apache-2.0
"""A revision of an endpoint. Its name is a hash of what users of the endpoint chose.

The fields of profiles and endpoints in this hash are chosen so that no upgrade starts a revision.
"""

import json
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any, Final

from finetune_operator.api.compute_profile import BUILT_IN, ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.api.serving import Serving
from finetune_operator.manifests.labels import revision_name
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.stage_table import SERVE_PODS
from finetune_trainer.contract.vocabulary import FULL_MODEL

HASHED: Final = frozenset(
    {"resources", "node_selector", "tolerations", "runtime_class_name", "resource_claims"}
)
"""Fields of the entries for `serve` whose edit starts a new revision: where its pods can run, and with
what."""

EMPTY: Final[tuple[Any, ...]] = ({}, [])
"""Values of a setting that is given and yet chooses nothing."""


def hashed_pods(pods: PodTemplate) -> dict[str, Any]:
    """The hashed fields of what holds for an endpoint's pods, by wire names. Defaults are left out."""
    return pods.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=set(HASHED))


def hashed_choices(endpoint: InferenceDeployment, api_keys_secret: str | None) -> dict[str, Any]:
    """Choices of users that later releases added; part of the name only if set."""
    spec = endpoint.spec
    chosen: dict[str, Any] = {}
    if spec.restarted_at is not None:
        chosen["restartedAt"] = spec.restarted_at.astimezone(UTC).isoformat()
    if api_keys_secret is not None:
        chosen["apiKeysSecret"] = api_keys_secret
    serving = _serving(spec.serving)
    if serving:
        chosen["serving"] = serving
    queueing = {
        "queueName": spec.compute.queue_name,
        "workloadPriorityClass": spec.compute.workload_priority_class,
    }
    if any(queueing.values()):
        chosen["queueing"] = queueing
    if spec.availability is not None and spec.availability.topology_spread:
        chosen["topologySpread"] = [each.to_dict() for each in spec.availability.topology_spread]
    return chosen


def _serving(serving: Serving | None) -> dict[str, Any]:
    """Settings of the server that are set, by wire names. The Secret of the keys has an entry of its own."""
    if serving is None:
        return {}
    fields = serving.to_dict()
    fields.pop("apiKeysSecretRef", None)
    return {name: value for name, value in fields.items() if value not in EMPTY}


@dataclass(frozen=True, slots=True)
class Revision:
    """Models of one Deployment, and the profile that it runs on."""

    name: str
    base_digest: str
    models: tuple[tuple[str, WeightsReference], ...]
    profile: ComputeProfile
    store: str
    """URI of the store of the models."""
    store_credentials: str | None = None
    """Name of the Secret with the credentials of the store."""

    @property
    def cache_claim(self) -> str | None:
        """Claim of the model cache; None: each pod copies its models."""
        cache = self.profile.spec.serving.model_cache
        return cache.claim if cache is not None else None

    @property
    def model_image(self) -> str | None:
        """OCI image with its whole model; None if the profile has no image of it."""
        cache = self.profile.spec.serving.model_cache
        if cache is None or cache.images is None or self.merged is not None:
            return None
        model = self.models[0][1].digest if self.is_full else self.base_digest
        return next((image.reference for image in cache.images if image.model == model), None)

    @property
    def base_model_job(self) -> str | None:
        """Name of the Job that stored its base model; None unless it serves a base model alone."""
        return next((weights.stored_by for _, weights in self.models if weights.is_base), None)

    @property
    def merged(self) -> WeightsReference | None:
        """The adapter that is served as a whole model, merged into the base model."""
        return next((weights for _, weights in self.models if weights.is_merged), None)

    def with_merged(self, weights_digest: str, probe: str) -> "Revision":
        """The revision with the digests of its merged weights and of what they predict."""
        models = tuple(
            (name, replace(weights, merged=weights_digest, probe=probe) if weights.is_merged else weights)
            for name, weights in self.models
        )
        return replace(self, models=models)

    @property
    def is_full(self) -> bool:
        """Whether the revision serves a full model instead of a base model with adapters."""
        return any(weights.type == FULL_MODEL for _, weights in self.models)


def build_revision(
    endpoint: InferenceDeployment,
    base_digest: str,
    models: tuple[tuple[str, WeightsReference], ...],
    profile: ComputeProfile,
    store: str,
) -> Revision:
    """The revision for these models.

    The operator's default image is not part of the name, so that an upgrade restarts no endpoint. A setting
    that a later release adds is part of the name only if set. Of the entries of the profile's `pods`, only
    `HASHED` is part of it.
    """
    spec = profile.spec
    inputs: dict[str, Any] = {
        "base": base_digest,
        "models": [(name, weights.digest, weights.type) for name, weights in models],
        "image": spec.images.trainer,
        "devices": endpoint.spec.compute.devices,
        "resource": spec.accelerator.resource,
        "engine": spec.serving.engine,
        "pods": hashed_pods(spec.pods_of(SERVE_PODS)),
    }
    arguments = {name: weights.chat_template_kwargs for name, weights in models}
    if any(arguments.values()):
        inputs["chatTemplateKwargs"] = arguments
    if spec.serving.engine != BUILT_IN:
        inputs["engineImage"] = spec.images.engine
    if any(weights.is_merged for _, weights in models):
        inputs["merged"] = [name for name, weights in models if weights.is_merged]
    if spec.serving.model_cache is not None and spec.serving.model_cache.claim is not None:
        inputs["modelCache"] = spec.serving.model_cache.claim
    inputs |= hashed_choices(endpoint, api_keys_secret(endpoint))
    # The credentials of any model work for the store.
    secret = next((weights.credentials for _, weights in models if weights.credentials), None)
    if any(weights.checkpoint is None for _, weights in models):
        # The store of a Checkpoint never changes, but that of a pin may.
        inputs["store"] = [store, secret]
    revision = Revision("", base_digest, models, profile, store, secret)
    if revision.model_image is not None:
        inputs["modelImage"] = revision.model_image
    name = revision_name(endpoint.name, endpoint.uid, json.dumps(inputs, sort_keys=True))
    return replace(revision, name=name)


def api_keys_secret(endpoint: InferenceDeployment) -> str | None:
    """Name of the Secret with the API keys, or None if requests need no key."""
    serving = endpoint.spec.serving
    secret = serving.api_keys_secret_ref if serving is not None else None
    return secret.name if secret is not None else None
