# SPDX-License-Identifier: Apache-2.0
"""A namespace with one endpoint, on a cluster of its own, that serves Gemma 3 270M from a claim."""

import json
import shutil
import time
from collections.abc import Mapping
from typing import Any, Final

from finetune_client.access import Access
from finetune_client.backend import Object
from finetune_operator.api.meta import API_VERSION
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.model.bundle import read_base_bundle
from finetune_trainer.store import open_store
from tools.bench.page import BenchError
from tools.cluster.commands import becomes_true, until
from tools.cluster.layout import DEFAULT_NAME, Layout
from tools.models import gemma
from tools.peers.serving.servers import CONTEXT, KEY, MAX_STREAMS, MODEL

NAMESPACE: Final = "serving-bench"
NAME: Final = "bench"
"""Of the ComputeProfile and the endpoint."""
KIND: Final = "InferenceDeployment"
READY_SECONDS: Final = 900
CLAIM_SECONDS: Final = 60


class BenchNamespace:
    """The namespace, with the model in a claim and API keys in a Secret."""

    def __init__(self, access: Access) -> None:
        self.access = access
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "2Gi"}},
        }
        self.apply(named("Namespace", NAMESPACE, None))
        self.apply(
            named("PersistentVolumeClaim", "artifacts") | {"spec": claim},
            named("Secret", "keys") | {"stringData": {"bench": KEY}},
        )
        self._digest = self._publish()

    def serve(self, profile: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        """Create the endpoint, and wait until it is ready.

        Args:
            profile: fields of the ComputeProfile that depend on the engine.
            spec: fields of the endpoint in addition to those of its model.
        """
        common = {
            "accelerator": {"resource": "cpu", "maxPerPod": 2},
            "store": {"uri": "pvc://artifacts", "accessMode": "ReadWriteOnce"},
        }
        uri = f"pvc://artifacts/checkpoints/{self._digest.removeprefix('sha256:')}"
        pin = {"uri": uri, "digest": self._digest, "type": "Full"}
        model = {
            "baseModel": {"uri": "pvc://artifacts/gemma", "digest": self._digest},
            "models": [{"name": MODEL, "pin": pin}],
            "compute": {"profile": NAME},
        }
        self.apply(
            named("ComputeProfile", NAME, None, API_VERSION) | {"spec": {**common, **profile}},
            named(KIND, NAME, NAMESPACE, API_VERSION) | {"spec": {**model, **spec}},
        )
        self.until_ready()

    def change(self, spec: Mapping[str, Any]) -> float:
        """Change the spec of the endpoint. Returns the seconds until it is ready."""
        begin = time.perf_counter()
        patch = json.dumps({"spec": spec})
        scope = f"--namespace={NAMESPACE}"
        self.access.kubectl(scope, "patch", "infd", NAME, "--type=merge", f"--patch={patch}")
        self.until_ready()
        return time.perf_counter() - begin

    def until_ready(self) -> None:
        """Wait until the operator reports the present spec as ready.

        Raises:
            BenchError: it is not ready in time, or stalled.
        """
        becomes_true(lambda: self._reported() & {"Ready", "Stalled"} != set(), READY_SECONDS)
        if "Ready" not in self._reported():
            status = (self.access.object(KIND, NAMESPACE, NAME) or {}).get("status")
            raise BenchError(f"the endpoint is not ready: {json.dumps(status)}")

    def apply(self, *manifests: Object) -> None:
        """Create or update objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        self.access.kubectl("apply", "--server-side", "--filename=-", text=text)

    def _reported(self) -> set[str]:
        """Conditions of the present spec that are true."""
        found = self.access.object(KIND, NAMESPACE, NAME) or {}
        conditions = found.get("status", {}).get("conditions", [])
        return {
            each["type"]
            for each in conditions
            if each["status"] == "True" and each.get("observedGeneration") == found["metadata"]["generation"]
        }

    def _publish(self) -> str:
        """Publish the model as weights of the type Full in the folder of the claim. Returns the digest."""
        scope, uid = f"--namespace={NAMESPACE}", "--output=jsonpath={.metadata.uid}"
        claim = self.access.kubectl(scope, "get", "pvc", "artifacts", uid)
        folder = Layout.of(DEFAULT_NAME).volumes / claim
        until("the folder of the claim", folder.exists, seconds=CLAIM_SECONDS)
        store = open_store(StoreConfig(uri="pvc://artifacts", path=str(folder)))
        with store.staging() as staging:
            shutil.copytree(gemma(), staging, dirs_exist_ok=True)
            read_base_bundle(gemma()).write(staging)
            return store.publish("checkpoints", staging)


def serving(**fields: object) -> dict[str, Any]:
    """`spec.serving` with the limits of the benchmark and API keys."""
    limits = {"contextLength": CONTEXT, "maxConcurrentRequests": MAX_STREAMS}
    return {**limits, "apiKeysSecretRef": {"name": "keys"}, **fields}


def named(kind: str, name: str, namespace: str | None = NAMESPACE, version: str = "v1") -> Object:
    """An object without a spec; `namespace`: None for a kind of the cluster."""
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}
