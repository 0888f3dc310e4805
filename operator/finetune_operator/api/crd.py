# SPDX-License-Identifier: Apache-2.0
"""CustomResourceDefinitions of the kinds: the table of names, scope and columns, and the schemas.

The CRD generator, the watches and RBAC read the table `KINDS`. A schema is made from the pydantic models. It
is a structural subset of JSON Schema: references are inlined, `X | None` becomes X, unions are refused, and
CEL rules come from each model's `rules`.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_schedule import FineTuneSchedule
from finetune_operator.api.finetune_sweep import FineTuneSweep
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import (
    GROUP,
    VERSION,
    CELRule,
    Model,
    RequiredByRule,
    Reserved,
    ReservedValues,
    Resource,
)
from finetune_operator.plan import NEVER_OBSERVED


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    json_path: str
    type: str = "string"
    wide: bool = False
    """Whether it is shown only with `-o wide`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One custom resource definition."""

    model: type[Resource]
    plural: str
    short_name: str
    columns: tuple[Column, ...]
    namespaced: bool = True
    scale: bool = False

    @property
    def name(self) -> str:
        return self.model.__name__


AGE: Final = Column("Age", ".metadata.creationTimestamp", "date")

KINDS: Final[tuple[Kind, ...]] = (
    Kind(
        FineTuneJob,
        "finetunejobs",
        "ftj",
        (
            Column("Phase", ".status.phase"),
            Column("Progress", ".status.display.progress"),
            Column("Loss", ".status.display.loss"),
            Column("Score", ".status.display.score"),
            Column("ETA", ".status.display.eta"),
            Column("Predicted", ".status.display.predicted", wide=True),
            Column("Took", ".status.display.took", wide=True),
            Column("Cost", ".status.cost.amount", "number", wide=True),
            AGE,
        ),
    ),
    Kind(
        Dataset,
        "datasets",
        "dset",
        (
            Column("Phase", ".status.phase"),
            Column("Latest", ".status.latestVersion"),
            Column("Rows", ".status.rows", "integer"),
            Column("Problems", ".status.problemCount", "integer"),
            AGE,
        ),
    ),
    Kind(
        DatasetVersion,
        "datasetversions",
        "dsv",
        (
            Column("Dataset", ".spec.dataset"),
            Column("Rows", ".spec.rows", "integer"),
            Column("Digest", ".spec.digest"),
            AGE,
        ),
    ),
    Kind(
        Checkpoint,
        "checkpoints",
        "ckpt",
        (
            Column("Model-Line", ".spec.modelLine"),
            Column("Step", ".spec.step", "integer"),
            Column("Score", ".status.display.score"),
            Column("Promoted", '.status.conditions[?(@.type=="Promoted")].status'),
            Column("In-Use", ".status.display.inUse"),
            Column("Cost", ".spec.cost.amount", "number", wide=True),
            AGE,
        ),
    ),
    Kind(
        Evaluation,
        "evaluations",
        "eval",
        (
            Column("Phase", ".status.phase"),
            Column("Checkpoints", ".status.display.checkpoints"),
            Column("Score", ".status.display.score"),
            Column("Dataset", ".status.resolved.datasetVersion", wide=True),
            AGE,
        ),
    ),
    Kind(
        FineTuneSweep,
        "finetunesweeps",
        "ftsw",
        (
            Column("Phase", ".status.phase"),
            Column("Trials", ".status.display.trials"),
            Column("Best", ".status.best.values"),
            Column("Loss", ".status.best.objective", "number"),
            Column("Device-Hours", ".status.deviceHours", "number"),
            Column("Run", ".status.run", wide=True),
            AGE,
        ),
    ),
    Kind(
        FineTuneSchedule,
        "finetuneschedules",
        "fts",
        (
            Column("Triggers", ".status.display.triggers"),
            Column("Last", ".status.display.last"),
            Column("Next", ".status.display.next"),
            Column("Active", ".status.display.active"),
            Column("Suspended", ".spec.suspend", "boolean", wide=True),
            AGE,
        ),
    ),
    Kind(
        InferenceDeployment,
        "inferencedeployments",
        "infd",
        (
            Column("Models", ".status.display.models"),
            Column("Revision", ".status.revision"),
            Column("Weight", ".status.display.weight"),
            Column("Verdict", ".status.display.verdict"),
            Column("Ready", ".status.display.ready"),
            Column("URL", ".status.url"),
            Column("Devices", ".status.cost.devices", "integer", wide=True),
            Column("Cost-Per-Hour", ".status.display.costPerHour", wide=True),
            AGE,
        ),
        scale=True,
    ),
    Kind(
        ComputeProfile,
        "computeprofiles",
        "cprof",
        (
            Column("Device", ".spec.accelerator.resource"),
            Column("Max", ".spec.accelerator.maxPerPod", "integer"),
            Column("Engine", ".spec.serving.engine"),
            AGE,
        ),
        namespaced=False,
    ),
)
KINDS_BY_NAME: Final = {kind.name: kind for kind in KINDS}


Schema = dict[str, Any]

KEPT: Final = frozenset(
    {
        "type", "description", "default", "enum", "format", "pattern", "minimum", "maximum", "required",
        "minLength", "maxLength", "minItems", "maxItems", "maxProperties",
    }
)  # fmt: skip
PROTECTION: Final = {
    "helm.sh/resource-policy": "keep",
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
    "argocd.argoproj.io/sync-options": "Prune=false",
}
"""Annotations that keep Helm, Flux and Argo CD from deleting a definition with all objects of its kind."""
LIMITS: Final = {"string": ("maxLength", 1024), "array": ("maxItems", 64)}
"""Bounds for fields without their own; the API server refuses CEL over unbounded values for its cost."""


class _WithRules(GenerateJsonSchema):
    """Add the CEL rules of each model, and what its marks say about its fields."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        model = schema["cls"]
        if issubclass(model, Model):
            wanted = {
                field.alias or name: mark
                for name, field in model.model_fields.items()
                for mark in field.metadata
                if isinstance(mark, RequiredByRule)
            }
            rules = (*(mark.rule(alias) for alias, mark in wanted.items()), *model.rules)
            if rules:
                result["x-kubernetes-validations"] = validations(rules)
            if wanted:
                result["required"] = [alias for alias in result["required"] if alias not in wanted]
            for name, field in model.model_fields.items():
                marks = (mark for mark in field.metadata if isinstance(mark, Reserved | ReservedValues))
                for mark in marks:
                    node = result["properties"][field.alias or name]
                    node["description"] = _add_note(mark, node["description"])
        return result


