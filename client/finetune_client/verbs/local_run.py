# SPDX-License-Identifier: Apache-2.0
"""`finetune run` on this machine: carry out the objects in a folder, and serve the promoted model."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from finetune_client import tables
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.follow import RunStatus, View, create_view, now
from finetune_client.local import Until
from finetune_client.local.files import (
    Content,
    Input,
    adapt,
    claims_of,
    configmaps_of,
    folder_content,
    read_files,
)
from finetune_client.local.kubelet import VolumeFolders
from finetune_client.local.machine_checks import check_memory, check_model, check_trainer
from finetune_client.local.persistence import Folder
from finetune_client.local.profile import STORE, Machine, as_default, machine_profile, this_machine
from finetune_client.local.session import RUNS, UNTIL, FailedRun, Session, activity
from finetune_client.local.worker import claim_object
from finetune_client.offline.manifests import read_objects
from finetune_client.quick_start import keep_for_local_runs, manifest_files
from finetune_operator.observe.pod_status import condition, has_condition
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.environment import SERVE_PORT

VIEW_SECONDS: Final = 1.0
RUNNING_TEXT: Final = "Ctrl-C saves and ends, a second Ctrl-C kills; the same command continues"
PREDICTIONS: Final = ("prepare", "preflight")
"""Last stages before the weights are loaded. Another machine's profile is enough for them."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Folders that options name."""

    claims: Mapping[str, Path]
    configmaps: Mapping[str, Path]
    secrets: Mapping[str, Path]


def run_locally(
    files: Sequence[Path],
    model: str,
    gates: Sequence[str],
    folders: Folders,
    *,
    profile: Path | None,
    until: Until | None,
    root: Path,
    serve: bool,
) -> None:
    """Carry out files on this machine.

    Args:
        files: YAML files, or the folder of a kustomization; with a model, one file of rows.
        model: base model of a file of rows; empty for YAML.
        gates: bounds for a file of rows.
        folders: folders in place of claims, ConfigMaps and Secrets.
        profile: file with a ComputeProfile in place of this machine's.
        until: last stage; None: all.
        root: folder of the objects, logs and results.
        serve: whether to serve the endpoints of the files after the runs.

    Raises:
        OperationError: the files or this machine do not allow it, or a run fails.
        KeyboardInterrupt: the user interrupted it; the processes have saved their state and ended.
    """
    machine = this_machine()
    profiled = _profile(profile, machine)
    paths, said = manifest_files(
        files, model, gates, lambda rows: keep_for_local_runs(rows, root), serve=serve
    )
    found = read_files(paths)
    only_preflight = until in PREDICTIONS
    objects = adapt(found, profiled, machine_resource=machine.resource, only_preflight=only_preflight)
    volumes = _volumes(found, objects, root.resolve(), folders)
    check_trainer()
    if not only_preflight:
        check_model(objects, volumes, machine)
    stored = Folder(root if profile is None else root / "profiles" / profiled["metadata"]["name"])
    with stored.locked():
        session = Session(stored, volumes)
        program = LocalRun(session, tables.console(), machine, until)
        program.print(*said, *found.notes)
        with _signals(session):
            try:
                program.apply(profiled, objects)
                program.follow_runs(objects)
                if serve and until is None:
                    program.serve([each["metadata"]["name"] for each in found.of("InferenceDeployment")])
            finally:
                session.close()


def _profile(path: Path | None, machine: Machine) -> Manifest:
    if path is None:
        return machine_profile(machine)
    profiles = [each for each in read_objects(path) if each.get("kind") == "ComputeProfile"]
    if len(profiles) != 1:
        raise OperationError(
            f"--profile {path}: {len(profiles)} ComputeProfiles; name a file with one",
            exit_code=ProgramExit.INVALID,
        )
    return as_default(profiles[0])


def _volumes(found: Input, objects: Sequence[Manifest], root: Path, given: Folders) -> VolumeFolders:
    """The folders of the user, checked: each claim and ConfigMap that the objects name exists."""
    folders = {name: root / "claims" / name for name in {STORE, *claims_of(objects)}}
    folders |= given.claims
    for name, path in sorted(folders.items()):
        if name != STORE and not path.is_dir():
            raise OperationError(
                f"pvc://{name}: folder {path} does not exist: name the folder with --claim {name}=FOLDER",
                exit_code=ProgramExit.INVALID,
            )
    maps: dict[str, Content] = {**found.contents["ConfigMap"]}
    maps |= {name: folder_content(path) for name, path in given.configmaps.items()}
    for name in sorted(configmaps_of(objects)):
        if name not in maps:
            raise OperationError(
                f"configmap://{name}: no kustomization.yaml next to the files makes ConfigMap {name}, and no"
                f" file contains it: name a folder with its files with --configmap {name}=FOLDER",
                exit_code=ProgramExit.INVALID,
            )
    keys: dict[str, Content] = {**found.contents["Secret"]}
    keys |= {name: folder_content(path) for name, path in given.secrets.items()}
    return VolumeFolders(claims=folders, configmaps=maps, secrets=keys)


