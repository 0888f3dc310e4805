# SPDX-License-Identifier: Apache-2.0
"""The model cache: its volume or image, the models in it, and the config that fills it."""

from finetune_operator.manifests.revision import Revision
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import MODEL_CACHE_MOUNT
from finetune_trainer.contract.references import ArtifactRef, ImageVolume, Owner, StoreConfig
from finetune_trainer.contract.serving import FillConfig


def cache_volume(claim: str | None, *, is_filled: bool = False) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes and mounts of the cache; none without a claim.

    Args:
        is_filled: whether the pod writes to it.
    """
    if claim is None:
        return [], []
    read_only = {} if is_filled else {"readOnly": True}
    return (
        [{"name": "model-cache", "persistentVolumeClaim": {"claimName": claim, **read_only}}],
        [{"name": "model-cache", "mountPath": MODEL_CACHE_MOUNT, **read_only}],
    )


def image_volume(reference: str | None) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes and mounts of an OCI image with a model, in place of the cache; none without an image."""
    if reference is None:
        return [], []
    image = {"reference": reference, "pullPolicy": "IfNotPresent"}
    return (
        [{"name": "model-image", "image": image}],
        [{"name": "model-image", "mountPath": MODEL_CACHE_MOUNT, "readOnly": True}],
    )


def image_config(reference: str) -> ImageVolume:
    """The image as a pod sees it."""
    return ImageVolume(reference=reference, path=MODEL_CACHE_MOUNT)


def cache_config(claim: str) -> StoreConfig:
    """The cache as a pod sees it."""
    return StoreConfig(uri=f"pvc://{claim}", path=MODEL_CACHE_MOUNT)


def whole_model(revision: Revision) -> ArtifactRef:
    """The model of a revision that is read in place; its adapters are copied."""
    if revision.is_full:
        return revision.models[0][1].artifact
    return ArtifactRef(kind="models", digest=revision.base_digest)


def fill_config(owner: Owner, store: StoreConfig, claim: str, revision: Revision, version: int) -> FillConfig:
    """The config of a pod that fills the cache. `version` is the contract that its trainer reads."""
    weights = revision.merged
    return FillConfig(
        contract=version,
        owner=owner,
        store=store,
        cache=cache_config(claim),
        artifact=whole_model(revision),
        merged=weights.merged if weights is not None else None,
    )
