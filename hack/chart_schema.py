# SPDX-License-Identifier: Apache-2.0
"""Generate the schema of the chart's values. It allows no other fields, so Helm rejects a misspelt name."""

import json
from collections.abc import Mapping
from typing import Any, Final

from finetune_operator.api.compute_profile import ComputeProfileSpec
from finetune_operator.api.crd import spec_schema
from finetune_operator.api.meta import DNS_LABEL
from finetune_operator.runtime.settings import Settings

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
FLAG: Final[Schema] = {"type": "boolean"}
TEXTS: Final[Schema] = {"type": "object", "additionalProperties": TEXT}
QUANTITIES: Final[Schema] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number"], "pattern": r"^[0-9.]+(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"},
}
COUNT_OR_SHARE: Final[Schema] = {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+%$"}
HONOR: Final[Schema] = {"type": "string", "enum": ["Honor", "Ignore"]}
DURATION: Final[Schema] = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}
KUBERNETES: Final[Schema] = {"type": "array", "items": {"type": "object"}}
"""Objects of Kubernetes, which the API server validates."""
NAME: Final[Schema] = {"type": "string", "pattern": DNS_LABEL, "maxLength": 63}
NAMES: Final[Schema] = {"type": "array", "items": NAME}
NAME_OR_NONE: Final[Schema] = {"type": "string", "pattern": rf"^$|{DNS_LABEL}", "maxLength": 40}
PULL_POLICY: Final[Schema] = {"type": "string", "enum": ["", "Always", "IfNotPresent", "Never"]}


