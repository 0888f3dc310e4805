"""InferenceDeployment: a long-lived endpoint that follows model lines or pins checkpoints."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.basemodel import BASE_MODEL_SCHEME_RULE, REVISION_RULE
from finetune_operator.api.cel import is_none_of, is_one_of
from finetune_operator.api.endpointaccess import Availability, EndpointNetworkPolicy
from finetune_operator.api.endpointstatus import InferenceDeploymentStatus
from finetune_operator.api.meta import (
    Digest,
    Model,
    Name,
    Resource,
    Rule,
    SecretReference,
    ShortName,
    Uri,
    name_rules,
)
from finetune_operator.api.metricrules import (
    FRACTION_ADVICE,
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    OTHERS,
)
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.vocabulary import CheckpointType, listed


class ServedBaseModel(Model):
    """The base model that every served adapter must have been trained from."""

    rules: ClassVar[tuple[Rule, ...]] = (BASE_MODEL_SCHEME_RULE, REVISION_RULE)

    uri: Annotated[
        Uri, Field(description="The uri of the FineTuneJob's baseModel. It is served from the store.")
    ]
    revision: Annotated[
        str | None,
        Field(
            max_length=128,
            description="Commit at the hub, as in spec.lineage of the Checkpoints; absent: any. The name of a"
            " branch matches none.",
        ),
    ] = None
    digest: Annotated[
        Digest | None, Field(description="Absent: that of the first checkpoint served, kept in status.")
    ] = None


class MinScore(Model):
    """A score that a checkpoint must have before this endpoint takes it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"{is_one_of('self.metric', OTHERS)} || self.min >= 0.0 && self.min <= 1.0",
            FRACTION_ADVICE,
            "min",
        ),
        Rule(
            is_none_of("self.metric", LOWER_IS_BETTER),
            f"{listed(LOWER_IS_BETTER)} is the better the lower it is, so that at least so much of it keeps"
            f" good models out: use {HIGHER_IS_BETTER[0]} here, and max in a gate of the run",
            "metric",
        ),
    )

    metric: Metric
    min: float


class Follow(Model):
    """Serve the champion of a model line."""

    model: ShortName
    require_approval: Annotated[
        bool, Field(description="Take only checkpoints whose spec.approval.state is Approved.")
    ] = False
    min_scores: Annotated[
        tuple[MinScore, ...], Field(max_length=8, description="Take only checkpoints this good.")
    ] = ()


class Pin(Model):
    """Serve exactly this."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.checkpoint) != has(self.uri)",
            "pin needs exactly one of checkpoint and uri: give one and leave the other out",
        ),
        Rule(
            "has(self.uri) == has(self.digest)",
            "pin.uri and pin.digest belong together: give both, or name a Checkpoint with pin.checkpoint",
        ),
        Rule(
            "!has(self.uri) || !has(self.digest)"
            " || self.uri.endsWith('/checkpoints/' + self.digest.substring(7))",
            "pin.uri is a folder of weights in a store and ends with /checkpoints/ and the digits of"
            " pin.digest: copy both from the spec of the Checkpoint",
            "uri",
        ),
        Rule(
            "!has(self.checkpoint) || !has(self.type)",
            "pin.type goes with pin.uri: a Checkpoint says itself what it holds",
            "type",
        ),
    )

    checkpoint: Annotated[Name | None, Field(description="A Checkpoint in the same namespace.")] = None
    uri: Annotated[
        Uri | None,
        Field(
            description="Folder of weights in a store: the spec.uri of a Checkpoint, also of one in another"
            " namespace or cluster. Their base model is in the same store."
        ),
    ] = None
    digest: Annotated[
        Digest | None, Field(description="The spec.digest of that Checkpoint; what is served must have it.")
    ] = None
    type: Annotated[
        CheckpointType | None,
        Field(description="With uri: the spec.type of that Checkpoint; absent: Adapter."),
    ] = None
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(description="Opens their store; absent: what the Checkpoint was written with, or nothing."),
    ] = None


class ServedModel(Model):
    """One model name of the endpoint."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.follow) != has(self.pin)",
            "a model needs exactly one of follow and pin: follow a model line, or pin one Checkpoint",
        ),
        Rule(
            "self.name != 'base'", "the name base is taken by the base model itself: choose another", "name"
        ),
    )

    name: Annotated[ShortName, Field(description="Model name in the OpenAI API.")]
    follow: Annotated[Follow | None, Field(description="Follow a model line's champion.")] = None
    pin: Annotated[Pin | None, Field(description="Serve one checkpoint for good.")] = None


class ServingCompute(Model):
    """What to serve on."""

    profile: Annotated[Name | None, Field(description="A ComputeProfile; absent: the cluster's default.")] = (
        None
    )
    devices: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Devices per replica. Engine Transformers uses one accelerator: more are refused with"
            " reason TooManyDevices. CPU cores are threads of one process. Default: 1.",
        ),
    ] = 1


class Strategy(Model):
    """How a new revision replaces the old one."""

    type: Annotated[
        Literal["RollingUpdate"], Field(description="The new revision is ready before the old one goes.")
    ] = "RollingUpdate"
    progress_deadline_seconds: Annotated[
        int, Field(ge=10, le=86400, description="A revision not ready by then is rolled back.")
    ] = 600


class Serving(Model):
    """How the engine answers."""

    api_keys_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret in the same namespace whose values are API keys, each under a name of its"
            " own that does not begin with a dot. Requests need one of them as a bearer token; /health and"
            " /metrics need none. A changed Secret takes effect within about two minutes, without a restart;"
            " another Secret starts a new revision. Absent: requests need no key."
        ),
    ] = None


class InferenceDeploymentSpec(Model):
    """Desired state of an endpoint."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.baseModel.digest) || self.models.all(m, !has(m.pin) || !has(m.pin.uri))",
            "baseModel.digest is needed where a model is pinned by uri: copy it from"
            " spec.lineage.baseModel.digest of the Checkpoint",
            "baseModel",
        ),
    )

    base_model: ServedBaseModel
    models: Annotated[
        tuple[ServedModel, ...],
        Field(min_length=1, max_length=32, json_schema_extra={"x-list-map-keys": ["name"]}),
    ]
    compute: ServingCompute = ServingCompute()
    replicas: Annotated[
        int, Field(ge=0, le=1000, description="Replicas; a HorizontalPodAutoscaler may set it.")
    ] = 1
    strategy: Strategy = Strategy()
    restarted_at: Annotated[
        datetime | None,
        Field(
            description="Time at which the endpoint was last asked to restart. Each new value starts a new"
            " revision by `strategy`, with the operator's current image unless the ComputeProfile names one."
            " Absent: only another model, profile or spec starts one."
        ),
    ] = None
    serving: Annotated[Serving | None, Field(description="How the engine answers.")] = None
    availability: Annotated[
        Availability | None,
        Field(description="How replicas are spread, and how many of them evictions may take at a time."),
    ] = None
    network_policy: Annotated[
        EndpointNetworkPolicy | None,
        Field(
            description="NetworkPolicy of the endpoint's pods. Absent: none, so that every pod can connect."
        ),
    ] = None


class InferenceDeployment(Resource):
    """An OpenAI-compatible endpoint that serves a base model and its fine-tuned models."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *name_rules("InferenceDeployment"),
        Rule(
            "!self.metadata.name.matches('^[0-9]')",
            "metadata.name of kind InferenceDeployment begins with a letter, because its Service has the same"
            " name: put a letter in front",
        ),
    )

    kind: str = "InferenceDeployment"
    spec: InferenceDeploymentSpec
    status: InferenceDeploymentStatus = InferenceDeploymentStatus()
