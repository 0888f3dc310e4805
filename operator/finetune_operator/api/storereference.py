"""Reference to the store."""

from typing import Annotated, ClassVar

from pydantic import Field

from finetune_operator.api.meta import CELRule, Model, SecretReference, StoreUri


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
        Field(
            description="Location of the store: pvc://CLAIM or pvc://CLAIM/FOLDER in the same namespace,"
            " s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or abfs://CONTAINER/FOLDER."
        ),
    ]
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret of type finetune.dev/credentials for the store. Default: the role of the"
            " service account finetune-runner, or anonymous access."
        ),
    ] = None