@contextmanager
def _signals(session: Session) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the processes save and end; the second signal kills them."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        session.interrupt()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


ENDS: Final = (ConditionType.READY, ConditionType.SUSPENDED)


@dataclass(slots=True)
class LocalRun:
    """What the program does in a session, and what it prints.

    Attributes:
        until: last stage; None: all.
    """

    session: Session
    console: Console
    machine: Machine
    until: Until | None

    def print(self, *lines: str) -> None:
        """Print each different line."""
        for line in dict.fromkeys(lines):
            self.console.print(f"   {escape(line)}", soft_wrap=True)

    def apply(self, profile: Manifest, objects: Sequence[Manifest]) -> None:
        """Apply the objects and what they need."""
        for manifest in (profile, *map(claim_object, sorted({STORE, *claims_of(objects)})), *objects):
            self.session.apply(manifest)
        self.session.settle()

    def follow_runs(self, objects: Sequence[Manifest]) -> None:
        """Carry out the runs, one after the other, and print their results.

        Raises:
            OperationError: a run failed.
        """
        self.session.kubelet.stages = None if self.until is None else UNTIL[self.until].stages
        endpoint = next((_name(each) for each in objects if each["kind"] == "InferenceDeployment"), "")
        for manifest in objects:
            kind, name = manifest["kind"], _name(manifest)
            if kind not in RUNS:
                continue
            if self.until not in PREDICTIONS:
                run = self.session.cluster.objects[kind, name]
                self.session.before_start = partial(check_memory, run, self.machine)
            if not self._has_ended(kind, name):
                self._follow(kind, name, endpoint)
            failure = self.session.failure(kind, name)
            self._print_result(kind, name, failure)
            if failure is not None:
                raise _error(kind, name, failure)

    def serve(self, endpoints: Sequence[str]) -> None:
        """Serve endpoints until Ctrl-C.

        Raises:
            OperationError: an engine does not start.
        """
        if not endpoints:
            return
        self.session.kubelet.serves = True
        waiting = list(endpoints)
        self.print(f"starting {', '.join(endpoints)} …")
        try:
            for _ in self.session.follow(lambda: False):
                for name in list(waiting):
                    failure = self.session.failure("InferenceDeployment", name)
                    if failure is not None:
                        raise _error("InferenceDeployment", name, failure)
                    if (url := self.session.url(name)) is not None:
                        waiting.remove(name)
                        instead = "" if f":{SERVE_PORT}/" in url else f"port {SERVE_PORT} is in use; "
                        self.print(f"serving {name} at {url}   ({instead}Ctrl-C stops)")
        except KeyboardInterrupt:
            # The run ended before. Ctrl-C is how a person ends a server.
            if waiting:
                raise

    def _has_ended(self, kind: str, name: str) -> bool:
        run = self.session.cluster.objects[kind, name]
        if self.until is not None and has_condition(run, UNTIL[self.until].condition, "True"):
            return True
        if any(has_condition(run, type_, "True") for type_ in ENDS):
            return True
        if self.session.failure(kind, name) is not None:
            return True
        promoted = condition(run, ConditionType.PROMOTED)
        return promoted is not None and promoted["reason"] == Reason.AWAITING_APPROVAL

    def _follow(self, kind: str, name: str, endpoint: str) -> None:
        """Show a run until it has ended."""
        self.print(f"{kind} {name} in {self.session.cluster.folder.root}; {RUNNING_TEXT}")
        turns = self.session.follow(partial(self._has_ended, kind, name))
        if kind != "FineTuneJob":
            for _ in turns:
                pass
            return
        shown_at = 0.0
        with create_view(self.console, lambda: "") as view:
            for _ in turns:
                if time.monotonic() - shown_at >= VIEW_SECONDS:
                    shown_at = time.monotonic()
                    self._show(view, name, endpoint)
            self._show(view, name, endpoint)

    def _show(self, view: View, name: str, endpoint: str) -> None:
        objects: dict[tuple[str, str], Any] = self.session.cluster.objects
        served = objects.get(("InferenceDeployment", endpoint))
        events = self.session.cluster.folder.events()
        view.show(RunStatus.of(objects["FineTuneJob", name], served, events, now()))

    def _print_result(self, kind: str, name: str, failure: FailedRun | None) -> None:
        run = self.session.cluster.objects[kind, name]
        if kind == "FineTuneJob" and self.until in (None, "evaluate"):
            status = self.session.cluster.job(name).status.evaluation
            if status is not None:
                self.console.print(tables.evaluation(status))
        preflighted = condition(run, ConditionType.PREFLIGHTED)
        if self.until == "preflight" and preflighted is not None:
            self.print(f"{kind} {name}: {preflighted.get('message', '')}")
        elif failure is None:
            self.print(f"{kind} {name}: {activity(run)}")


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def _error(kind: str, name: str, failure: FailedRun) -> OperationError:
    log = () if failure.log is None else (f"log: {failure.log}",)
    return OperationError(f"{kind} {name}: {failure.message}", details=log, exit_code=failure.exit_code)
