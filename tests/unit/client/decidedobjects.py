# SPDX-License-Identifier: Apache-2.0
"""Objects of the golden cases as a namespace has them, and a backend that keeps them in memory."""

from collections.abc import Iterator
from copy import deepcopy

from finetune_client.backend import LogLine, Object
from finetune_client.errors import OperationError
from tests.mergepatch import merged
from tests.unit.operator.goldencases import GOLDEN, base_objects, load, reviewed

NAMESPACE = "team"


def golden(file: str, name: str, *patches: Object) -> Object:
    """The object Kind/name of a base file, after merge patches that may name the items of lists."""
    found = deepcopy(base_objects(GOLDEN / "base" / f"{file}.yaml")[name])
    for patch in patches:
        found = merged(found, patch, by_name=True)
    return found


def run_after(case: str, **metadata: str) -> Object:
    """The FineTuneJob of a golden case with its status after the pass."""
    job = next(
        each for each in load(GOLDEN / "input" / f"{case}.yaml").objects if each["kind"] == "FineTuneJob"
    )
    status = reviewed(GOLDEN / "output" / f"{case}.yaml")["status"]
    return deepcopy({**job, "status": status, "metadata": job["metadata"] | metadata})


class MemoryBackend:
    """A namespace with these objects. Patches change them and are recorded; `files` are the store's."""

    namespace = NAMESPACE

    def __init__(self, *objects: Object, files: dict[str, bytes] | None = None) -> None:
        self.found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
        self.files = files or {}
        self.forbidden: set[str] = set()
        self.patches: list[tuple[str, str, Object]] = []

    def get(self, kind: str, name: str) -> Object | None:
        if kind in self.forbidden:
            raise OperationError(f"ann may not get {kind}")
        return self.found.get((kind, name))

    def objects(self, kind: str) -> list[Object]:
        if kind in self.forbidden:
            raise OperationError(f"ann may not list {kind}")
        return [each for (its_kind, _), each in self.found.items() if its_kind == kind]

    def apply(self, manifest: Object) -> Object:
        raise NotImplementedError

    def patch(self, kind: str, name: str, patch: Object) -> Object:
        self.patches.append((kind, name, patch))
        self.found[kind, name] = merged(self.found[kind, name], patch)
        return self.found[kind, name]

    def events(self) -> list[Object]:
        return []

    def logs(self, run: str, stage: str | None = None, *, follow: bool = False) -> Iterator[LogLine]:
        raise NotImplementedError

    def read(self, uri: str) -> bytes:
        if uri not in self.files:
            raise OperationError(f"{uri} is in the store of the cluster, which only its pods reach")
        return self.files[uri]
