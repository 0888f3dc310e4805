# SPDX-License-Identifier: Apache-2.0
"""An OCI image with one whole model, which a serving pod mounts and reads in place."""

import logging
import os
from pathlib import Path
from typing import Final

from finetune_trainer.contract.references import ImageVolume
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.manifest import Manifest
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store.failures import Mount, verify_files, verify_names

REBUILD: Final = (
    "build the image again from the folder of the model in the store, and name its new digest in"
    " serving.modelCache.images of the ComputeProfile"
)

logger = logging.getLogger(__name__)


def verified_image(image: ImageVolume, manifest: Manifest) -> Path:
    """Return the folder of the model after each file was verified.

    Nothing can be recorded in an image, so each pod hashes the files when it starts. Raises StageFailure:
    ARTIFACT_NOT_FOUND if the image is mounted as an empty folder, ARTIFACT_CORRUPT naming the file.
    """
    folder = Path(image.path)
    mount = Mount(image.reference, folder)
    logger.info("verifying image %s: %d bytes", image.reference, manifest.total_bytes)
    try:
        if not any(folder.iterdir()):
            raise StageFailure(
                FailureReason.ARTIFACT_NOT_FOUND,
                f"image {image.reference} is mounted as an empty folder. Either its layers are not tar"
                " archives, as in artifacts that `oras push` makes, or the cluster has no image volumes"
                f" (Kubernetes 1.35 or newer has them): {REBUILD}, or remove its entry",
            )
        verify_names(folder, manifest, named=mount.named, advice=REBUILD)
        verify_files(folder, manifest, named=mount.named, advice=REBUILD)
    except OSError as error:
        place = mount.named(Path(os.fsdecode(error.filename)) if error.filename is not None else folder)
        raise StageFailure(
            FailureReason.ARTIFACT_CORRUPT,
            f"image {image.reference}: {place}: {error.strerror or error}; all users must be able to read the"
            f" files and folders of the image: {REBUILD}",
        ) from error
    return folder
