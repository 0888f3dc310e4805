# SPDX-License-Identifier: Apache-2.0
"""Command lines of etcd, API server, controller manager and scheduler."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from tools.cluster.layout import LOOPBACK, SERVICE_NETWORK, Layout
from tools.cluster.toolchain import KUBERNETES, Tool, program

PORTS: Final = ("etcd", "etcd-peer", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
# With one user per controller and the default limit of 20 requests per second, the start takes 5 s longer.
_CLIENT_LIMITS: Final = ("--kube-api-qps=500", "--kube-api-burst=1000")
_AUDIT_LOG_MEGABYTES: Final = 1000
# Some distributions enable it: an owner reference that blocks deletion then needs a right on the owner.
_STRICT_OWNERS: Final = "OwnerReferencesPermissionEnforcement"


@dataclass(frozen=True)
class ApiEndpoint:
    """Address and port of the API server."""

    address: IPv4Address
    port: int

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"


def etcd(layout: Layout, ports: dict[str, int]) -> list[str]:
    client, peer = f"https://{LOOPBACK}:{ports['etcd']}", f"http://{LOOPBACK}:{ports['etcd-peer']}"
    return [
        str(program("etcd")),
        "--name=etcd",
        f"--data-dir={layout.etcd}",
        # The data is not needed after a crash of the machine.
        "--unsafe-no-fsync",
        "--quota-backend-bytes=4294967296",
        "--log-level=warn",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=etcd={peer}",
        "--client-cert-auth",
        f"--trusted-ca-file={layout.pki}/ca.crt",
        f"--cert-file={layout.pki}/etcd.crt",
        f"--key-file={layout.pki}/etcd.key",
    ]


def api_server(
    layout: Layout,
    ports: dict[str, int],
    endpoint: ApiEndpoint,
    *,
    node: bool,
    kubernetes: Tool = KUBERNETES,
) -> list[str]:
    """Command line for a cluster with a `node`, or for one that serves loopback only."""
    pki = layout.pki
    command = [
        str(kubernetes.program("kube-apiserver")),
        f"--bind-address={endpoint.address}",
        f"--advertise-address={endpoint.address}",
        f"--secure-port={endpoint.port}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--etcd-servers=https://{LOOPBACK}:{ports['etcd']}",
        f"--etcd-cafile={pki}/ca.crt",
        f"--etcd-certfile={pki}/etcd.crt",
        f"--etcd-keyfile={pki}/etcd.key",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/kube-apiserver.crt",
        f"--tls-private-key-file={pki}/kube-apiserver.key",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
        f"--proxy-client-key-file={pki}/front-proxy-client.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--audit-policy-file={layout.config}/audit-policy.yaml",
        f"--audit-log-path={layout.audit_log}",
        f"--audit-log-maxsize={_AUDIT_LOG_MEGABYTES}",
        "--audit-log-maxbackup=1",
    ]
    if not node:
        # The Service `kubernetes` must not point to a loopback address.
        return [
            *command,
            "--authorization-mode=RBAC",
            f"--enable-admission-plugins={_STRICT_OWNERS}",
            "--endpoint-reconciler-type=none",
        ]
    return [
        *command,
        "--authorization-mode=Node,RBAC",
        f"--enable-admission-plugins=NodeRestriction,{_STRICT_OWNERS}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
    ]


def controller_manager(layout: Layout, ports: dict[str, int], kubernetes: Tool = KUBERNETES) -> list[str]:
    return [
        *_controller(layout, ports, "kube-controller-manager", kubernetes),
        "--use-service-account-credentials",
        # The default is a system folder, which would be created.
        f"--flex-volume-plugin-dir={layout.config}/volume-plugins",
        f"--service-account-private-key-file={layout.pki}/sa.key",
        f"--root-ca-file={layout.pki}/ca.crt",
        f"--cluster-signing-cert-file={layout.pki}/ca.crt",
        f"--cluster-signing-key-file={layout.pki}/ca.key",
    ]


def scheduler(layout: Layout, ports: dict[str, int]) -> list[str]:
    return _controller(layout, ports, "kube-scheduler", KUBERNETES)


def _controller(layout: Layout, ports: dict[str, int], name: str, kubernetes: Tool) -> list[str]:
    kubeconfig = layout.config / f"{name}.kubeconfig"
    return [
        str(kubernetes.program(name)),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={ports[name]}",
        "--leader-elect=false",
        *_CLIENT_LIMITS,
    ]
