# SPDX-License-Identifier: Apache-2.0
"""A folder of local runs as a backend of the verbs.

It reads also while `finetune run` works in the folder, and writes only when no program does.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from finetune_client.backend import FOLLOW_SECONDS, LogLine, Object, runs_no_stage
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.local import ROOT, worker
from finetune_client.local.controllers import pods_of
from finetune_client.local.files import Content, Input, adapt, claims_of, configmaps_of, generated_content
from finetune_client.local.kubelet import VolumeFolders, log_path
from finetune_client.local.persistence import NAMESPACE, Folder, StoredCluster, merged
from finetune_client.local.profile import STORE, machine_profile, this_machine
from finetune_client.local.session import Session, engine_url
from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.labels import OWNER_NAME, STAGE
from finetune_operator.observe.pod_status import has_ended
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import STAGES


class LocalBackend:
    """The objects of a folder of local runs.

    Args:
        root: the folder.
        claims: folders in place of claims, as for `finetune run`.
    """

    def __init__(self, root: Path = ROOT, claims: dict[str, Path] | None = None) -> None:
        self._folder = Folder(root)
        self._claims = claims or {}
        self._configmaps: dict[str, Content] = {}

    @property
    def namespace(self) -> str:
        """The namespace of all local runs."""
        return NAMESPACE

    def get(self, kind: str, name: str) -> Object | None:
        """One object; None if it does not exist."""
        return self._folder.read((kind, name))

    def objects(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return [each for each in self._folder.load() if each["kind"] == kind]

    def remember(self, path: Path) -> None:
        """Keep the ConfigMaps that the kustomization next to manifests generates, for their rows.

        Raises:
            OperationError: a file of a ConfigMap does not exist.
        """
        self._configmaps |= generated_content(path if path.is_dir() else path.parent)

    def apply(self, manifest: Object) -> Object:
        """Store an object as this machine can run it; a warning names what is ignored.

        Raises:
            OperationError: it needs what only a cluster has, its rows or model are missing, or it is a run
                that was started with another spec.
        """
        machine = this_machine()
        found = Input([manifest])
        adapted = adapt(
            found, machine_profile(machine), machine_resource=machine.resource, only_preflight=False
        )
        for note in found.notes:
            warnings.warn(note, stacklevel=3)
        for each in adapted:
            self._check_sources(each)
            with self._folder.locked():
                session = Session(self._folder, self._volumes)
                session.apply(each)
                return session.cluster.objects[each["kind"], each["metadata"]["name"]]
        return manifest

    def _check_sources(self, manifest: Object) -> None:
        """The claims and ConfigMaps that an object names exist on this machine."""
        for name in sorted(claims_of([manifest]) - {STORE}):
            if not (folder := self.store_folder(f"pvc://{name}")).is_dir():
                raise OperationError(
                    f"pvc://{name}: folder {folder} does not exist: make it, with the files of the claim",
                    exit_code=ProgramExit.INVALID,
                )
        for name in sorted(configmaps_of([manifest]) - self._configmaps.keys()):
            raise OperationError(
                f"configmap://{name}: no kustomization.yaml next to the submitted file makes ConfigMap"
                f" {name}: put the rows below {self.store_folder(f'pvc://{STORE}')}, and name them pvc://{STORE}/…",
                exit_code=ProgramExit.INVALID,
            )

    @property
    def _volumes(self) -> VolumeFolders:
        return VolumeFolders(claims=self._claims, configmaps=self._configmaps)

    def carrying_out(self) -> AbstractContextManager[Callable[[float], None]]:
        """During the block, runs continue while its value waits for a number of seconds."""
        return worker.carrying_out(self._folder, self._volumes)

    def serving(self, endpoint: str) -> AbstractContextManager[str]:
        """During the block, an endpoint serves; yields its base URL when it is ready."""
        return worker.serving(self._folder, self._volumes, endpoint)

    def patch(self, kind: str, name: str, patch: Object) -> Object:
        """Change an object by a JSON merge patch, and reconcile it. What needs a process waits for a run."""
        with self._folder.locked():
            cluster = StoredCluster(self._folder)
            if (kind, name) not in cluster.objects:
                raise OperationError(f"{kind} {name} does not exist in {self._folder.root}")
            self._replace(cluster, merged(cluster.objects[kind, name], patch))
            cluster.settle()
            return cluster.objects[kind, name]

    def _replace(self, cluster: StoredCluster, manifest: Manifest) -> Object:
        """Store a changed object; the definitions of its kind accept it."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind in KINDS_BY_NAME:
            try:
                KINDS_BY_NAME[kind].model.model_validate(manifest)
            except ValueError as error:
                raise OperationError(f"{kind} {name}: {error}", exit_code=ProgramExit.INVALID) from error
        is_new = cluster.objects[kind, name].get("spec") != manifest.get("spec")
        cluster.objects[kind, name] = manifest
        if is_new:
            cluster.change(kind, name)
        else:
            cluster.written((kind, name))
        return manifest

    def events(self) -> list[Object]:
        """Events about the objects, the oldest first."""
        return self._folder.events()

    def logs(self, run: str, stage: str | None = None, *, follow: bool = False) -> Iterator[LogLine]:
        """Lines of the pods of a run in the order of their starts; of one stage if it is named.

        With `follow`, also those that come later, until the run has ended, in whichever program.
        """
        files: dict[tuple[str, str], LogFile] = {}
        while True:
            # The end of the run is read before its pods: pods of a run that has ended are all there.
            job = self.get("FineTuneJob", run)
            ended = not follow or job is None or runs_no_stage(job)
            for pod in self._pods(run, stage):
                name = pod["metadata"]["name"]
                for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
                    key = (name, container["name"])
                    file = files.setdefault(key, LogFile(log_path(self._folder.root, *key)))
                    for line in file.read(is_complete=ended or has_ended(pod)):
                        yield LogLine(*key, line)
            if ended:
                return
            time.sleep(FOLLOW_SECONDS)

    def _pods(self, run: str, stage: str | None) -> list[Manifest]:
        """Pods of a run in the order of their starts."""
        cluster = StoredCluster(self._folder)
        jobs = [job for job in cluster.of("Job").values() if job["metadata"]["labels"].get(OWNER_NAME) == run]
        pods = [
            pod
            for job in jobs
            for pod in pods_of(cluster, job)
            if stage in (None, pod["metadata"]["labels"].get(STAGE))
        ]
        return sorted(pods, key=_place)

    def read(self, uri: str) -> bytes:
        """A file of the store, such as a page that a status names."""
        scheme, _, rest = uri.partition("://")
        claim, _, path = rest.partition("/")
        root = self.store_folder(f"{scheme}://{claim}").resolve()
        file = (root / path).resolve()
        if not file.is_relative_to(root) or not file.is_file():
            raise OperationError(f"{uri} does not exist in {root}")
        return file.read_bytes()

    def url(self, endpoint: str) -> str:
        """Base URL at which a program serves an endpoint now.

        Raises:
            OperationError: no program does.
        """
        url = engine_url(StoredCluster(self._folder), endpoint)
        if url is None:
            raise OperationError(
                f"InferenceDeployment {endpoint} is not served now",
                ["finetune run FILES: serves it until Ctrl-C"],
            )
        return url

    def store_folder(self, uri: str) -> Path:
        """The folder in place of the claim of a store."""
        scheme, _, claim = uri.partition("://")
        if scheme != "pvc":
            raise OperationError(f"{uri} is not in {self._folder.root}: the store of local runs is a claim")
        return self._claims.get(claim, self._folder.root / "claims" / claim)


class LogFile:
    """A log that grows.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self, *, is_complete: bool) -> list[str]:
        """The lines since the last call; an unfinished last line only if the file is complete."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return []
        if not is_complete:
            content = content[: content.rfind(b"\n") + 1]
        self._position += len(content)
        return content.decode("utf-8", errors="replace").splitlines()


def _place(pod: Manifest) -> tuple[str, int, str]:
    """Place of a pod among those of a run: several may start in the same second."""
    metadata = pod["metadata"]
    stages = [*STAGES]
    return metadata["creationTimestamp"], stages.index(metadata["labels"][STAGE]), metadata["name"]
