"""The model cache of a ComputeProfile."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model, Name


class ModelCache(Model):
    """Volume in each namespace with the whole models that endpoints read in place."""

    claim: Annotated[
        Name,
        Field(
            description="Name of a PersistentVolumeClaim that exists in the namespace of each endpoint with"
            " the profile. It must be ReadWriteMany, or ReadWriteOnce with singleNode, and not the claim of"
            " the store. Only Jobs of the operator write to it; the pods of endpoints mount it read-only."
        ),
    ]