def validations(rules: tuple[CELRule, ...]) -> list[dict[str, Any]]:
    """`x-kubernetes-validations` of one type."""
    return [_validation(rule) for rule in rules]


def _validation(rule: CELRule) -> dict[str, Any]:
    validation = {"rule": rule.rule, "message": rule.message}
    return validation | ({"fieldPath": f".{rule.field}"} if rule.field else {})


def _add_note(mark: Reserved | ReservedValues, description: str) -> str:
    if isinstance(mark, Reserved):
        return (
            "Not implemented in this release: setting it stalls the object with reason NotImplemented."
            f" {description}"
        )
    values = ", ".join(sorted(mark.values))
    return f"{description} {values}: not implemented in this release, and refused with reason NotImplemented."


def make_structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """One node of pydantic's JSON Schema as a structural schema.

    Raises:
        TypeError: where the node cannot be expressed, such as a union of two types.
    """
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        return make_structural({**target, **{k: v for k, v in node.items() if k != "$ref"}}, definitions)
    if "anyOf" in node:
        arms = [arm for arm in node["anyOf"] if arm.get("type") != "null"]
        if len(arms) != 1:
            raise TypeError(f"a union cannot be expressed in a CRD: {node}")
        return make_structural({**arms[0], **{k: v for k, v in node.items() if k != "anyOf"}}, definitions)
    out = _scalar_keywords(node)
    if node.get("x-kubernetes-preserve-unknown-fields"):
        out["x-kubernetes-preserve-unknown-fields"] = True
    elif "properties" in node:
        out["properties"] = {
            k: _replace_fractional_bounds(k, make_structural(v, definitions))
            for k, v in node["properties"].items()
        }
    elif isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = make_structural(node["additionalProperties"], definitions)
    if "items" in node:
        out["items"] = make_structural(node["items"], definitions)
    if "x-list-map-keys" in node:
        out["x-kubernetes-list-type"] = "map"
        out["x-kubernetes-list-map-keys"] = node["x-list-map-keys"]
    if "x-kubernetes-validations" in node:
        out["x-kubernetes-validations"] = node["x-kubernetes-validations"]
    return out


