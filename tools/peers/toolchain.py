# SPDX-License-Identifier: Apache-2.0
"""The programs of peers and of an older Kubernetes, from one pinned Go module in programs/ for each.

They are for tests: nothing that the project ships has them.
"""

from pathlib import Path
from typing import Final

from tools.cluster.toolchain import KUBERNETES_MODULE, KUBERNETES_VARIABLES, Tool, Trimmed, pinned

_MODULES: Final = Path(__file__).parent / "programs"
_PROMETHEUS_OPERATOR: Final = "github.com/prometheus-operator/prometheus-operator"
_PROMETHEUS_DEFINITIONS: Final = "example/prometheus-operator-crd"
_FLUX_DEFINITIONS: Final = "config/crd/bases"

KUEUE: Final = Tool(
    "kueue",
    ("kueue",),
    module="sigs.k8s.io/kueue",
    files=(("sigs.k8s.io/kueue", "config"),),
    modules=_MODULES,
)
"""The controller manager, and Kueue's own kustomization in `config`."""
FLUX: Final = Tool(
    "flux",
    ("source-controller", "kustomize-controller", "helm-controller"),
    module="github.com/fluxcd/source-controller",
    files=(
        ("github.com/fluxcd/source-controller", _FLUX_DEFINITIONS),
        ("github.com/fluxcd/kustomize-controller", _FLUX_DEFINITIONS),
        ("github.com/fluxcd/helm-controller", _FLUX_DEFINITIONS),
    ),
    modules=_MODULES,
)
"""Three controllers of Flux."""
HELM_CONTROLLER: Final = pinned(FLUX.source, "github.com/fluxcd/helm-controller")
"""Version of helm-controller, which differs from that of the other two."""
FLUX_DEFINITIONS: Final = FLUX.folder / _FLUX_DEFINITIONS
"""Folder of the CustomResourceDefinitions of all three."""
PROMETHEUS_OPERATOR: Final = Tool(
    "prometheus-operator",
    ("operator",),
    module=_PROMETHEUS_OPERATOR,
    # It writes settings of discovery, and discovers nothing itself.
    tags=("remove_all_sd", "enable_kubernetes_sd"),
    files=((_PROMETHEUS_OPERATOR, _PROMETHEUS_DEFINITIONS),),
    modules=_MODULES,
)
"""The Prometheus Operator."""
PROMETHEUS_DEFINITIONS: Final = PROMETHEUS_OPERATOR.folder / _PROMETHEUS_DEFINITIONS
"""Folder of the CustomResourceDefinitions of the Prometheus Operator."""
TRAEFIK: Final = Tool(
    "traefik",
    ("traefik",),
    module="github.com/traefik/traefik/v3",
    # The clients of its DNS providers are most of a build.
    trimmed=(Trimmed("github.com/go-acme/lego/v5", "lego", ("providers/dns", "cmd", "e2e")),),
    modules=_MODULES,
)
"""A gateway of the Gateway API.

Its module has stand-ins without function for modules that are not on every module proxy. A gateway uses
neither those nor the folders that are left out.
"""
COSIGN: Final = Tool("cosign", ("cosign",), module="github.com/sigstore/cosign/v3", modules=_MODULES)
"""Verifies a release as its users do."""
ARGOCD: Final = Tool(
    "argocd",
    (),
    module="github.com/argoproj/argo-cd/v3",
    files=(
        ("github.com/argoproj/argo-cd/v3", "manifests/crds"),
        ("github.com/argoproj/argo-cd/v3", "resource_customizations"),
    ),
    modules=_MODULES,
)
"""Files of Argo CD. It replaces modules by folders of its repository that no module proxy serves."""
APPLICATION_DEFINITION: Final = ARGOCD.folder / "manifests" / "crds" / "application-crd.yaml"
"""The definition of Applications."""
HEALTH_CHECKS: Final = ARGOCD.folder / "resource_customizations"
"""Folder of the health checks: GROUP/KIND/health.lua, with cases in health_test.yaml."""
KUBERNETES_1_34: Final = Tool(
    "kubernetes-1.34",
    ("kube-apiserver", "kube-controller-manager"),
    module=KUBERNETES_MODULE,
    version_variables=KUBERNETES_VARIABLES,
    modules=_MODULES,
)
OLDER_KUBERNETES: Final = {"1.34": KUBERNETES_1_34}
"""Control planes of older minor versions."""
CEL_CHECK: Final = Tool("cel-check", ("cel-check",), modules=_MODULES)
"""Validates definitions and admission policies as an API server of an older minor version does."""
