# SPDX-License-Identifier: Apache-2.0
"""InferenceDeployment: a long-lived endpoint that follows model lines or pins Checkpoints."""

from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.availability import Availability
from finetune_operator.api.compute import QueueChoice
from finetune_operator.api.endpoint_access import EndpointNetworkPolicy, EndpointTraffic
from finetune_operator.api.evaluation_metrics import (
    FRACTION_ADVICE,
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    OTHER_METRICS,
    MetricName,
)
from finetune_operator.api.meta import (
    CELRule,
    Conditions,
    Digest,
    Message,
    Model,
    Name,
    Resource,
    SecretReference,
    ShortName,
    Status,
    Uri,
    is_none_of,
    is_one_of,
    name_rules,
)
from finetune_operator.api.references import BASE_MODEL_SCHEME_RULE, REVISION_RULE, join_revision
from finetune_operator.api.rollout_analysis import RevisionAnalysis
from finetune_operator.api.rollout_strategy import RolloutDecisionFields, Strategy
from finetune_operator.api.serving import Serving
from finetune_trainer.contract.vocabulary import CheckpointType, join_names

MAX_REVISIONS: Final = 10
MAX_HISTORY_MODELS: Final = 64
"""Limit of the models of all revisions in a status, which keeps the status small."""
RevisionState = Literal[
    "RollingOut",
    "WaitingForCapacity",
    "Preview",
    "Canary",
    "Baking",
    "Live",
    "Standby",
    "Retired",
    "Failed",
    "RolledBack",
]
RevisionResult = Literal["Passed", "Promoted", "Failed", "Aborted"]


class RevisionModel(Model):
    """Weights that a revision serves under one name."""

    name: Annotated[ShortName, Field(description="Name of the model in the OpenAI API.")]
    checkpoint: Annotated[
        Name | None,
        Field(description="Checkpoint. Absent: the weights are pinned by uri, or are the base model."),
    ] = None
    digest: Annotated[Digest | None, Field(description="Digest of the weights.")] = None


class RevisionVerdict(Model):
    """Result of the rollout of a revision."""

    result: Annotated[
        RevisionResult,
        Field(
            description="Passed: what the strategy requires was met. Promoted: a decision promoted it."
            " Failed: it could not start, or not in time, or not serve. Aborted: a decision rolled it"
            " back."
        ),
    ]
    reason: Annotated[Message, Field(description="Reason of the decision.")] = ""


class RevisionStatus(Model):
    """One revision of the endpoint, with its own Deployment."""

    name: Annotated[Name, Field(description="Name of the revision.")]
    state: Annotated[
        RevisionState,
        Field(
            description="RollingOut: the pods are starting. WaitingForCapacity: no node or quota has room for"
            " them. Preview: it is ready, without requests. Canary: it has a part of the requests. Baking:"
            " it serves, and the old revision is kept. Live: it serves. Standby: it can get the requests"
            " back. Retired: another revision has replaced it. Failed: it could not start, or not in time."
            " RolledBack: the requests returned to another revision."
        ),
    ]
    weight: Annotated[
        int | None,
        Field(
            ge=0, le=100, description="Percent of the endpoint's requests that are routed to this revision."
        ),
    ] = None
    step: Annotated[
        int | None,
        Field(
            ge=0,
            le=100,
            description="Index, from 0, of the step of `spec.strategy` that the revision has reached."
            " Absent: the strategy has no steps.",
        ),
    ] = None
    spec_hash: Annotated[
        str,
        Field(
            max_length=16,
            description="Hash of the spec, without replicas, at the last attempt to start the revision.",
        ),
    ] = ""
    reason: Annotated[str, Field(max_length=64, description="Reason for the state.")] = ""
    message: Annotated[Message, Field(description="Details of the reason.")] = ""
    since: Annotated[datetime | None, Field(description="Time at which the state began.")] = None
    started_at: Annotated[
        datetime | None,
        Field(description="Time at which the last rollout of the revision began."),
    ] = None
    verdict: Annotated[
        RevisionVerdict | None, Field(description="Result of the rollout. Absent: it has not ended.")
    ] = None
    analysis: Annotated[
        RevisionAnalysis | None,
        Field(description="Result of the last analysis. Absent: the revision was not analyzed."),
    ] = None
    models: Annotated[
        tuple[RevisionModel, ...],
        Field(
            max_length=32,
            description="Models of the revision. To return to it, pin these Checkpoints. Absent for old"
            " revisions of an endpoint with many models.",
        ),
    ] = ()