def _replace_fractional_bounds(name: str, node: Schema) -> Schema:
    """The node of field `name` with a rule in the place of bounds of which one has a fraction.

    The API server cuts the fraction of a bound off when it compares with an integer: it accepts 0 where the
    minimum is 0.5, and says "less than or equal to 0" about 1 where the maximum is 0.99.
    """
    signs = {("minimum", False): (">=", "at least"), ("minimum", True): (">", "above"),
             ("maximum", False): ("<=", "at most"), ("maximum", True): ("<", "below")}  # fmt: skip
    bounds = {key: node[key] for key in ("minimum", "maximum") if key in node}
    if all(float(bound).is_integer() for bound in bounds.values()):
        return node
    rest = {k: v for k, v in node.items() if k not in {*bounds, "exclusiveMinimum", "exclusiveMaximum"}}
    terms, words = [], []
    for key, bound in bounds.items():
        sign, word = signs[key, node.get(f"exclusive{key.capitalize()}", False)]
        terms.append(f"self {sign} {float(bound)}")
        words.append(f"{word} {bound:g}")
    text = " and ".join(words)
    return {
        **rest,
        "description": f"{node.get('description', '')} {text[0].upper()}{text[1:]}.".strip(),
        "x-kubernetes-validations": [
            *node.get("x-kubernetes-validations", ()),
            {"rule": " && ".join(terms), "message": f"{name} must be {text}"},
        ],
    }


def _scalar_keywords(node: Schema) -> Schema:
    out = {k: v for k, v in node.items() if k in KEPT and not (k == "default" and v is None)}
    if "description" in out:
        out["description"] = _paragraph(out["description"])
    if isinstance(out.get("default"), dict):
        # A structural default leaves absent fields out, because null has no type.
        out["default"] = {k: v for k, v in out["default"].items() if v is not None}
    if "const" in node:
        out["enum"] = [node["const"]]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            out[bound], out[exclusive] = node[exclusive], True
    if node.get("x-kubernetes-int-or-string"):
        return {**out, "x-kubernetes-int-or-string": True}
    if "type" not in out:
        raise TypeError(f"a type is missing: {node}")
    if out["type"] in LIMITS and "enum" not in out and out.get("format") != "date-time":
        out.setdefault(*LIMITS[out["type"]])
    return out


def _paragraph(text: str) -> str:
    """Join the lines of a docstring; `kubectl explain` wraps them again."""
    return " ".join(text.split())


def build_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of one model."""
    raw = model.model_json_schema(by_alias=True, schema_generator=_WithRules)
    return make_structural(raw, raw.get("$defs", {}))


def spec_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a spec, or of a part of one. Descriptions end with the default."""
    schema = build_schema(model)
    _describe_defaults(schema)
    return schema


def _describe_defaults(node: Schema) -> None:
    for child in node.get("properties", {}).values():
        default = child.get("default")
        # The defaults of an object are those of its fields.
        if default not in (None, [], "") and not isinstance(default, dict):
            child["description"] = f"{child.get('description', '')} Default: {_text(default)}.".strip()
        _describe_defaults(child.get("items", child))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value)


def build_crd(kind: Kind) -> Schema:
    """The CustomResourceDefinition of one kind."""
    spec_model, status_model = (
        cast(type[Model], kind.model.model_fields[part].annotation) for part in ("spec", "status")
    )
    status = build_schema(status_model)
    status["properties"].pop("observedGeneration")
    status["properties"] = {
        "observedGeneration": {
            "type": "integer",
            "format": "int64",
            "description": "Generation of the object that the status was computed for."
            f" {NEVER_OBSERVED}: none yet.",
        },
        **status["properties"],
    }
    for name, node in status["properties"].items():
        if name != "observedGeneration":
            node.pop("default", None)
    status.pop("required", None)
    status["default"] = {"observedGeneration": NEVER_OBSERVED}
    root: Schema = {
        "type": "object",
        "description": _paragraph(kind.model.__doc__ or ""),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(spec_model),
            "status": status,
        },
    }
    if kind.model.rules:
        root["x-kubernetes-validations"] = validations(kind.model.rules)
    subresources: Schema = {"status": {}}
    if kind.scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "finetune-operator"},
            "annotations": dict(PROTECTION),
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                # With a cluster-scoped kind in the category, `kubectl get finetune` fails with Forbidden for
                # users who have rights in namespaces only.
                **({"categories": ["finetune"]} if kind.namespaced else {}),
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": [
                        {"name": c.name, "type": c.type, "jsonPath": c.json_path}
                        | ({"priority": 1} if c.wide else {})
                        for c in kind.columns
                    ],
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }
