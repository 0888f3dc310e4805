"""What is seen of an endpoint: the status of an InferenceDeployment."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import Conditions, Digest, Message, Model, Name, ShortName, Status

MAX_REVISIONS: Final = 10
RevisionState = Literal["RollingOut", "Live", "Retired", "Failed"]


class RevisionStatus(Model):
    """One Deployment of this endpoint."""

    name: Name
    state: RevisionState
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
            description="Index, from 0, of the step of `spec.strategy` that the revision has reached. Absent:"
            " the strategy has no steps.",
        ),
    ] = None
    spec_hash: Annotated[
        str, Field(max_length=16, description="Of the spec, replicas left out, when it was last tried.")
    ] = ""
    reason: Annotated[str, Field(max_length=64)] = ""
    message: Message = ""
    since: datetime | None = None


class ServedModelStatus(Model):
    """What one model name serves now."""

    name: ShortName
    checkpoint: Name | None = None
    digest: Digest | None = None
    since: datetime | None = None


class EndpointDisplay(Model):
    """Text for `kubectl get`; for eyes only."""

    models: str | None = None
    ready: str | None = None


class InferenceDeploymentStatus(Status):
    """Observed state of an endpoint."""

    base_model_digest: str | None = None
    revision: Annotated[str, Field(max_length=63, description="The revision that the Service points at.")] = (
        ""
    )
    revisions: Annotated[tuple[RevisionStatus, ...], Field(max_length=MAX_REVISIONS)] = ()
    models: Annotated[tuple[ServedModelStatus, ...], Field(max_length=32)] = ()
    replicas: int = 0
    ready_replicas: int = 0
    selector: Annotated[str, Field(max_length=512)] = ""
    url: Annotated[str, Field(max_length=512)] = ""
    display: EndpointDisplay | None = None
    conditions: Conditions = ()