def closed(**properties: Schema) -> Schema:
    """An object with these fields and no other."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


ID: Final[Schema] = {"type": "integer", "minimum": 0}
PROCESS: Final[Mapping[str, Schema]] = {
    "runAsNonRoot": FLAG,
    "runAsUser": ID,
    "runAsGroup": ID,
    "seccompProfile": closed(type=TEXT, localhostProfile=TEXT),
    "seLinuxOptions": TEXTS,
}
"""Fields that the security contexts of a pod and of a container share."""
SECRETS: Final[Schema] = {
    "type": "array",
    "items": {"oneOf": [NAME, {**closed(name=NAME), "required": ["name"]}]},
}
PROBE: Final[Schema] = closed(
    **{
        field: {"type": "integer", "minimum": 0}
        for field in (
            "initialDelaySeconds",
            "periodSeconds",
            "timeoutSeconds",
            "failureThreshold",
            "successThreshold",
        )
    }
)


def values_schema() -> str:
    """Text of values.schema.json; the schema of the default ComputeProfile comes from its model."""
    digest = {"type": "string", "pattern": r"^(sha256:[0-9a-f]{64})?$"}
    image = closed(
        registry=TEXT,
        repository={"type": "string", "minLength": 1},
        tag=TEXT,
        digest=digest,
        pullPolicy=PULL_POLICY,
    )
    image["required"] = ["repository"]
    schema = closed(
        nameOverride=NAME_OR_NONE,
        fullnameOverride=NAME_OR_NONE,
        commonLabels=TEXTS,
        image=image,
        trainerImage={
            **image,
            "properties": {**image["properties"], "securityFloor": _setting("trainer_image_floor")},
        },
        imagePullSecrets=SECRETS,
        serviceAccount=closed(create=FLAG, name={**NAME_OR_NONE, "maxLength": 63}, annotations=TEXTS),
        runner=closed(annotations=TEXTS, imagePullSecrets=SECRETS),
        replicas={"type": "integer", "minimum": 1, "maximum": 5},
        strategy=closed(
            type={"type": "string", "enum": ["RollingUpdate", "Recreate"]},
            rollingUpdate=closed(maxSurge=COUNT_OR_SHARE, maxUnavailable=COUNT_OR_SHARE),
        ),
        podDisruptionBudget=closed(enabled=FLAG, maxUnavailable=COUNT_OR_SHARE),
        topologySpreadConstraints={
            "type": "array",
            "items": {
                **closed(
                    topologyKey={"type": "string", "minLength": 1},
                    maxSkew={"type": "integer", "minimum": 1},
                    whenUnsatisfiable={"type": "string", "enum": ["ScheduleAnyway", "DoNotSchedule"]},
                    minDomains={"type": "integer", "minimum": 1},
                    nodeAffinityPolicy=HONOR,
                    nodeTaintsPolicy=HONOR,
                ),
                "required": ["topologyKey", "maxSkew", "whenUnsatisfiable"],
            },
        },
        watchNamespaces={**NAMES, "uniqueItems": True},
        workers=_setting("workers"),
        leaseDurationSeconds=_setting("lease_duration_seconds"),
        logLevel=_setting("log_level"),
        logFormat=_setting("log_format"),
        report=closed(enabled=FLAG),
        metrics=closed(
            secure=FLAG,
            certificateSecret={**NAME_OR_NONE, "maxLength": 63},
            maxSeriesPerKind=_setting("max_series_per_kind"),
        ),
        monitors=closed(
            enabled=FLAG,
            labels=TEXTS,
            annotations=TEXTS,
            interval=DURATION,
            scrapeTimeout={**DURATION, "pattern": rf"^$|{DURATION['pattern']}"},
            metricRelabelings=KUBERNETES,
        ),
        networkPolicies=closed(operator=FLAG, monitoringNamespace=_setting("monitoring_namespace")),
        kueue=closed(enabled=FLAG),
        gatewayAPI=closed(enabled=FLAG),
        alerts=closed(enabled=FLAG, labels=TEXTS, runbooks={"type": "string", "minLength": 1}),
        dashboard=closed(enabled=FLAG, labels=TEXTS),
        resources=closed(requests=QUANTITIES, limits=QUANTITIES),
        podSecurityContext=closed(
            **PROCESS,
            fsGroup=ID,
            fsGroupChangePolicy=TEXT,
            supplementalGroups={"type": "array", "items": ID},
        ),
        securityContext=closed(
            **PROCESS,
            allowPrivilegeEscalation=FLAG,
            readOnlyRootFilesystem=FLAG,
            capabilities=closed(add={"type": "array", "items": TEXT}, drop={"type": "array", "items": TEXT}),
        ),
        startupProbe=PROBE,
        livenessProbe=PROBE,
        readinessProbe=PROBE,
        extraEnv=KUBERNETES,
        extraArgs={"type": "array", "items": {"type": "string", "pattern": "^--[a-z-]+="}},
        extraVolumes=KUBERNETES,
        extraVolumeMounts=KUBERNETES,
        extraObjects={"type": "array", "items": {"type": ["object", "string"]}},
        nodeSelector=TEXTS,
        tolerations={
            "type": "array",
            "items": closed(
                key=TEXT, operator=TEXT, value=TEXT, effect=TEXT, tolerationSeconds={"type": "integer"}
            ),
        },
        affinity=closed(
            nodeAffinity={"type": "object"},
            podAffinity={"type": "object"},
            podAntiAffinity={"type": "object"},
        ),
        priorityClassName=TEXT,
        podLabels=TEXTS,
        podAnnotations=TEXTS,
        rbac=closed(aggregate=FLAG, approval=FLAG, checkProfiles=FLAG, listProfiles=FLAG),
        defaultProfile=closed(
            create=FLAG,
            name={"type": "string", "pattern": DNS_LABEL, "maxLength": 40},
            spec=_plain(spec_schema(ComputeProfileSpec)),
        ),
        # A parent chart may add values for its other subcharts.
        **{
            "global": {
                "type": "object",
                "properties": {"imageRegistry": TEXT, "imagePullSecrets": SECRETS},
            }
        },
    )
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, indent=2) + "\n"


def _setting(name: str) -> Schema:
    """Type and bounds of a setting of the operator process."""
    schema: Schema = Settings.model_json_schema()["properties"][name]
    return {
        key: value
        for key, value in schema.items()
        if key in {"type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern"}
    }


def _plain(node: Schema) -> Schema:
    """A structural schema as closed JSON Schema without defaults and Kubernetes extensions."""
    out = {key: value for key, value in node.items() if key != "default" and not key.startswith("x-")}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if out.pop(exclusive, False):
            out[exclusive] = out.pop(bound)
    if "properties" in out:
        out["properties"] = {name: _plain(child) for name, child in out["properties"].items()}
        out["additionalProperties"] = False
    elif isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = _plain(out["additionalProperties"])
    if "items" in out:
        out["items"] = _plain(out["items"])
    return out
