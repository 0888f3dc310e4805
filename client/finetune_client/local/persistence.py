# SPDX-License-Identifier: Apache-2.0
"""A folder of local runs: objects as YAML files, events as lines, and a lock for the program that writes.

Each file is replaced by rename, so that a killed program leaves the old or the new object, never a part.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import yaml

from finetune_client.backend import Object
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.local.cluster import Cluster, ObjectKey, at
from finetune_operator.plan import Event, Manifest
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts

NAMESPACE: Final = "local"
OBJECTS: Final = "objects"
EVENTS: Final = "events.jsonl"
LOCK: Final = "lock"
LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
TRAINER_IMAGE: Final = "local"
"""Image of all pods. Their processes run the installed trainer."""


def write_whole(path: Path, text: str) -> None:
    """Replace a file by rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def merged(document: Any, patch: Any) -> Any:
    """The document after a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class FolderInUse(OperationError):
    """Another program carries out the runs of a folder."""


class Folder:
    """The files of local runs.

    Args:
        root: folder with everything; it is created.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only program that runs something in this folder.

        Raises:
            FolderInUse: another program does.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                holder = lock.read().strip()
                raise FolderInUse(
                    f"another `finetune run` (process {holder}) works in {self.root}: wait until it ends, or"
                    " use another folder with --folder",
                    exit_code=ProgramExit.INVALID,
                ) from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def load(self) -> list[Manifest]:
        """All stored objects.

        Raises:
            OperationError: a file is not an object.
        """
        return [self._read(path) for path in sorted((self.root / OBJECTS).glob("*.yaml"))]

    def read(self, key: ObjectKey) -> Manifest | None:
        """One stored object; None if it does not exist. Raises OperationError: its file is not an object."""
        path = self._path(key)
        return self._read(path) if path.is_file() else None

    def _path(self, key: ObjectKey) -> Path:
        return self.root / OBJECTS / f"{key[0].lower()}-{key[1]}.yaml"

    def _read(self, path: Path) -> Manifest:
        try:
            manifest: Manifest = yaml.load(path.read_text(encoding="utf-8"), LOADER)  # noqa: S506 - a safe loader
            if manifest["kind"] and manifest["metadata"]["name"]:
                return manifest
            problem = "it has no kind or name"
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
            problem = " ".join(str(error).split())
        raise OperationError(
            f"{path} is not an object of a local run ({problem}): restore it, or remove {self.root} to start"
            " anew"
        )

    def save(self, key: ObjectKey, manifest: Manifest | None) -> None:
        """Store an object, or remove it."""
        path = self._path(key)
        if manifest is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.dump(manifest, Dumper=DUMPER, sort_keys=False, allow_unicode=True))

    def append_event(self, event: Object) -> None:
        """Append an event."""
        with (self.root / EVENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def events(self) -> list[Object]:
        """All events, the oldest first; without a line that a killed program left unfinished."""
        found: list[Object] = []
        with suppress(FileNotFoundError):
            for line in (self.root / EVENTS).read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    found.append(json.loads(line))
        return found


class StoredCluster(Cluster):
    """A cluster whose objects and events are in a folder."""

    def __init__(self, folder: Folder) -> None:
        facts = OperatorFacts(
            namespace=NAMESPACE, trainer_image=TRAINER_IMAGE, nonce_key=os.urandom(32).hex()
        )
        super().__init__(facts=facts, namespace=NAMESPACE)
        self.folder = folder
        for manifest in folder.load():
            self.objects[manifest["kind"], manifest["metadata"]["name"]] = manifest
        self.changes = 0
        """Number of objects written or removed so far."""
        self._posted = {event["metadata"]["name"] for event in folder.events()}

    def written(self, key: ObjectKey) -> None:
        self.changes += 1
        self.folder.save(key, self.objects.get(key))

    def record(self, about: Manifest, event: Event) -> None:
        """Append the event, unless there is an equal one about the object."""
        metadata = about["metadata"]
        content = "\0".join((metadata["uid"], event.reason, event.message))
        name = f"{metadata['name']}.{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        if name in self._posted:
            return
        self._posted.add(name)
        self.folder.append_event(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "uid": name, "resourceVersion": str(len(self._posted))},
                "involvedObject": {
                    "apiVersion": about["apiVersion"],
                    "kind": about["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
                "type": event.type,
                "reason": event.reason,
                "message": event.message,
                "lastTimestamp": at(self.now),
            }
        )