class ObeyedDecision(RolloutDecisionFields):
    """Decision that the operator obeyed last."""

    at: Annotated[datetime, Field(description="Time at which the operator obeyed it.")]


class ServedModelStatus(Model):
    """Model that the endpoint serves under one name."""

    name: Annotated[ShortName, Field(description="Name of the model in the OpenAI API.")]
    checkpoint: Annotated[
        Name | None,
        Field(
            description="Checkpoint that is served. Absent: the weights are pinned by uri, or are the base"
            " model."
        ),
    ] = None
    digest: Annotated[Digest | None, Field(description="Digest of the weights that are served.")] = None
    since: Annotated[datetime | None, Field(description="Time since which these weights are served.")] = None


class EndpointCost(Model):
    """Devices that the endpoint's pods hold, and their price."""

    devices: Annotated[
        int,
        Field(
            description="Number of devices of the pods of all revisions that have a node, ready or not,"
            " including starting pods, previews, and revisions kept warm."
        ),
    ] = 0
    amount_per_hour: Annotated[
        float | None,
        Field(
            description="Price of these devices per hour, by cost.pricePerDeviceHour of their"
            " ComputeProfiles. Devices on a profile without a price are not included. Absent: without a"
            " price, or if the profiles of the revisions have several currencies."
        ),
    ] = None
    currency: Annotated[str | None, Field(description="Currency of the price.")] = None


class EndpointDisplay(Model):
    """Text for the columns of kubectl get. Programs must not read it."""

    models: Annotated[str | None, Field(description="Names of the models.")] = None
    ready: Annotated[str | None, Field(description="Ready replicas and desired replicas.")] = None
    weight: Annotated[
        str | None,
        Field(description="Percent of the requests of the serving revision, and of one that is rolling out."),
    ] = None
    verdict: Annotated[
        str | None, Field(description="Verdict on the newest revision, or its state without one.")
    ] = None
    cost_per_hour: Annotated[str | None, Field(description="Currency and price of `cost`.")] = None


class InferenceDeploymentStatus(Status):
    """Observed state of an endpoint."""

    base_model_uri: Annotated[
        str | None,
        Field(
            max_length=1200,
            description="URI of the base model that is served, and after @ its revision. Absent: it is known"
            " by its digest only.",
        ),
    ] = None
    base_model_digest: Annotated[
        str | None, Field(description="Digest of the base model that is served.")
    ] = None
    revision: Annotated[str, Field(max_length=63, description="Revision that the Service points at.")] = ""
    revisions: Annotated[
        tuple[RevisionStatus, ...],
        Field(max_length=MAX_REVISIONS, description="Most recent revisions of the endpoint, newest first."),
    ] = ()
    decision: Annotated[
        ObeyedDecision | None, Field(description="Decision of spec.strategy that was obeyed last.")
    ] = None
    models: Annotated[
        tuple[ServedModelStatus, ...],
        Field(max_length=32, description="Models that the endpoint serves now."),
    ] = ()
    replicas: Annotated[int, Field(description="Number of replicas of all revisions that get requests.")] = 0
    ready_replicas: Annotated[
        int, Field(description="Number of ready replicas of all revisions that get requests.")
    ] = 0
    selector: Annotated[
        str,
        Field(
            max_length=512,
            description="Label selector of the pods of all revisions that get requests, for a"
            " HorizontalPodAutoscaler.",
        ),
    ] = ""
    url: Annotated[
        str,
        Field(
            max_length=512,
            description="URL of the endpoint: the hostname of its gateway, or that of its Service.",
        ),
    ] = ""
    cost: EndpointCost | None = None
    display: EndpointDisplay | None = None
    conditions: Conditions = ()


