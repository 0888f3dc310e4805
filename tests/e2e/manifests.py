# SPDX-License-Identifier: Apache-2.0
"""Manifests of a team and of the platform team for the end-to-end tests."""

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

from finetune_client.backend import Object
from finetune_operator.api.meta import API_VERSION

MODEL_URI: Final = "pvc://models/tiny"
PROMPTS: Final = tuple(
    f"{subject} {what}?"
    for what in ("late", "lost", "paid")
    for subject in ("order", "invoice", "card", "box", "ticket", "password", "parcel", "refund")
)
"""Split by `dataset`: 18 training, 3 validation and 3 test rows. Three steps of 8 rows per epoch."""

SHORT: Final = {"epochs": 15, "learningRate": 0.01}
"""45 steps: enough to learn the one answer for all prompts, including held-out ones."""
LONG: Final = {"epochs": 80, "learningRate": 0.01}
"""240 steps: seconds of training, so that a test can interrupt it."""
SAVED: Final = {"stateEverySteps": 5}

OWN: Final = uuid.uuid4().hex[:5]
"""Part of the names of cluster-scoped objects, so that two suites can share a cluster."""
CPU: Final = f"e2e-cpu-{OWN}"
"""Profile whose devices are CPU cores."""
GPU: Final = f"e2e-gpu-{OWN}"
"""Profile whose devices are the node's GPUs."""

SMALL: Final = {
    "prepare": {"cpu": "20m", "memory": "256Mi"},
    "preflight": {"cpu": "150m", "memory": "2Gi"},
    "train": {"cpu": "150m", "memory": "2Gi"},
    "evaluate": {"cpu": "150m", "memory": "2Gi"},
    "serve": {"cpu": "150m", "memory": "2Gi"},
}
"""Small requests, so that many pods fit on two cores."""


def sized(sizes: Mapping[str, Object]) -> list[Object]:
    """Entries of a profile's `pods` with the size of each stage."""
    return [{"stages": [stage], "resources": size} for stage, size in sizes.items()]


def of(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def jsonl(answer: str, prompts: Iterable[str] = PROMPTS) -> str:
    """One row per prompt, all with the same answer, which the tiny model can learn."""
    return "".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt in prompts)


def configmap(name: str, rows: str) -> Object:
    """A ConfigMap with rows under the key `rows.jsonl`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"rows.jsonl": rows},
    }


def claim(name: str) -> Object:
    """A claim that any cluster with one node can bind; the profiles are for one node."""
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def left_out(manifest: Object) -> Object:
    """The patch with which kustomize leaves an object out."""
    identity = {key: manifest[key] for key in ("apiVersion", "kind", "metadata")}
    return {**identity, "$patch": "delete"}


def credentials(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "finetune.dev/credentials",
        "metadata": {"name": name},
        "stringData": {"endpoint": "https://rows.example", "token": "of-no-use"},
    }


def profile(name: str, resource: str = "cpu") -> Object:
    return of(
        "ComputeProfile",
        name,
        {
            "accelerator": {"resource": resource, "maxPerPod": 2},
            "pods": sized(SMALL),
            "store": {"uri": "pvc://artifacts", "accessMode": "ReadWriteOnce"},
        },
    )


def source(configmap_name: str) -> Object:
    """A source with a split in which every part gets rows of PROMPTS."""
    return {
        "source": {"uri": f"configmap://{configmap_name}/rows.jsonl"},
        "split": {"validation": 0.1, "test": 0.2},
    }


def own_rows(configmap_name: str) -> Object:
    """Rows of a run that has no Dataset."""
    return {"source": {"uri": f"configmap://{configmap_name}/rows.jsonl"}}


def dataset(name: str, configmap_name: str, **spec: Any) -> Object:
    rows = source(configmap_name)
    return of("Dataset", name, {"sources": [rows["source"]], "split": rows["split"], **spec})


def finetunejob(name: str, **spec: Any) -> Object:
    """A short LoRA run on the Dataset `tickets` with its own model line, promoted without an evaluation."""
    return of(
        "FineTuneJob",
        name,
        {
            "modelLine": name,
            "baseModel": {"uri": MODEL_URI},
            "dataset": {"ref": {"name": "tickets"}},
            "method": {"type": "LoRA", "lora": {"r": 8, "alpha": 16, "dropout": 0}},
            "hyperparameters": SHORT,
            "compute": {"profile": CPU},
            "promotion": {"mode": "Always"},
            **spec,
        },
    )


def judged(*gates: Object) -> Object:
    """Fields of a FineTuneJob's spec for a promotion only if it passes these gates."""
    return {"evaluation": {"gates": list(gates)}, "promotion": {"mode": "ByGates"}}


BAR: Final = (
    {"metric": "exact_match", "min": 0.8},
    {"metric": "exact_match", "minGain": 0.3, "over": "Base"},
)
"""Gates that a model passes after it has learned the one answer."""


def endpoint(name: str, line: str) -> Object:
    """An endpoint that serves the champion of a line under the model name `tuned`."""
    return of(
        "InferenceDeployment",
        name,
        {
            "baseModel": {"uri": MODEL_URI},
            "models": [{"name": "tuned", "follow": {"modelLine": line}}],
            "compute": {"profile": CPU},
        },
    )
