"""Where artifacts are kept."""

from typing import Annotated, ClassVar

from pydantic import Field

from finetune_operator.api.meta import Model, Rule, SecretReference, StoreUri


class StoreReference(Model):
    """Where datasets, base models, checkpoints and run state are kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
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
            description="pvc://CLAIM or pvc://CLAIM/FOLDER in the same namespace, or s3://BUCKET/FOLDER,"
            " gs://BUCKET/FOLDER, abfs://CONTAINER/FOLDER."
        ),
    ]
    credentials_secret_ref: Annotated[
        SecretReference | None, Field(description="Secret with the store's credentials.")
    ] = None
