# SPDX-License-Identifier: Apache-2.0
"""What pods mount: locations by their URIs, Secrets with credentials, and volumes with their mounts.

A Secret with credentials is a folder in the pod, with one file per key.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import JsonValue

from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import API_KEYS_MOUNT, CREDENTIALS_MOUNT, STORE_MOUNT
from finetune_trainer.contract.references import SecretMount, StoreConfig

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


@dataclass(frozen=True, slots=True)
class Volumes:
    """Volumes of a pod, and where a container mounts them."""

    volumes: tuple[Manifest, ...] = ()
    mounts: tuple[Manifest, ...] = ()

    def __add__(self, other: "Volumes") -> "Volumes":
        return Volumes(self.volumes + other.volumes, self.mounts + other.mounts)


NO_VOLUMES: Final = Volumes()


def one_volume(name: str, source: Manifest, path: str, *, read_only: bool = True) -> Volumes:
    """A volume that is mounted at this path."""
    mount = {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}
    return Volumes(({"name": name, **source},), (mount,))


def config_map_source(name: str, **fields: JsonValue) -> Manifest:
    """The source of a volume. It is optional: the pod starts without it, and its result reports what is
    missing."""
    return {"configMap": {"name": name, **fields, "optional": True}}


def join_volumes(parts: Iterable[Volumes]) -> Volumes:
    """The volumes of all parts, in their order."""
    return sum(parts, NO_VOLUMES)


Use = Literal["store", "source", "base-model", "judge", "prometheus"]
"""Purpose of a Secret in a pod."""


def secret_mount(use: Use, secret: str | None, number: int | None = None) -> SecretMount | None:
    """Path of the Secret in the container; None without a Secret.

    Args:
        use: purpose of the Secret.
        secret: its name.
        number: number of the source or judge, which has no name or one that can be too long for a volume.
    """
    folder = use if number is None else f"{use}-{number}"
    return None if secret is None else SecretMount(name=secret, path=f"{CREDENTIALS_MOUNT}/{folder}")


def secret_volume(mount: SecretMount) -> Volumes:
    """The volume of a Secret.

    The volume is optional: the pod starts without the Secret, and its result reports that it is missing.
    """
    name = f"{mount.path.rpartition('/')[2]}-credentials"
    return one_volume(name, {"secret": {"secretName": mount.name, "optional": True}}, mount.path)


def scratch_volume(limit: str) -> Manifest:
    """Volume of temporary files. Without a limit, it could fill the node's disk.

    Models have another volume, limited by `ephemeralStorage` of the resources for `serve`.
    """
    return {"name": "scratch", "emptyDir": {"sizeLimit": limit}}


def memory_volume(size: str | None) -> Volumes:
    """Shared memory of this size; none for that of the container runtime."""
    if size is None:
        return NO_VOLUMES
    source = {"emptyDir": {"medium": "Memory", "sizeLimit": size}}
    return one_volume("shared-memory", source, "/dev/shm", read_only=False)  # noqa: S108 - a volume of the pod


def store_volume(store: StoreConfig) -> Volumes:
    """The store for the init container of an endpoint; a bucket needs only credentials."""
    claim = parse_store(store.uri)
    found = NO_VOLUMES
    if claim is not None:
        source = {"persistentVolumeClaim": {"claimName": claim.name, "readOnly": True}}
        found += one_volume("store", source, STORE_MOUNT)
    return found if store.credentials is None else found + secret_volume(store.credentials)


def key_volume(secret: str | None) -> Volumes:
    """The API keys. The volume is not optional: the pod waits until the Secret exists."""
    if secret is None:
        return NO_VOLUMES
    return one_volume("api-keys", {"secret": {"secretName": secret}}, API_KEYS_MOUNT)
