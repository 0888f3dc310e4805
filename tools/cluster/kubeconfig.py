# SPDX-License-Identifier: Apache-2.0
"""Kubeconfig files with embedded certificates, so that a copy works anywhere on this machine."""

from base64 import b64encode
from pathlib import Path

import yaml

from tools.cluster.pki import Authority, ClientIdentity


def write_kubeconfig(
    path: Path, context: str, server: str, authority: Authority, identity: ClientIdentity
) -> None:
    """Write the kubeconfig of one user, readable only by its owner; `server` is a URL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cluster = {"server": server, "certificate-authority-data": b64encode(authority.certificate).decode()}
    user = {
        "client-certificate-data": b64encode(identity.certificate).decode(),
        "client-key-data": b64encode(identity.key).decode(),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context, "cluster": cluster}],
        "users": [{"name": context, "user": user}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def server_of(path: Path) -> str:
    """URL of the API server in a kubeconfig of `write_kubeconfig`."""
    url: str = yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"]
    return url
