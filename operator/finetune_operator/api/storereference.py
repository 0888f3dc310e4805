# SPDX-License-Identifier: Apache-2.0
"""Reference to the store."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, JsonValue

from finetune_operator.api.meta import URI_RULE, CELRule, Model, SecretReference, StoreUri

AccessMode = Literal["ReadWriteMany", "ReadWriteOnce"]

NAMESPACE_PLACEHOLDER: Final = "{namespace}"
"""Text in `store.uri` of a ComputeProfile that is replaced by the namespace of the object that uses the
store."""

URI_DESCRIPTION: Final = (
    "Location of the store: pvc://CLAIM or pvc://CLAIM/FOLDER in the same namespace, s3://BUCKET/FOLDER,"
    " gs://BUCKET/FOLDER or abfs://CONTAINER/FOLDER."
)
WITHOUT_BRACES: Final[dict[str, JsonValue]] = {
    "rule": "!self.matches('[{}]')",
    "message": "uri must not have text in braces, because only spec.store of a ComputeProfile replaces"
    " {namespace}: write the namespace or folder itself, or omit store to use that of the profile",
}
"""A rule of the field, not of the type: an existing object that breaks it can still get other credentials."""


class StoreReference(Model):
    """Storage location of prepared rows, base models, Checkpoints and the state of runs."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.uri.startsWith('pvc://') || self.uri.startsWith('s3://') || self.uri.startsWith('gs://')"
            " || self.uri.startsWith('abfs://')",
            "uri must begin with pvc://, s3://, gs:// or abfs://, for example pvc://artifacts; for an object"
            " store of your own write s3://BUCKET/FOLDER and put its https:// address as endpoint into the"
            " credentials Secret",
            "uri",
        ),
    )

    uri: Annotated[
        StoreUri,
        Field(description=URI_DESCRIPTION),
    ]
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret with credentials for the store. Default: the role of the"
            " service account finetune-runner, or anonymous access."
        ),
    ] = None


class OwnStoreReference(StoreReference):
    """Store that an object names itself, in which nothing is replaced."""

    uri: Annotated[
        StoreUri,
        Field(
            description=URI_DESCRIPTION,
            json_schema_extra={"x-kubernetes-validations": [URI_RULE, WITHOUT_BRACES]},
        ),
    ]


class ProfileStoreReference(StoreReference):
    """Store of a ComputeProfile, with a folder per namespace if the uri names one."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *StoreReference.rules,
        CELRule(
            f"!self.uri.replace('{NAMESPACE_PLACEHOLDER}', '').matches(r'[{{}}]')",
            f"of text in braces, store.uri may only have {NAMESPACE_PLACEHOLDER}, the namespace of the run",
            "uri",
        ),
        CELRule(
            "self.accessMode != 'ReadWriteOnce' || self.uri.startsWith('pvc://')",
            "store.accessMode: ReadWriteOnce is for a claim, and store.uri is a bucket, which pods on all"
            " nodes can use: remove accessMode",
            "accessMode",
        ),
    )

    access_mode: Annotated[
        AccessMode,
        Field(
            description="Access mode that a PersistentVolumeClaim needs, as the store, as the own store of a"
            " run, and as serving.modelCache. ReadWriteOnce: all pods with the profile run on one node."
        ),
    ] = "ReadWriteMany"
