# SPDX-License-Identifier: Apache-2.0
"""The model cache of a ComputeProfile."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import CELRule, Digest, Model, Name, pattern_advice

IMAGE_BY_DIGEST: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$"


class ModelImage(Model):
    """OCI image with the files of one whole model."""

    model: Annotated[
        Digest,
        Field(
            description="Digest of the model in the image: a base model, as in status.baseModelDigest of its"
            " endpoints, or a fully fine-tuned Checkpoint."
        ),
    ]
    reference: Annotated[
        str,
        Field(
            min_length=1,
            max_length=512,
            pattern=IMAGE_BY_DIGEST,
            description="Reference of the image by digest, for example"
            " registry.example/models/llama@sha256:… with 64 hexadecimal digits. Its layers are tar archives"
            " with the files of the model at the root.",
            json_schema_extra=pattern_advice(
                IMAGE_BY_DIGEST,
                "name the image by its digest, REPOSITORY@sha256:DIGEST, so that its content cannot change",
            ),
        ),
    ]


class ModelCache(Model):
    """Where the pods of endpoints read whole models in place: a volume in each namespace, or OCI images.

    Set either claim or images.
    """

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.claim) != has(self.images)",
            "modelCache needs exactly one of claim and images: a PersistentVolumeClaim in each namespace, or"
            " OCI images by digest",
        ),
    )

    claim: Annotated[
        Name | None,
        Field(
            description="Name of a PersistentVolumeClaim that exists in the namespace of each endpoint with"
            " the profile. It must be ReadWriteMany, or ReadWriteOnce with singleNode, and not the claim of"
            " the store. Only Jobs of the operator write to it; the pods of endpoints mount it read-only."
        ),
    ] = None
    images: Annotated[
        tuple[ModelImage, ...] | None,
        Field(
            min_length=1,
            max_length=32,
            description="OCI images with models, which the pods of endpoints mount read-only as image"
            " volumes (Kubernetes 1.35 or newer). The pods copy models without an image from the store.",
            json_schema_extra={"x-list-map-keys": ["model"]},
        ),
    ] = None
