# SPDX-License-Identifier: Apache-2.0
"""Actions and views of a team in its namespace, with Checkpoints and endpoints."""

from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.manifests import condition
from tests.integration.operators import Operator
from tests.waiting import eventually
from tools.fakepods import digest

BASE = digest("base", "pvc://models/tiny")
FOLLOWS: Object = {"name": "routing", "follow": {"modelLine": "ticket-routing"}}
SETTLES_SECONDS = 60


def checkpoint(namespace: str, name: str) -> Object:
    """A Checkpoint of the line `ticket-routing` whose run does not exist."""
    spec = {
        "modelLine": "ticket-routing",
        "digest": digest(name),
        "type": "Adapter",
        "step": 40,
        "epoch": 2,
        "uri": weights(name),
        "lineage": {
            "baseModel": {"uri": "pvc://models/tiny", "digest": BASE},
            "datasetVersion": "tickets-1a2b3c4d5e6f",
            "job": {"name": "gone", "uid": "gone"},
            "method": {"objective": "SFT", "type": "LoRA"},
            "adapter": {"r": 16},
            "hyperparameters": manifests.HYPERPARAMETERS,
            "trainerImage": "registry.example/trainer:1",
        },
    }
    return manifests.of("Checkpoint", namespace, name, spec)


class Team:
    """A team in one namespace."""

    def __init__(self, api: Api, namespace: str, operator: Operator) -> None:
        self.api = api
        self.namespace = namespace
        self.operator = operator

    def record(self, name: str) -> None:
        """Create a Checkpoint without its run, as after a restore or a cleanup."""
        self.api.create(checkpoint(self.namespace, name))

    def judge(self, checkpoint: str, state: str | None, reason: str = "") -> None:
        """Approve or reject a Checkpoint; without a state, withdraw that."""
        approval = {"state": state, "reason": reason} if state else None
        self.api.patch("Checkpoint", self.namespace, checkpoint, {"spec": {"approval": approval}})

    def serve(self, *models: Object, name: str = "support", **base_model: str) -> None:
        endpoint = manifests.inferencedeployment(self.namespace, name)
        endpoint["spec"]["models"] = list(models)
        endpoint["spec"]["baseModel"] |= base_model
        self.api.apply(endpoint)

    def endpoint(self, name: str = "support") -> Object:
        found = self.api.get("InferenceDeployment", self.namespace, name)
        assert found is not None
        return found

    def served(self, name: str = "support") -> Object:
        """By model name: the Checkpoint that it serves, or the digest of pinned weights."""
        models = self.endpoint(name)["status"].get("models", [])
        return {model["name"]: model.get("checkpoint") or model["digest"] for model in models}

    def until_served(self, name: str = "support", **models: str) -> None:
        eventually(
            f"{name} serves {models}",
            lambda: self.served(name) == models and condition(self.endpoint(name), "Ready"),
            SETTLES_SECONDS,
            lambda: f"{self.endpoint(name)}\n{self.operator.log[-4000:]}",
        )

    def until_reason(self, kind: str, name: str, type_: str, reason: str) -> str:
        """Wait until the condition has this reason, and return its message."""
        found = eventually(
            f"{type_} of {kind} {name} is {reason}",
            lambda: (
                present
                if (present := condition(self.api.get(kind, self.namespace, name), type_)).get("reason")
                == reason
                else None
            ),
            SETTLES_SECONDS,
            lambda: f"{self.api.get(kind, self.namespace, name)}\n{self.operator.log[-4000:]}",
        )
        message: str = found["message"]
        return message


def weights(name: str) -> str:
    return f"pvc://artifacts/checkpoints/{digest(name).removeprefix('sha256:')}"
