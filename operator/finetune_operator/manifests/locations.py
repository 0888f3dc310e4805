# SPDX-License-Identifier: Apache-2.0
"""Parse URIs of volumes in the cluster and of locations in the network."""

import re
from dataclasses import dataclass
from typing import Final

NAME: Final = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
CONFIGMAP_KEY: Final = re.compile(r"^[-._a-zA-Z0-9*?\[\]!]{1,253}$")
"""A key, or a pattern for several keys."""
HUB: Final = re.compile(r"^hf://(datasets/)?[-.\w]+/[-.\w]+(@[-./\w]+?)?(/[^?#\s]*)?$")
WEB: Final = re.compile(r"^https://[^/@?#\s]+/[^#\s]+$")
BUCKET: Final = re.compile(r"^(s3|gs|abfs)://[A-Za-z0-9][-._A-Za-z0-9@]*(/[^?#\s]*)?$")


@dataclass(frozen=True, slots=True)
class Location:
    """A PersistentVolumeClaim or ConfigMap in the pod's namespace, and a path in it."""

    scheme: str
    name: str
    """Name of the PersistentVolumeClaim or ConfigMap."""
    path: str
    """Relative path without `..`; empty: the whole volume. Its last part may be a shell pattern."""

    def under(self, mount: str) -> str:
        """The path in a pod that mounts the volume at `mount`."""
        return f"{mount}/{self.path}" if self.path else mount


def parse_location(uri: str) -> Location:
    """The location of a pvc:// or configmap:// URI.

    Raises:
        ValueError: the URI is invalid; the message says what is wrong and shows the form.
    """
    scheme, _, rest = uri.partition("://")
    name, _, path = rest.partition("/")
    parts = [part for part in path.split("/") if part]
    if scheme == "pvc":
        shape = "pvc://CLAIM or pvc://CLAIM/PATH"
    elif scheme == "configmap":
        shape = "configmap://NAME/KEY"
        if len(parts) != 1 or not CONFIGMAP_KEY.match(parts[0]) or parts[0] in {".", ".."}:
            raise ValueError(f"{uri} has no valid key of a ConfigMap: write {shape}")
    else:
        raise ValueError(f"{uri} is not in this cluster: use pvc:// or configmap://")
    if not NAME.match(name):
        raise ValueError(f"{uri}: {name!r} is not a valid name of a Kubernetes object: write {shape}")
    if ".." in parts:
        raise ValueError(f"{uri} has .. in its path: write the path without it")
    _check_pattern(uri, parts)
    return Location(scheme, name, "/".join(parts))


def parse_source(uri: str) -> Location | None:
    """The location of a source of rows or a base model; None if pods read it over the network.

    Raises:
        ValueError: the URI is invalid; the message says what is wrong and shows the form.
    """
    scheme = uri.partition("://")[0]
    form, shape = {
        "hf": (HUB, "hf://ORG/NAME or hf://datasets/ORG/NAME/PATH"),
        "https": (WEB, "https://HOST/PATH, with the user's name and password in a Secret"),
        "s3": (BUCKET, "s3://BUCKET/PATH"),
        "gs": (BUCKET, "gs://BUCKET/PATH"),
        "abfs": (BUCKET, "abfs://CONTAINER/PATH or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH"),
    }.get(scheme, (None, ""))
    if form is None:
        return parse_location(uri)
    folder, slash, last = uri.rpartition("/")
    # In a web address a question mark begins the query; elsewhere it is part of a pattern, like *.
    normalized = uri if scheme == "https" else folder + slash + last.replace("?", "*")
    if not form.match(normalized) or ".." in uri.split("/"):
        raise ValueError(f"{uri} is not a valid location: write {shape}")
    if scheme != "https":
        _check_pattern(uri, uri.split("/"))
    return None


def _check_pattern(uri: str, parts: list[str]) -> None:
    if any("*" in part for part in parts[:-1]):
        raise ValueError(f"{uri} has a * in a folder name: only the last part of the path may be a pattern")


def parse_store(uri: str) -> Location | None:
    """The claim and folder of a store; None for a bucket, which pods access over the network.

    Raises:
        ValueError: the URI is invalid; the message says what is wrong and shows the form.
    """
    if uri.startswith("pvc://"):
        return parse_location(uri)
    if not BUCKET.match(uri) or ".." in uri.split("/"):
        raise ValueError(
            f"{uri} is not a valid store: write pvc://CLAIM/FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or"
            " abfs://CONTAINER/FOLDER"
        )
    return None


def run_folder(uri: str, run: str) -> str:
    """URI of the folder of a run, or of a Checkpoint in an Evaluation, in a store."""
    return f"{uri.rstrip('/')}/runs/{run}"


def store_folder(uri: str, kind: str, digest: str) -> str:
    """URI of an artifact in a store: `<store>/<kind>/<64 hex>`."""
    return f"{uri.rstrip('/')}/{kind}/{digest.removeprefix('sha256:')}"
