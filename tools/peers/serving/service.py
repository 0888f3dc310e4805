"""python -m tools.peers.serving.service PAIRS: vLLM alone, and an endpoint of it behind its Service.

Runs in the namespaces of tools/cluster/isolation.py, with a cluster that it starts and stops.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from finetune_operator.api.meta import API_VERSION
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.store import open_store
from tools.bench.errors import BenchError
from tools.bootstrap.cache import cache_directory
from tools.cluster import TestCluster
from tools.cluster.layout import DEFAULT_NAME, Layout
from tools.cluster.waiting import until
from tools.demo.access import Access, Object
from tools.demo.install import images, install
from tools.images.nodeimages import Node
from tools.models import gemma
from tools.peers import vllmimage, vllmoncpu
from tools.peers.serving.servers import (
    CONTEXT,
    KEY,
    MAX_STREAMS,
    MODEL,
    RunningServer,
    ServersFolder,
    answers,
    client_of,
    running,
)
from tools.peers.serving.streams import alternating

NAMESPACE: Final = "serving-bench"
READY_SECONDS: Final = 400
CLAIM_SECONDS: Final = 60


def main(pairs: int) -> None:
    """Print the pairs as JSON on the last line."""
    parent = cache_directory() / "bench"
    with TestCluster(), TemporaryDirectory(dir=parent) as name:
        access = Access.from_environment()
        engine = vllmimage.load(Node())
        install(access, images())
        folder = ServersFolder.made_in(Path(name))
        with _endpoint(access, engine) as served, running(folder.vllm(guarded=False), folder.path) as bare:
            measured = alternating(bare, served, pairs)
    print(json.dumps([[asdict(each) for each in pair] for pair in measured]))


@contextmanager
def _endpoint(access: Access, engine: str) -> Iterator[RunningServer]:
    """An endpoint with API keys and a NetworkPolicy, reached by the address of its Service."""
    _apply(access, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    _apply(access, *_surroundings())
    digest = _publish(access)
    _apply(access, _profile(engine), _manifest(digest))
    ready = ("wait", "--for=condition=Ready", "infd/bench", f"--timeout={READY_SECONDS}s")
    access.kubectl(f"--namespace={NAMESPACE}", *ready)
    address, port = access.service_address(NAMESPACE, "bench")
    server = RunningServer(f"http://{address}:{port}", MODEL, None)
    with client_of(server.url) as client:
        if not answers(client, MODEL):
            raise BenchError("the endpoint is ready and does not answer")
    yield server


def _publish(access: Access) -> str:
    """Publish the model as weights of the type Full in the folder of the claim. Returns the digest."""
    scope, uid = f"--namespace={NAMESPACE}", "--output=jsonpath={.metadata.uid}"
    claim = access.kubectl(scope, "get", "pvc", "artifacts", uid)
    folder = Layout.of(DEFAULT_NAME).volumes / claim
    until("the folder of the claim", folder.exists, seconds=CLAIM_SECONDS)
    store = open_store(StoreConfig(uri="pvc://artifacts", path=str(folder)))
    with store.staging() as staging:
        shutil.copytree(gemma(), staging, dirs_exist_ok=True)
        return store.publish("checkpoints", staging)


def _surroundings() -> tuple[Object, ...]:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
    return (
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": _named("artifacts"), "spec": claim},
        {"apiVersion": "v1", "kind": "Secret", "metadata": _named("keys"), "stringData": {"bench": KEY}},
    )


def _profile(engine: str) -> Object:
    spec = {
        "devices": {"resource": "cpu", "max": 2},
        "engine": "VLLM",
        "images": {"engine": engine},
        "allowedEngineArguments": [argument.partition("=")[0] for argument in vllmoncpu.ARGUMENTS],
        "store": {"uri": "pvc://artifacts"},
        "singleNode": True,
        "resources": {"serve": {"cpu": "100m", "memory": "6Gi"}},
    }
    return {"apiVersion": API_VERSION, "kind": "ComputeProfile", "metadata": {"name": "bench"}, "spec": spec}


def _manifest(digest: str) -> Object:
    uri = f"pvc://artifacts/checkpoints/{digest.removeprefix('sha256:')}"
    spec = {
        "baseModel": {"uri": "pvc://artifacts/gemma", "digest": digest},
        "models": [{"name": MODEL, "pin": {"uri": uri, "digest": digest, "type": "Full"}}],
        "compute": {"profile": "bench"},
        "serving": {
            "contextLength": CONTEXT,
            "maxConcurrentRequests": MAX_STREAMS,
            "apiKeysSecretRef": {"name": "keys"},
            "extraEngineArguments": list(vllmoncpu.ARGUMENTS),
        },
        "networkPolicy": {"allowFrom": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
    }
    metadata = _named("bench")
    return {"apiVersion": API_VERSION, "kind": "InferenceDeployment", "metadata": metadata, "spec": spec}


def _named(name: str) -> Object:
    return {"name": name, "namespace": NAMESPACE}


def _apply(access: Access, *manifests: Object) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    access.kubectl("apply", "--server-side", "--filename=-", text=text)


if __name__ == "__main__":
    main(int(sys.argv[1]))
