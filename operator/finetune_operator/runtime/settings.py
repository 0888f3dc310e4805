"""Settings of the process. Each is read from the environment variable of the same name in capitals."""

import os
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from finetune_operator.api.meta import DNS_LABEL
from finetune_operator.engine.listing import RELIST_SECONDS

NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
"""Label that Kubernetes sets on every namespace."""


class SettingsError(Exception):
    """An environment variable is missing or invalid; the message names it."""


class Settings(BaseModel):
    """All settings of a deployment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pod_namespace: Annotated[
        str,
        Field(min_length=1, description="Namespace of the Lease, the report certificate and the Service."),
    ]
    pod_name: Annotated[
        str, Field(min_length=1, description="Identity of this process as a holder of the Lease.")
    ] = f"{socket.gethostname()}-{os.getpid()}"
    pod_ip: Annotated[
        str, Field(description="Address of this pod for the report Service; empty: no report endpoint.")
    ] = ""
    trainer_image: Annotated[
        str, Field(min_length=1, description="Image of all stages, unless a ComputeProfile sets another.")
    ]
    trainer_image_floor: Annotated[
        str,
        Field(
            max_length=32,
            pattern=r"^(v?[0-9]+(\.[0-9]+)+)?$",
            description="Oldest version of the trainer image with all security fixes. Endpoints that"
            " serve with an older one are reported. Empty: no version is reported.",
        ),
    ] = ""
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"], Field(description="Pull policy of the trainer image.")
    ] = "IfNotPresent"
    watch_namespaces: Annotated[
        tuple[str, ...], Field(description="Comma-separated namespaces to watch; empty: all namespaces.")
    ] = ()
    workers: Annotated[int, Field(ge=1, le=64, description="Number of objects reconciled in parallel.")] = 16
    lease_name: Annotated[
        str, Field(min_length=1, description="Name of the Lease. One process with this Lease is active.")
    ] = "finetune-operator"
    lease_duration_seconds: Annotated[
        float, Field(ge=3, le=300, description="Seconds after its last renewal until a process is replaced.")
    ] = 15.0
    relist_seconds: Annotated[
        int,
        Field(
            ge=1,
            description="Seconds between two lists of each type, which find missed watch events, and"
            " between two passes for an object without changes.",
        ),
    ] = RELIST_SECONDS
    report_service: Annotated[
        str, Field(min_length=1, description="Service without a selector that pods report to.")
    ] = "finetune-operator-report"
    report_port: Annotated[int, Field(ge=1, le=65535, description="HTTPS port of the report endpoint.")] = (
        8443
    )
    monitoring_namespace: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            pattern=rf"{DNS_LABEL}|^\*$",
            description="Namespace whose pods may read metrics of pods with a NetworkPolicy of the operator."
            " *: pods of all namespaces.",
        ),
    ] = "monitoring"
    http_port: Annotated[
        int, Field(ge=1, le=65535, description="Port of /healthz, /readyz and /metrics.")
    ] = 8080
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="Min severity of logged records.")
    ] = "INFO"
    log_format: Annotated[
        Literal["json", "text"], Field(description="json: one object per line. text: for users.")
    ] = "json"

    @field_validator("watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @property
    def monitoring_labels(self) -> Mapping[str, str]:
        """Labels of the namespaces that `monitoring_namespace` selects."""
        return {} if self.monitoring_namespace == "*" else {NAMESPACE_NAME: self.monitoring_namespace}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings; empty variables count as absent.

        Raises:
            SettingsError: variables are missing or invalid; the message names all of them.
        """
        given = {
            name: environment[name.upper()] for name in cls.model_fields if environment.get(name.upper())
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
                for problem in error.errors()
            )
            raise SettingsError(f"correct these environment variables: {problems}") from error
