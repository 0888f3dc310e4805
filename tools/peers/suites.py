"""The peers: their suites of tests, and the programs that these need."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tools.cluster.binaries import ensure
from tools.cluster.toolchain import CRANE, HELM3, program
from tools.docs import chromium
from tools.peers import argocd, flux, kueue, release, traefik, vllm, vllmimage


@dataclass(frozen=True)
class PeerSuite:
    """A suite of tests with the programs of one peer.

    Attributes:
        name: name on the command line.
        title: the peer with its version, for tables.
        tests: paths of the tests.
        install: installs the programs, into the cache if they are not packages of the distribution.
        is_installed: whether they are there.
        is_isolated: whether the tests run in namespaces of their own, where they start a cluster.
    """

    name: str
    title: str
    tests: tuple[str, ...]
    install: Callable[[], None]
    is_installed: Callable[[], bool]
    is_isolated: bool = False


PEERS: Final = (
    PeerSuite(
        "argocd",
        f"Argo CD {argocd.version()}, its files",
        ("tests/peers/test_argocd.py",),
        argocd.install,
        argocd.is_installed,
    ),
    PeerSuite(
        "chromium",
        "Chromium",
        ("tests/peers/test_evaluation_page.py",),
        chromium.install,
        chromium.is_installed,
    ),
    PeerSuite(
        "vllm",
        f"vLLM {vllm.version()} on a CPU",
        (
            "tests/peers/test_vllm.py",
            "tests/peers/test_vllm_command.py",
            "tests/peers/test_vllm_evaluation.py",
            "tests/peers/test_vllm_merged.py",
            "tests/peers/test_vllm_pod.py",
            "tests/peers/test_openai_conformance.py",
        ),
        vllm.install,
        vllm.is_installed,
    ),
    PeerSuite(
        "vllm-endpoint",
        f"vLLM {vllm.version()} on the test cluster",
        ("tests/peers/test_vllm_endpoint.py",),
        vllmimage.install,
        vllmimage.is_installed,
        is_isolated=True,
    ),
    PeerSuite(
        "traefik",
        f"traefik {traefik.version()}",
        ("tests/peers/test_gateway.py", "tests/peers/test_gateway_node.py"),
        traefik.install,
        traefik.is_installed,
        is_isolated=True,
    ),
    PeerSuite(
        "kueue",
        f"Kueue {kueue.version()}",
        ("tests/peers/test_kueue.py", "tests/peers/test_kueue_node.py"),
        kueue.install,
        kueue.is_installed,
        is_isolated=True,
    ),
    PeerSuite(
        "helm3",
        f"Helm {HELM3.version}",
        ("tests/peers/test_helm3.py",),
        partial(ensure, (HELM3,)),
        lambda: program("helm3").exists(),
        is_isolated=True,
    ),
    PeerSuite(
        "release",
        f"A release in a registry, by crane {CRANE.version} and Sigstore's library",
        ("tests/peers/test_release.py",),
        release.install,
        release.is_installed,
        is_isolated=True,
    ),
    PeerSuite(
        "flux",
        f"Flux {flux.version()}",
        ("tests/peers/test_flux.py",),
        flux.install,
        flux.is_installed,
    ),
)
