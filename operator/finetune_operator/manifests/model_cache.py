# SPDX-License-Identifier: Apache-2.0
"""The model cache: its volume or image, the models in it, and the config that fills it."""

from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.volumes import NO_VOLUMES, Volumes, one_volume
from finetune_trainer.contract.environment import MODEL_CACHE_MOUNT
from finetune_trainer.contract.references import ArtifactRef, ImageVolume, Owner, StoreConfig
from finetune_trainer.contract.serving import FillConfig


def cache_volume(claim: str | None, *, is_filled: bool = False) -> Volumes:
    """The volume of the cache; none without a claim.

    Args:
        is_filled: whether the pod writes to it.
    """
    if claim is None:
        return NO_VOLUMES
    source = {"claimName": claim, **({} if is_filled else {"readOnly": True})}
    return one_volume(
        "model-cache", {"persistentVolumeClaim": source}, MODEL_CACHE_MOUNT, read_only=not is_filled
    )


def image_volume(reference: str | None) -> Volumes:
    """The volume of an OCI image with a model, in place of the cache; none without an image."""
    if reference is None:
        return NO_VOLUMES
    image = {"reference": reference, "pullPolicy": "IfNotPresent"}
    return one_volume("model-image", {"image": image}, MODEL_CACHE_MOUNT)


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