class ServedBaseModel(Model):
    """Base model of the endpoint. The adapters of `models` must have been trained from it."""

    rules: ClassVar[tuple[CELRule, ...]] = (BASE_MODEL_SCHEME_RULE, REVISION_RULE)

    uri: Annotated[
        Uri,
        Field(
            description="URI of the base model, as in baseModel.uri of the FineTuneJob. The endpoint reads"
            " the model from the store. Without models, a Job puts it there first."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            max_length=128,
            description="Commit at the hub, as in spec.lineage of the Checkpoints; a branch name matches no"
            " Checkpoint. Without models also a branch or tag, which is resolved once. Default: any commit;"
            " without models main.",
        ),
    ] = None
    digest: Annotated[
        Digest | None,
        Field(
            description="Digest of the base model. Default: that of the first Checkpoint served, or of the"
            " files at uri, recorded in status.baseModelDigest."
        ),
    ] = None
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret with credentials for the model's server, only without models. Default: the"
            " role of the service account finetune-runner for object stores, or anonymous access."
        ),
    ] = None

    @property
    def source(self) -> str:
        """The uri, with the requested revision after @."""
        return join_revision(self.uri, self.revision)


class MinScore(Model):
    """Min score of a Checkpoint."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            f"{is_one_of('self.metric', OTHER_METRICS)} || self.min >= 0.0 && self.min <= 1.0",
            FRACTION_ADVICE,
            "min",
        ),
        CELRule(
            is_none_of("self.metric", LOWER_IS_BETTER),
            f"minScores.metric cannot be {join_names(LOWER_IS_BETTER, 'or')}, because a lower value is "
            "better and"
            f" min would refuse good models: use {HIGHER_IS_BETTER[0]} here, and max in a gate of the run",
            "metric",
        ),
    )

    metric: Annotated[MetricName, Field(description="Metric of the score.")]
    min: Annotated[float, Field(description="Min value of the metric for the tuned model, inclusive.")]
    evaluation: Annotated[
        ShortName | None,
        Field(
            description="Evaluation whose scores count. It must have measured the Checkpoint. Default: the"
            " scores of the run that made the Checkpoint."
        ),
    ] = None
    dataset_version: Annotated[
        Name | None,
        Field(
            description="DatasetVersion whose rows must have given the score. Without it, whoever may create"
            " Evaluations can replace one by another of the same name on easier rows. Default: any rows."
        ),
    ] = None


class Follow(Model):
    """Serve the champion of a model line."""

    model_line: Annotated[ShortName, Field(description="Name of the line to follow.")]
    require_approval: Annotated[
        bool,
        Field(description="Whether the endpoint takes only Checkpoints with spec.approval.state Approved."),
    ] = False
    min_scores: Annotated[
        tuple[MinScore, ...],
        Field(
            max_length=8,
            description="Min scores of a Checkpoint. The endpoint does not take a champion that misses one"
            " of them.",
        ),
    ] = ()


class Pin(Model):
    """Serve fixed weights. Set either checkpoint, or uri and digest."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.checkpoint) != has(self.uri)",
            "pin needs exactly one of checkpoint and uri: give one and leave the other out",
        ),
        CELRule(
            "has(self.uri) == has(self.digest)",
            "pin.uri and pin.digest belong together: give both, or name a Checkpoint with pin.checkpoint",
        ),
        CELRule(
            "!has(self.uri) || !has(self.digest)"
            " || self.uri.endsWith('/checkpoints/' + self.digest.substring(7))",
            "pin.uri is a folder of weights in a store and ends with /checkpoints/ and the digits of"
            " pin.digest: copy both from the spec of the Checkpoint",
            "uri",
        ),
        CELRule(
            "!has(self.checkpoint) || !has(self.type)",
            "pin.type needs pin.uri: remove it, because a Checkpoint records its own type",
            "type",
        ),
    )

    checkpoint: Annotated[Name | None, Field(description="Checkpoint in the same namespace.")] = None
    uri: Annotated[
        Uri | None,
        Field(
            description="Folder of weights in a store: spec.uri of a Checkpoint, which may be in another"
            " namespace or cluster. The base model must be in the same store."
        ),
    ] = None
    digest: Annotated[
        Digest | None, Field(description="spec.digest of that Checkpoint. The weights must have this digest.")
    ] = None
    type: Annotated[
        CheckpointType | None,
        Field(description="spec.type of that Checkpoint, only with uri. Default: Adapter."),
    ] = None
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret with credentials for the store of the weights. Default: the"
            " Secret that the Checkpoint was written with; with uri, none."
        ),
    ] = None


