# SPDX-License-Identifier: Apache-2.0
"""Settings of the process. Each is read from the environment variable of the same name in capitals."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from finetune_operator.api.meta import DNS_LABEL
from finetune_operator.engine.store import MAX_NAMESPACE_MEBIBYTES
from finetune_operator.engine.watches import RELIST_SECONDS
from finetune_operator.metrics.object_gauges import MAX_SERIES_PER_KIND

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
    runner_annotations: Annotated[
        Mapping[str, str],
        Field(
            default_factory=dict,
            description="Annotations of each new service account finetune-runner, as a JSON object."
            " {namespace} in a value becomes its namespace.",
        ),
    ]
    runner_image_pull_secrets: Annotated[
        tuple[str, ...],
        Field(description="Comma-separated names of pull secrets of each new service account of pods."),
    ] = ()
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
    max_namespace_mebibytes: Annotated[
        int,
        Field(
            ge=1,
            description="MiB of memory for the objects of one namespace, so that no tenant uses up that of"
            " the process. In a namespace that needs more, the operator changes nothing.",
        ),
    ] = MAX_NAMESPACE_MEBIBYTES
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
        int,
        Field(
            ge=1,
            le=65535,
            description="Port of /healthz and /readyz, and of /metrics without metrics_port.",
        ),
    ] = 8080
    metrics_port: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="HTTPS port of /metrics for tokens of users that may get that URL. 0: none.",
        ),
    ] = 0
    metrics_service: Annotated[
        str, Field(min_length=1, description="Service of /metrics, for its certificate.")
    ] = "finetune-operator-metrics"
    metrics_certificate: Annotated[
        str,
        Field(
            description="Folder with tls.crt and tls.key for metrics_port. Empty: a new certificate that no"
            " CA has signed."
        ),
    ] = ""
    max_series_per_kind: Annotated[
        int,
        Field(
            ge=100,
            le=20_000,
            description="Objects of a kind with metrics of their own. If there are more, those with a problem"
            " come first.",
        ),
    ] = MAX_SERIES_PER_KIND
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="Min severity of logged records.")
    ] = "INFO"
    log_format: Annotated[
        Literal["json", "text"], Field(description="json: one object per line. text: for users.")
    ] = "json"

    @field_validator("watch_namespaces", "runner_image_pull_secrets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("runner_annotations", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @property
    def monitoring_labels(self) -> Mapping[str, str]:
        """Labels of the namespaces that `monitoring_namespace` selects."""
        return {} if self.monitoring_namespace == "*" else {NAMESPACE_NAME: self.monitoring_namespace}

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, arguments: Sequence[str] = ()
    ) -> Self:
        """Read the settings; empty variables count as absent.

        Args:
            environment: the environment variables.
            arguments: `--SETTING=VALUE`, such as `--relist-seconds=300`, which replace variables.

        Raises:
            SettingsError: arguments are unknown, or variables are missing or invalid; the message names all
                of them.
        """
        given = {
            name: environment[name.upper()] for name in cls.model_fields if environment.get(name.upper())
        } | cls._of_arguments(arguments)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
                for problem in error.errors()
            )
            raise SettingsError(f"correct these environment variables: {problems}") from error

    @classmethod
    def _of_arguments(cls, arguments: Sequence[str]) -> dict[str, str]:
        given, unknown = {}, []
        for argument in arguments:
            name, equals, value = argument.partition("=")
            setting = name.removeprefix("--").replace("-", "_")
            if name.startswith("--") and equals and setting in cls.model_fields:
                given[setting] = value
            else:
                unknown.append(argument)
        if unknown:
            raise SettingsError(f"arguments have the form --SETTING=VALUE; remove {', '.join(unknown)}")
        return given
