"""What a `pvc://` or `configmap://` uri points at."""

import re
from dataclasses import dataclass
from typing import Final

NAME: Final = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
CONFIGMAP_KEY: Final = re.compile(r"^[-._a-zA-Z0-9]{1,253}$")


@dataclass(frozen=True, slots=True)
class Location:
    """An object in the pod's namespace, and a path in it."""

    scheme: str
    name: str
    """Of the PersistentVolumeClaim or ConfigMap."""
    path: str
    """Relative, without `..`; empty for the whole volume."""

    def under(self, mount: str) -> str:
        """The path in a pod that has the volume at `mount`."""
        return f"{mount}/{self.path}" if self.path else mount


def parse_location(uri: str) -> Location:
    """The location behind a uri.

    Raises:
        ValueError: with what is wrong and how it should look.
    """
    scheme, _, rest = uri.partition("://")
    name, _, path = rest.partition("/")
    parts = [part for part in path.split("/") if part]
    if scheme == "pvc":
        shape = "pvc://CLAIM or pvc://CLAIM/PATH"
    elif scheme == "configmap":
        shape = "configmap://NAME/KEY"
        if len(parts) != 1 or not CONFIGMAP_KEY.match(parts[0]) or parts[0] in {".", ".."}:
            raise ValueError(f"{uri} names no key of a ConfigMap: write {shape}")
    else:
        raise ValueError(f"{uri} is not in this cluster: use pvc:// or configmap://")
    if not NAME.match(name):
        raise ValueError(f"{uri}: {name!r} is no name of a Kubernetes object: write {shape}")
    if ".." in parts:
        raise ValueError(f"{uri} leaves its volume with ..: write the path without it")
    return Location(scheme, name, "/".join(parts))


def store_folder(uri: str, kind: str, digest: str) -> str:
    """Uri of an artifact in a store: `<store>/<kind>/<64 hex>`."""
    return f"{uri.rstrip('/')}/{kind}/{digest.removeprefix('sha256:')}"