class ServedModel(Model):
    """Model that the endpoint serves under one name. Set either follow or pin."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.follow) != has(self.pin)",
            "a model needs exactly one of follow and pin: follow a model line, or pin one Checkpoint",
        ),
        CELRule(
            "self.name != 'base'", "name cannot be base, which is the base model: choose another name", "name"
        ),
    )

    name: Annotated[ShortName, Field(description="Name of the model in the OpenAI API.")]
    follow: Follow | None = None
    pin: Pin | None = None
    merge: Annotated[
        bool | None,
        Field(
            description="Whether to serve bfloat16 weights of the base model with the adapter merged into it,"
            " which a Job makes once for each Checkpoint and stores with it. For adapters that the engine"
            " cannot load, such as DoRA with VLLM. The endpoint then has this model only, and no base model."
            " No effect on fully fine-tuned models. Default: false."
        ),
    ] = None


class ServingCompute(QueueChoice):
    """ComputeProfile and devices of the endpoint."""

    profile: Annotated[
        Name | None,
        Field(description="ComputeProfile of the endpoint. Default: the cluster's default ComputeProfile."),
    ] = None
    devices: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Number of devices per replica. The engine Transformers spreads the layers of a model"
            " over its accelerators, which gives the model their memory and not their speed. VLLM splits each"
            " layer (tensor parallelism). CPU cores are threads of one process.",
        ),
    ] = 1


class InferenceDeploymentSpec(Model):
    """Desired state of an endpoint."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.baseModel) || size(self.models) > 0",
            "an endpoint needs models or baseModel: name a model line to follow or a Checkpoint to pin in"
            " models, or in baseModel a base model to serve alone",
            "models",
        ),
        CELRule(
            "has(self.baseModel) && has(self.baseModel.digest)"
            " || self.models.all(m, !has(m.pin) || !has(m.pin.uri))",
            "baseModel.digest is required if a model is pinned by uri: copy it from"
            " spec.lineage.baseModel.digest of the Checkpoint",
            "baseModel",
        ),
        CELRule(
            "size(self.models) == 0 || !has(self.baseModel) || !has(self.baseModel.credentialsSecretRef)",
            "baseModel.credentialsSecretRef is for an endpoint without models: remove it, because models are"
            " served with the base model in their store",
            "baseModel.credentialsSecretRef",
        ),
        CELRule(
            "!has(self.traffic) || !has(self.strategy.rollingUpdate)",
            "strategy.rollingUpdate splits requests by the replicas behind one Service, which a gateway does"
            " not use: use type Canary, or remove rollingUpdate",
            "strategy",
        ),
    )

    base_model: Annotated[
        ServedBaseModel | None,
        Field(
            description="Base model of the endpoint. Default: that of the Checkpoint of the first model that"
            " has one; models of another base model wait."
        ),
    ] = None
    models: Annotated[
        tuple[ServedModel, ...],
        Field(
            max_length=32,
            json_schema_extra={"x-list-map-keys": ["name"]},
            description="Models that the endpoint serves. Without any, it serves baseModel under the name of"
            " the endpoint.",
        ),
    ] = ()
    compute: ServingCompute = ServingCompute()
    replicas: Annotated[
        int, Field(ge=0, le=1000, description="Number of replicas. A HorizontalPodAutoscaler may set it.")
    ] = 1
    strategy: Strategy = Strategy()
    restarted_at: Annotated[
        datetime | None,
        Field(
            description="Time of the last requested restart. Each new value starts a new revision by"
            " `strategy`, with the operator's current image unless the ComputeProfile names an image."
            " Default: a new revision starts only for another model, profile or spec."
        ),
    ] = None
    serving: Serving | None = None
    availability: Availability | None = None
    network_policy: Annotated[
        EndpointNetworkPolicy | None,
        Field(description="NetworkPolicy of the endpoint's pods. Default: none, so every pod can connect."),
    ] = None
    traffic: Annotated[
        EndpointTraffic | None,
        Field(
            description="Routing of requests through the Gateway API, which must be installed. Default: only"
            " the Service of the endpoint."
        ),
    ] = None


class InferenceDeployment(Resource):
    """An OpenAI-compatible endpoint that serves a base model and its fine-tuned models."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *name_rules("InferenceDeployment"),
        CELRule(
            "!self.metadata.name.matches('^[0-9]')",
            "metadata.name of kind InferenceDeployment must begin with a letter, because its Service has the"
            " same name: put a letter in front",
        ),
    )

    kind: str = "InferenceDeployment"
    spec: InferenceDeploymentSpec
    status: InferenceDeploymentStatus = InferenceDeploymentStatus()

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models in the OpenAI API, without that of a base model with adapters."""
        return tuple(model.name for model in self.spec.models) or (self.name,)
