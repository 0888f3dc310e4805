# SPDX-License-Identifier: Apache-2.0
"""python -m tools.peers.serving.service PAIRS: what the Service of an endpoint and a gateway cost vLLM.

All streams come from one pod, by its own address, that of the Service, and the gateway. Runs in the
namespaces of tools/cluster/linux_namespaces.py, with a cluster that it starts and stops.
"""

import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import yaml

from finetune_client.access import Access
from finetune_trainer.contract.environment import SERVE_PORT
from tools.bench.page import BenchError
from tools.bootstrap.uv import ROOT
from tools.cluster import TestCluster, gateway_api
from tools.cluster.commands import until
from tools.demo.admin_access import AdminAccess
from tools.demo.install import images, install
from tools.images.node_images import Node
from tools.peers import traefik, vllm, vllmimage
from tools.peers.serving.bench_namespace import NAME, NAMESPACE, BenchNamespace, named, serving
from tools.peers.serving.servers import MODEL, RunningServer, answers, client_of
from tools.peers.serving.streams import alternating

SERVICE: Final = "the Service of an endpoint with a NetworkPolicy"
GATEWAY: Final = "a gateway (traefik) by the endpoint's HTTPRoute"
EXAMPLE: Final = ROOT / "examples" / "gateway" / "gateway.yaml"
HOSTNAME: Final = "bench.example.com"
ROUTED_SECONDS: Final = 60


def main(pairs: int) -> None:
    """Print the pairs as JSON on the last line, by what they compare with the pod's own address."""
    with TestCluster() as cluster, TemporaryDirectory() as scratch:
        cluster.kubectl.define(gateway_api.definitions())
        access = AdminAccess.from_environment()
        engine = vllmimage.load(Node())
        install(access, images(), gatewayAPI={"enabled": True})
        namespace = BenchNamespace(access)
        port = _create_gateway(namespace)
        with traefik.running(cluster.kubeconfig, port, Path(scratch)):
            _serve(namespace, engine)
            pod = RunningServer(f"http://{_address_of_pod(access)}:{SERVE_PORT}", MODEL, None)
            address, service_port = access.service_address(NAMESPACE, NAME)
            ways = {
                SERVICE: replace(pod, url=f"http://{address}:{service_port}"),
                GATEWAY: replace(pod, url=f"http://127.0.0.1:{port}", headers={"Host": HOSTNAME}),
            }
            for way in (pod, *ways.values()):
                until(f"an answer from {way.url}", partial(_answers, way), ROUTED_SECONDS)
            measured = {name: alternating(pod, way, pairs) for name, way in ways.items()}
    print(json.dumps({name: [[asdict(each) for each in pair] for pair in measured[name]] for name in ways}))


def _create_gateway(namespace: BenchNamespace) -> int:
    """Create the Gateway of the example. Returns the port of its listener."""
    gateway = yaml.safe_load(EXAMPLE.read_text())
    namespace.apply(named("Namespace", gateway["metadata"]["namespace"], None), traefik.CLASS, gateway)
    port: int = gateway["spec"]["listeners"][0]["port"]
    return port


def _serve(namespace: BenchNamespace, engine: str) -> None:
    gateway = yaml.safe_load(EXAMPLE.read_text())["metadata"]
    profile = {
        "images": {"engine": engine},
        "serving": {
            "engine": "VLLM",
            "allowedEngineArguments": [argument.partition("=")[0] for argument in vllm.CPU_ARGUMENTS],
        },
        "pods": [{"stages": ["serve"], "resources": {"cpu": "100m", "memory": "6Gi"}}],
    }
    spec = {
        "serving": serving(extraEngineArguments=list(vllm.CPU_ARGUMENTS)),
        "networkPolicy": {"allowFrom": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
        "traffic": {"gateway": {"parentRefs": [gateway], "hostnames": [HOSTNAME]}},
    }
    namespace.serve(profile, spec)


def _address_of_pod(access: Access) -> str:
    for pod in access.pods(NAMESPACE, ""):
        if any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"]):
            address: str = pod["status"]["podIP"]
            return address
    raise BenchError("the endpoint is ready, and no pod is")


def _answers(way: RunningServer) -> bool:
    with client_of(way.url) as client:
        client.headers.update(way.headers)
        return answers(client, MODEL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
