# SPDX-License-Identifier: Apache-2.0
"""`finetune run`: the objects of YAML files on this machine or in a cluster, from rows to a served model."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, get_args

import typer
from rich.console import Console
from rich.markup import escape

from finetune_client import tables
from finetune_client.connection import connect
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.follow import RunStatus, View, create_view, now
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
from finetune_client.local.persistence import ROOT, Folder
from finetune_client.local.profile import STORE, Machine, as_default, machine_profile, this_machine
from finetune_client.local.session import RUNS, UNTIL, FailedRun, Session, Until, activity
from finetune_client.local.worker import claim_object
from finetune_client.offline.manifests import read_objects
from finetune_client.verbs.options import Context, Kubeconfig, Namespace
from finetune_operator.observe.pod_status import condition, has_condition
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.environment import SERVE_PORT

VIEW_SECONDS: Final = 1.0
RUNNING_TEXT: Final = "Ctrl-C saves and ends, a second Ctrl-C kills; the same command continues"


def run(
    *,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="YAML files, or the folder of a kustomization; with --model a file of rows.", metavar="FILE…"
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Base model of a file of rows, whose YAML is written.", metavar="URI")
    ] = "",
    gate: Annotated[
        list[str],
        typer.Option(help="Bound of that YAML's gates, such as 'loss <= 1.5'.", metavar="BOUND"),
    ] = [],  # noqa: B006
    claim: Annotated[
        list[str], typer.Option(help="Folder in place of a claim of pvc://NAME/…", metavar="NAME=FOLDER")
    ] = [],  # noqa: B006 - typer copies it
    configmap: Annotated[
        list[str],
        typer.Option(help="Folder with the files of configmap://NAME/…", metavar="NAME=FOLDER"),
    ] = [],  # noqa: B006
    secret: Annotated[
        list[str], typer.Option(help="Folder with the keys of a Secret as files.", metavar="NAME=FOLDER")
    ] = [],  # noqa: B006
    profile: Annotated[
        Path | None, typer.Option(help="ComputeProfile in place of this machine's.", metavar="FILE")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last stage: " + ", ".join(get_args(Until)))] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the objects, logs and results.")] = ROOT,
    serve: Annotated[
        bool,
        typer.Option(help="Serve the endpoint of the files after the run; with --cluster, wait for it."),
    ] = True,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Run in a cluster: upload the rows, apply, follow and report."),
    ] = False,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Carry out the files on this machine, as the cluster would; with --cluster in a cluster."""
    selected = {"--namespace": namespace, "--context": context, "--kubeconfig": kubeconfig}
    if cluster:
        folders = {"--claim": claim, "--secret": secret, "--profile": profile, "--until": until}
        _refuse_for_cluster({**folders, "--folder": None if folder == ROOT else folder})
        from finetune_client.verbs.cluster_run import run_in_cluster

        backend = connect(namespace, context, kubeconfig)
        run_in_cluster(backend, files, model, gate, _named("--configmap", configmap), serve=serve)
        return
    if named := [option for option, value in selected.items() if value]:
        raise OperationError(
            f"{', '.join(named)}: a run on this machine has no cluster; add --cluster to run in one",
            exit_code=ProgramExit.INVALID,
        )
    from finetune_client.quick_start import keep_for_local_runs, manifest_files

    stage = _until(until)
    machine = this_machine()
    profiled = _profile(profile, machine)
    paths, said = manifest_files(
        files, model, gate, lambda rows: keep_for_local_runs(rows, folder), serve=serve
    )
    found = read_files(paths)
    only_preflight = stage in PREDICTIONS
    objects = adapt(found, profiled, machine_resource=machine.resource, only_preflight=only_preflight)
    given = Folders(*(_named(*each) for each in zip(OPTIONS, (claim, configmap, secret), strict=True)))
    volumes = _volumes(found, objects, folder.resolve(), given)
    check_trainer()
    if not only_preflight:
        check_model(objects, volumes, machine)
    stored = Folder(folder if profile is None else folder / "profiles" / profiled["metadata"]["name"])
    with stored.locked():
        session = Session(stored, volumes)
        program = LocalRun(session, tables.console(), machine, stage)
        program.print(*said, *found.notes)
        with _signals(session):
            try:
                program.apply(profiled, objects)
                program.follow_runs(objects)
                if serve and stage is None:
                    program.serve([each["metadata"]["name"] for each in found.of("InferenceDeployment")])
            finally:
                session.close()


PREDICTIONS: Final = ("prepare", "preflight")
"""Last stages before the weights are loaded. Another machine's profile is enough for them."""
OPTIONS: Final = ("--claim", "--configmap", "--secret")


ONLY_LOCAL: Final = {
    "--claim": "rows and models are uploaded: finetune upload FOLDER --to pvc://NAME",
    "--secret": "a Secret is created before: kubectl create secret generic NAME --from-file=FOLDER",
    "--profile": "the cluster has its own ComputeProfiles; spec.compute.profile selects one",
    "--until": "a run carries out all stages; preflight predicts time and cost before it trains",
    "--folder": "the cluster stores the objects, and `finetune report` shows the results",
}
"""Options of a run on this machine, and what there is in a cluster instead."""


def _refuse_for_cluster(options: Mapping[str, object]) -> None:
    named = [option for option, value in options.items() if value]
    if named:
        raise OperationError(
            f"{', '.join(named)}: only for a run on this machine. In a cluster:",
            details=[f"{option}: {ONLY_LOCAL[option]}" for option in named],
            exit_code=ProgramExit.INVALID,
        )


@dataclass(frozen=True, slots=True)
class Folders:
    """Folders that options name."""

    claims: Mapping[str, Path]
    configmaps: Mapping[str, Path]
    secrets: Mapping[str, Path]


def _until(text: str | None) -> Until | None:
    for stage in get_args(Until):
        if stage == text:
            return stage  # type: ignore[no-any-return]
    if text is None:
        return None
    stages = ", ".join(get_args(Until))
    raise OperationError(f"--until {text} is not a stage: use one of {stages}", exit_code=ProgramExit.INVALID)


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


def _named(option: str, values: Sequence[str]) -> dict[str, Path]:
    folders = {}
    for value in values:
        name, equals, folder = value.partition("=")
        path = Path(folder).expanduser().resolve()
        if not equals or not path.is_dir():
            raise OperationError(
                f"{option} {value}: write {option} NAME=FOLDER with a folder that exists",
                exit_code=ProgramExit.INVALID,
            )
        folders[name] = path
    return folders


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
