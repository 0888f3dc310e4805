# SPDX-License-Identifier: Apache-2.0
"""Reference to the store."""

from typing import Annotated, ClassVar, Final

from pydantic import Field, JsonValue

from finetune_operator.api.meta import URI_RULE, CELRule, Model, SecretReference, StoreUri

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
