# SPDX-License-Identifier: Apache-2.0
"""The backend of a cluster: objects, events and logs of one namespace through the API server."""

import re
import time
from collections.abc import Iterator
from typing import Final, get_args

from finetune_client.access import APPLY, MERGE, TABLE, Access, path
from finetune_client.backend import FOLLOW_SECONDS, LogLine, Object, runs_no_stage
from finetune_client.errors import OperationError, ProgramExit
from finetune_operator.api.labels import RUN, STAGE
from finetune_operator.api.meta import API_VERSION
from finetune_operator.observe.pod_status import has_ended
from finetune_trainer.contract.vocabulary import Stage

FIELD_MANAGER: Final = "finetune"
PAGE_ROWS: Final = 1000
"""Objects per page of a table; a row without its object has about 200 bytes."""
UNDECLARED: Final = re.compile(r'unknown field "(.+?)"|(\.\S+): field not declared in schema')


class ClusterBackend:
    """Objects of one namespace of a cluster.

    Attributes:
        access: kubectl and requests with the same credentials.
    """

    def __init__(self, access: Access, namespace: str = "") -> None:
        self.access = access
        self._namespace = namespace or access.default_namespace

    @property
    def namespace(self) -> str:
        return self._namespace

    def get(self, kind: str, name: str) -> Object | None:
        """One object; None if it does not exist."""
        return self.access.object(kind, self._namespace, name)

    def objects(self, kind: str, selector: str = "", *, all_namespaces: bool = False) -> list[Object]:
        """All objects of a kind, read in pages."""
        return self.access.objects(kind, "" if all_namespaces else self._namespace, selector)

    def apply(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Server-side apply; a field that the cluster's definitions would drop is refused.

        Args:
            manifest: the object.
            dry_run: whether the API server only says what it would answer.

        Raises:
            OperationError: the API server refused it; the message names the object and the field.
        """
        kind, name = str(manifest["kind"]), str(manifest["metadata"]["name"])
        namespace = manifest["metadata"].get("namespace") or self._namespace
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        try:
            return self._changed("PATCH", path(kind, namespace, name), query, manifest, APPLY)
        except OperationError as error:
            dropped = sorted({first or second[1:] for first, second in UNDECLARED.findall(str(error))})
            if manifest.get("apiVersion") == API_VERSION and dropped:
                raise OperationError(
                    f"{kind} {name}: the definitions of the cluster have no {', '.join(dropped)} and would"
                    " drop it",
                    [
                        "finetune validate FILE: whether this program knows the field",
                        "if it does, the definitions are older than the program (docs/installation.md)",
                    ],
                    exit_code=ProgramExit.INVALID,
                ) from error
            raise OperationError(
                f"{kind} {name}: {error}", error.commands, error.details, ProgramExit.INVALID
            ) from error

    def create(self, manifest: Object) -> Object:
        """Create an object that must not exist.

        Raises:
            OperationError: the API server refused it.
        """
        target = path(str(manifest["kind"]), self._namespace)
        return self._changed("POST", target, {"fieldManager": FIELD_MANAGER}, manifest, "application/json")

    def patch(self, kind: str, name: str, patch: Object) -> Object:
        """Change an object by a JSON merge patch.

        Raises:
            OperationError: the object does not exist, or the API server refused the change.
        """
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return self._changed("PATCH", path(kind, self._namespace, name), query, patch, MERGE)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and, in the background, what it owns."""
        self.access.request("DELETE", path(kind, self._namespace, name), {"propagationPolicy": "Background"})

    def events(self) -> list[Object]:
        """Events about our objects, not sorted."""
        return self.access.events(self._namespace)

    def table(self, kind: str, selector: str = "", *, all_namespaces: bool = False) -> Iterator[Object]:
        """The server's table in pages; for one namespace its rows have no metadata."""
        query = {"limit": str(PAGE_ROWS), "includeObject": "Metadata" if all_namespaces else "None"}
        if selector:
            query["labelSelector"] = selector
        return self.access.pages(path(kind, "" if all_namespaces else self._namespace), query, TABLE)

    def logs(self, run: str, stage: str | None = None, *, follow: bool = False) -> Iterator[LogLine]:
        """Lines of the pods of a run in the order of its stages, also of ended pods while they exist.

        Args:
            run: name of the FineTuneJob.
            stage: name of one stage; None selects all.
            follow: whether to wait for more lines and further pods until the run has ended.

        Raises:
            OperationError: the run does not exist, or the user may not read logs.
        """
        shown: set[str] = set()
        while True:
            job = self.get("FineTuneJob", run)
            if job is None:
                raise OperationError(f"FineTuneJob {run} does not exist in namespace {self._namespace}")
            # The end of the run is read before its pods: pods of a run that has ended are all there.
            ended = runs_no_stage(job)
            for pod in self._pods(job["metadata"]["uid"], stage):
                name, phase = pod["metadata"]["name"], pod["status"].get("phase")
                if name in shown or phase == "Pending":
                    continue
                shown.add(name)
                yield from self._pod_log(pod, follow=follow and not has_ended(pod))
            if ended or not follow:
                return
            time.sleep(FOLLOW_SECONDS)

    def read(self, uri: str) -> bytes:
        """A file of the store.

        Raises:
            OperationError: the store is a claim or bucket, which only pods reach.
        """
        raise OperationError(
            f"{uri} is in the store of the cluster, which only its pods reach",
            ["docs/results.md: how to copy it"],
        )

    def _pods(self, uid: str, stage: str | None) -> list[Object]:
        """Pods of a run in the order of its stages and of their creation."""
        order = {name: number for number, name in enumerate(get_args(Stage))}
        pods = self.access.pods(self._namespace, f"{RUN}={uid}" + (f",{STAGE}={stage}" if stage else ""))
        return sorted(
            pods,
            key=lambda pod: (
                order.get(pod["metadata"]["labels"].get(STAGE, ""), len(order)),
                pod["metadata"]["creationTimestamp"],
                pod["metadata"]["name"],
            ),
        )

    def _pod_log(self, pod: Object, *, follow: bool) -> Iterator[LogLine]:
        name = pod["metadata"]["name"]
        for container in pod["spec"]["containers"]:
            query = {"container": container["name"]} | ({"follow": "true"} if follow else {})
            for line in self.access.stream(path("Pod", self._namespace, name, "log"), query):
                yield LogLine(name, container["name"], line)

    def _changed(
        self, method: str, target: str, query: dict[str, str], body: Object, content_type: str
    ) -> Object:
        answer = self.access.request(method, target, query, body, content_type=content_type)
        if answer is None:
            raise OperationError(f"{target} does not exist")
        return answer
