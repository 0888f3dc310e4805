# SPDX-License-Identifier: Apache-2.0
"""Certificates and kubeconfigs of all parts of a cluster."""

import re
from pathlib import Path
from typing import Final

from tools.cluster.control_plane_commands import ApiEndpoint
from tools.cluster.errors import ClusterError
from tools.cluster.kubeconfig import server_of, write_kubeconfig
from tools.cluster.layout import KUBERNETES_ADDRESS, LOOPBACK, NODE_ADDRESS, Layout
from tools.cluster.pki import Authority

_ADMINISTRATORS: Final = "system:masters"
_API_SERVER_NAMES: Final = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
_CLIENT_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62})")


def create_credentials(layout: Layout, endpoint: ApiEndpoint) -> None:
    """Create a certificate authority, and the certificates and kubeconfigs of all parts of the cluster."""
    authority = Authority.create(layout.pki, f"{layout.name}-ca")
    addresses = (str(endpoint.address), str(LOOPBACK), str(KUBERNETES_ADDRESS))
    authority.write("etcd", authority.issue("etcd", hosts=("localhost", str(LOOPBACK))))
    authority.write(
        "kube-apiserver", authority.issue("kube-apiserver", hosts=(*_API_SERVER_NAMES, *addresses))
    )
    authority.write("front-proxy-client", authority.issue("front-proxy-client"))
    authority.write("kubelet-client", authority.issue("kube-apiserver-kubelet-client", (_ADMINISTRATORS,)))
    node = f"system:node:{layout.node_name}"
    authority.write(
        "kubelet", authority.issue(node, ("system:nodes",), (layout.node_name, str(NODE_ADDRESS)))
    )
    users: dict[str, tuple[str, tuple[str, ...]]] = {
        "kube-controller-manager": ("system:kube-controller-manager", ()),
        "kube-scheduler": ("system:kube-scheduler", ()),
        "kube-proxy": ("system:kube-proxy", ()),
        "kubelet": (node, ("system:nodes",)),
        "provisioner": ("provisioner", (_ADMINISTRATORS,)),
    }
    for name, (user, groups) in users.items():
        write_kubeconfig(
            layout.config / f"{name}.kubeconfig", name, endpoint.url, authority, authority.issue(user, groups)
        )
    administrator = authority.issue("admin", (_ADMINISTRATORS,))
    write_kubeconfig(layout.kubeconfig, layout.name, endpoint.url, authority, administrator)


def create_client(layout: Layout, name: str, *, administrator: bool = True) -> Path:
    """Write the kubeconfig of a user `name`, and return its path.

    Raises:
        ClusterError: the name is not valid as a file name, or the cluster does not run.
    """
    if not _CLIENT_NAME.fullmatch(name):
        raise ClusterError(f"client name {name!r}: use up to 63 lower-case letters, digits, dots and hyphens")
    if not layout.kubeconfig.exists():
        raise ClusterError(f"the cluster {layout.name} does not run: start it with `up`")
    path = layout.clients / f"{name}.kubeconfig"
    authority = Authority(layout.pki)
    identity = authority.issue(name, (_ADMINISTRATORS,) if administrator else ())
    write_kubeconfig(path, layout.name, server_of(layout.kubeconfig), authority, identity)
    return path
