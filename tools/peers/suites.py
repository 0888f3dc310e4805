# SPDX-License-Identifier: Apache-2.0
"""The peers: their suites of tests, the programs that these need, and the table in docs/testing.md."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from tools.bench.page import Sheet, between, commit, machine, replace, today
from tools.bootstrap.uv import ROOT
from tools.cluster.toolchain import CRANE, HELM, HELM3, ORAS, PRIVATE_REGISTRY, VERIFY_BUNDLE, Tool, ensure
from tools.docs import chromium
from tools.images.base import base_image
from tools.images.build import build_complete
from tools.images.buildah import Buildah
from tools.images.tags import LOCAL, Variant, image_references
from tools.peers import old_kubernetes, vllm, vllmimage
from tools.peers.toolchain import (
    ARGOCD,
    COSIGN,
    FLUX,
    HELM_CONTROLLER,
    KUEUE,
    OLDER_KUBERNETES,
    PROMETHEUS_OPERATOR,
    TRAEFIK,
)
from tools.suites.durations import PAGE, Result, minutes

TOOLS: Final = (CRANE, HELM, ORAS, PRIVATE_REGISTRY, VERIFY_BUNDLE, COSIGN)


def install_release() -> None:
    """Build the programs and the images unless they are there.

    Raises:
        ClusterError: a program could not be built.
        ImageError: an image could not be built.
        subprocess.CalledProcessError: a tool failed; its message is on the terminal.
    """
    ensure(TOOLS)
    build_complete(Variant.CPU)


def is_release_installed() -> bool:
    """Whether the images of the present sources and the programs are there."""
    if shutil.which("buildah") is None or not all(tool.is_built() for tool in TOOLS):
        return False
    buildah = Buildah()
    names = image_references(base_image(buildah), Variant.CPU, LOCAL)
    return all(buildah.has(name) for name in names)


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
        options: options of pytest.
    """

    name: str
    title: str
    tests: tuple[str, ...]
    install: Callable[[], None]
    is_installed: Callable[[], bool]
    is_isolated: bool = False
    options: tuple[str, ...] = ()


def _of_tools(
    tool: Tool,
    title: str,
    tests: tuple[str, ...],
    *,
    also: tuple[Tool, ...] = (),
    is_isolated: bool = False,
    options: tuple[str, ...] = (),
) -> PeerSuite:
    """Suite with the programs of a Go module, and `also` those of others."""
    tools = (tool, *also)
    install = partial(ensure, tools)
    return PeerSuite(tool.name, title, tests, install, partial(_are_built, tools), is_isolated, options)


def _are_built(tools: tuple[Tool, ...]) -> bool:
    return all(tool.is_built() for tool in tools)


_ON_OLDER_KUBERNETES: Final = (
    *(f"tests/integration/{path.name}" for path in sorted(ROOT.glob("tests/integration/test_rules_*.py"))),
    "tests/integration/test_chart.py",
    "tests/integration/test_chart_definitions.py",
    "tests/integration/test_definitions.py",
    "tests/integration/test_drift.py",
    "tests/integration/test_engine_process.py::test_rows_become_a_promoted_checkpoint_and_an_endpoint_that_serves_it",
    "tests/integration/test_podtemplates.py",
    "tests/integration/test_promotion.py",
    "tests/integration/test_protection.py",
    "tests/integration/test_tenants.py",
)
"""Definitions, rules, policies, charts, server-side apply, and the operator from rows to an endpoint."""


PEERS: Final = (
    _of_tools(ARGOCD, f"Argo CD {ARGOCD.version}, its files", ("tests/peers/test_argocd.py",)),
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
    _of_tools(
        TRAEFIK,
        f"traefik {TRAEFIK.version}",
        ("tests/peers/test_gateway.py", "tests/peers/test_gateway_node.py"),
        is_isolated=True,
    ),
    _of_tools(
        KUEUE,
        f"Kueue {KUEUE.version}",
        ("tests/peers/test_kueue.py", "tests/peers/test_kueue_node.py"),
        is_isolated=True,
    ),
    _of_tools(HELM3, f"Helm {HELM3.version}", ("tests/peers/test_helm3.py",), is_isolated=True),
    PeerSuite(
        "release",
        f"A release in a registry with accounts and TLS (Distribution), and cosign {COSIGN.version}",
        ("tests/peers/test_private_registry.py", "tests/peers/test_release.py"),
        install_release,
        is_release_installed,
        is_isolated=True,
    ),
    _of_tools(
        FLUX,
        f"Flux {FLUX.version}, helm-controller {HELM_CONTROLLER}",
        ("tests/peers/test_helmrelease.py", "tests/peers/test_flux.py"),
        also=(CRANE, HELM, ORAS),
    ),
    _of_tools(
        PROMETHEUS_OPERATOR,
        f"Prometheus Operator {PROMETHEUS_OPERATOR.version}",
        ("tests/peers/test_prometheus_operator.py",),
    ),
    PeerSuite(
        "kubernetes-schemas",
        f"Schemas of Kubernetes {min(old_kubernetes.pins())} to {max(old_kubernetes.pins())}",
        ("tests/peers/test_old_kubernetes.py",),
        old_kubernetes.install,
        old_kubernetes.is_installed,
    ),
    *(
        _of_tools(
            tool,
            f"Kubernetes {tool.version}, API server and controllers",
            _ON_OLDER_KUBERNETES,
            options=(f"--kubernetes={version}",),
        )
        for version, tool in OLDER_KUBERNETES.items()
    ),
)


BEGIN: Final = "<!-- Written by make test-peers from here -->"
COLUMNS: Final = ("peer", "date", "commit", "tests", "skipped", "min:s")

NEVER: Final = ("", "", "", "", "not yet")
"""The other cells of a peer whose suite has not run."""

PeerResult = tuple[PeerSuite, Result]


def summary(results: Sequence[PeerResult]) -> Sheet:
    """Results of the suites that ran now."""
    date, state = today(), commit(PAGE)
    rows = ((_title(peer), date, state, *_figures(result)) for peer, result in results)
    return Sheet("Peers", COLUMNS, tuple(rows))


def write_results(results: Sequence[PeerResult]) -> None:
    """Replace the rows of these suites in docs/testing.md; the rows of the other suites stay.

    Raises:
        BenchError: the page has no markers.
    """
    lines = map(_cells, between(PAGE, BEGIN).splitlines())
    rows = {_name(cells): cells for cells in lines if len(cells) == len(COLUMNS) and cells[1:] != NEVER}
    rows |= {_name(row): row for row in summary(results).rows}
    table = tuple(rows.get(peer.name) or (_title(peer), *NEVER) for peer in PEERS)
    body = Sheet("Peers", COLUMNS, table).to_markdown()
    replace(PAGE, BEGIN, f"The last suite ran with {machine()}.\n\n{body}")


def _title(peer: PeerSuite) -> str:
    return f"{peer.name}: {peer.title}"


def _name(cells: tuple[str, ...]) -> str:
    """Name of the peer of a row."""
    return cells[0].partition(":")[0]


def _figures(result: Result) -> tuple[str, str, str]:
    return f"{result.tests.total():,}", f"{result.skipped:,}", minutes(result.seconds)


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
