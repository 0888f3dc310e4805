# SPDX-License-Identifier: Apache-2.0
"""Base model of a run, and the rules for its source."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import CELRule, Digest, Model, Name, SecretReference, ShortName, Uri

BASE_MODEL_SCHEME_RULE: Final = CELRule(
    "!has(self.uri) || self.uri.startsWith('pvc://') || self.uri.startsWith('hf://')"
    " || self.uri.startsWith('s3://') || self.uri.startsWith('gs://') || self.uri.startsWith('abfs://')",
    "baseModel.uri must begin with pvc://, hf://, s3://, gs:// or abfs://, for example pvc://models/gemma-3-270m;"
    " put a model from a web server on a claim or in a bucket, or write hf:// and name a hub's mirror as"
    " endpoint in the credentials Secret",
    "uri",
)
REVISION_RULE: Final = CELRule(
    "!has(self.revision) || has(self.uri) && self.uri.startsWith('hf://')",
    "baseModel.revision is for models at the hub: remove it, or name the model with hf://",
    "revision",
)


class ChampionReference(Model):
    """Champion of a model line in the same namespace."""

    model_line: Annotated[
        ShortName | None,
        Field(description="Model line of the champion. Default: the model line of the run."),
    ] = None


def source_of(uri: str, revision: str | None) -> str:
    """Uri of a base model, with its revision after @."""
    return uri if revision is None else f"{uri}@{revision}"


class BaseModelReference(Model):
    """Model that training starts from: uri, checkpoint or champion. Only champion can be set with uri."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.uri) || has(self.checkpoint) || has(self.champion)",
            "baseModel names no model: set uri to start from a base model, checkpoint to continue from a"
            " Checkpoint, or champion to continue from the champion of a model line",
        ),
        CELRule(
            "!has(self.checkpoint) || !has(self.uri)",
            "baseModel.checkpoint has its own base model: remove baseModel.uri to continue from the"
            " Checkpoint, or baseModel.checkpoint to start from the base model",
            "uri",
        ),
        CELRule(
            "!has(self.checkpoint) || !has(self.champion)",
            "baseModel.checkpoint and baseModel.champion exclude each other: keep checkpoint to continue from"
            " that Checkpoint, or champion to continue from the champion of a model line",
            "champion",
        ),
        BASE_MODEL_SCHEME_RULE,
        REVISION_RULE,
    )

    uri: Annotated[
        Uri | None,
        Field(
            description="Folder with config.json, tokenizer and safetensors: pvc://CLAIM/FOLDER in the same"
            " namespace, hf://ORG/NAME, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or abfs://CONTAINER/FOLDER."
            " A model from the network is kept in the store for later runs. With champion: the model to start"
            " from if the model line has no champion; a champion must have been trained from it."
        ),
    ] = None
    revision: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=128,
            description="Branch, tag or commit of a model at the hub. status.resolved.baseModelRevision"
            " records the commit. Default: main.",
        ),
    ] = None
    digest: Annotated[
        Digest | None,
        Field(
            description="SHA-256 digest that the model's files must have. Default: any."
            " status.resolved.baseModelDigest records the digest."
        ),
    ] = None
    checkpoint: Annotated[
        Name | None,
        Field(
            description="Checkpoint to continue from, in the same namespace and in the run's store. The run"
            " has the same base model as that Checkpoint. An adapter continues with any method except Full,"
            " a full model only with Full."
        ),
    ] = None
    champion: Annotated[
        ChampionReference | None,
        Field(
            description="Champion to continue from: the one that the model line has when the run starts. The"
            " run waits for it if the line has none, or starts from uri if that is set. Later champions do"
            " not change the run. The same methods as for checkpoint can continue."
        ),
    ] = None
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret with credentials for the model's server. Default: the role"
            " of the service account finetune-runner for object stores, or anonymous access."
        ),
    ] = None
