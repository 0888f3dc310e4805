# SPDX-License-Identifier: Apache-2.0
"""References in specs: to a Dataset, to a store, and to a base model, with the rules for its source."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, JsonValue

from finetune_operator.api.meta import (
    URI_RULE,
    CELRule,
    Digest,
    Model,
    Name,
    SecretReference,
    ShortName,
    StoreUri,
    Uri,
)


class DatasetReference(Model):
    """Reference to a Dataset and to one of its versions."""

    name: Annotated[ShortName, Field(description="Name of the Dataset.")]
    version: Annotated[
        Name | None,
        Field(
            description="DatasetVersion to use. Default: the newest at the start, recorded in"
            " status.resolved.datasetVersion."
        ),
    ] = None


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


def join_revision(uri: str, revision: str | None) -> str:
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
