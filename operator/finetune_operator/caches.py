"""The caches of one process: our kinds and their children, and how they are indexed."""

from typing import Final

from finetune_operator.api.kinds import KINDS
from finetune_operator.api.meta import API_VERSION
from finetune_operator.build.labels import RUN
from finetune_operator.engine.resources import DEPLOYMENT, JOB, POD, SERVICE, ResourceType
from finetune_operator.engine.store import ObjectStore, controller_uid
from finetune_operator.plan import Key, Manifest

KIND_TYPES: Final = {
    kind.name: ResourceType(API_VERSION, kind.name, kind.plural, kind.namespaced) for kind in KINDS
}
CHILD_TYPES: Final = (JOB, POD, DEPLOYMENT, SERVICE)

BY_CONTROLLER: Final = "controller"
BY_RUN: Final = "run"


def key_of(manifest: Manifest) -> Key:
    """The key of an object of one of our kinds."""
    metadata = manifest["metadata"]
    return Key(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


class Caches:
    """One store a type."""

    def __init__(self) -> None:
        self.kinds = {name: ObjectStore() for name in KIND_TYPES}
        self.jobs = ObjectStore({BY_CONTROLLER: _by_controller})
        self.pods = ObjectStore({BY_RUN: _by_run})
        self.deployments = ObjectStore({BY_CONTROLLER: _by_controller})
        self.services = ObjectStore({BY_CONTROLLER: _by_controller})
        self.children = {
            JOB: self.jobs,
            POD: self.pods,
            DEPLOYMENT: self.deployments,
            SERVICE: self.services,
        }
        self.by_type = {KIND_TYPES[name]: store for name, store in self.kinds.items()} | self.children


def _by_controller(obj: Manifest) -> tuple[str, ...]:
    uid = controller_uid(obj)
    return (uid,) if uid else ()


def _by_run(obj: Manifest) -> tuple[str, ...]:
    run = obj["metadata"].get("labels", {}).get(RUN)
    return (run,) if run else ()
