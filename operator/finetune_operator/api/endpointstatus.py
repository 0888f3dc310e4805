# SPDX-License-Identifier: Apache-2.0
"""Status of an InferenceDeployment."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import Conditions, Digest, Message, Model, Name, ShortName, Status
from finetune_operator.api.rolloutanalysis import RevisionAnalysis
from finetune_operator.api.rolloutstrategy import RolloutDecisionFields

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
