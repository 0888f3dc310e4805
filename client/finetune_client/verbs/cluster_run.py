# SPDX-License-Identifier: Apache-2.0
"""`finetune run --cluster`: upload the rows, apply the objects, follow the runs and report."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from finetune_client.backend import Backend, Object, Outage, parse, read_object
from finetune_client.client import Run, in_order
from finetune_client.cluster import ClusterBackend
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.local.files import Content, Input, configmaps_of, folder_content, read_files
from finetune_client.outcome import stalled_code
from finetune_client.quick_start import Place, manifest_files
from finetune_client.tables import console, printable
from finetune_client.transfer.copying import AGAIN
from finetune_client.transfer.display import Display
from finetune_client.transfer.stores import bring
from finetune_client.transfer.uploading import MAX_CONFIGMAP_BYTES, Upload, configmap_of
from finetune_client.verbs.following import watch_until
from finetune_client.verbs.results import make_report
from finetune_client.verbs.submitting import apply_all, refuse_other_namespaces
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import Condition
from finetune_operator.status.conditions import is_true, present_state
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.disk_space import size_text

POLL_SECONDS: Final = 1.0
WAITED: Final[dict[str, type[Evaluation] | type[InferenceDeployment]]] = {
    "Evaluation": Evaluation,
    "InferenceDeployment": InferenceDeployment,
}
"""Kinds beside runs that end or serve, with their models."""


def run_in_cluster(
    backend: Backend,
    files: Sequence[Path],
    model: str,
    gates: Sequence[str],
    configmaps: Mapping[str, Path],
    *,
    serve: bool,
) -> None:
    """Carry out files in a namespace. Nothing is applied before the API server accepts all objects.

    Args:
        backend: the namespace.
        files: YAML files, or the folder of a kustomization; with a model, one file of rows.
        model: base model of a file of rows; empty for YAML.
        gates: bounds for a file of rows.
        configmaps: folders with the files of ConfigMaps, by name.
        serve: whether to wait for the endpoints of the files.

    Raises:
        OperationError: an object is refused, or a run or an endpoint fails. The exit code is that of `wait`.
    """
    if not isinstance(backend, ClusterBackend):
        raise OperationError("--cluster needs a cluster")
    paths, said = manifest_files(files, model, gates, lambda _: _uploads_to(backend), serve=serve)
    found = read_files(paths)
    left_out = [(each["kind"], each["metadata"]["name"]) for each in found.of("ComputeProfile")]
    left_out += [*(("Secret", name) for name in found.contents["Secret"]), *found.others]
    for line in (*said, *(f"{kind} {name} is not applied: use kubectl" for kind, name in left_out)):
        print(printable(line))
    objects = in_order(each for each in found.objects if each["kind"] != "ComputeProfile")
    _refuse_other_namespace(found, backend.namespace)
    refuse_other_namespaces(objects, backend.namespace, "run --cluster")
    contents = _needed_configmaps(backend, objects, found.contents["ConfigMap"], configmaps)
    _refuse_unaccepted(backend, [*contents, *objects])
    for configmap in contents:
        backend.apply(configmap)
        print(printable(f"ConfigMap {configmap['metadata']['name']} applied"))
    runs = apply_all(backend, objects)
    new = [run for run in runs if not is_true(run.job.status.conditions, ConditionType.READY)]
    following = list(runs)
    with _interruption(backend.namespace, following):
        failures = []
        while following:
            failures += _follow(backend, following[0])
            following.pop(0)
        for failure in failures[1:]:
            print(printable(f"finetune: {failure}"), file=sys.stderr)
        if failures:
            raise failures[0]
        for each in objects:
            if each["kind"] in WAITED and (serve or each["kind"] != "InferenceDeployment"):
                _wait(backend, each, new)


def _uploads_to(backend: ClusterBackend) -> Place:
    """Uploads rows into a ConfigMap or the default store."""

    def place(upload: Upload) -> Object:
        with Display() as display:
            try:
                uploaded = bring(backend, upload, display)
            except KeyboardInterrupt:
                display.say(f"interrupted: {AGAIN}")
                raise
        secret = {} if uploaded.secret is None else {"credentialsSecretRef": {"name": uploaded.secret}}
        return {"uri": uploaded.uri, **secret}

    return place


def _refuse_other_namespace(found: Input, namespace: str) -> None:
    if found.namespace and found.namespace != namespace:
        raise OperationError(
            f"the kustomization is for namespace {found.namespace}, and the program uses namespace"
            f" {namespace}",
            [f"finetune run --cluster -n {found.namespace} FOLDER"],
            exit_code=ProgramExit.INVALID,
        )


def _needed_configmaps(
    backend: ClusterBackend,
    objects: Sequence[Object],
    made: Mapping[str, Content],
    folders: Mapping[str, Path],
) -> list[Object]:
    """The ConfigMaps to apply: those with rows of the objects that the files or `--configmap` have.

    Raises:
        OperationError: one is neither here nor in the namespace, or too large.
    """
    contents = {**made, **{name: folder_content(path) for name, path in folders.items()}}
    manifests = []
    for name in sorted(configmaps_of(objects)):
        if name not in contents:
            if backend.get("ConfigMap", name) is None:
                raise OperationError(
                    f"configmap://{name}: namespace {backend.namespace} has no ConfigMap {name}, and the"
                    f" files do not make it: name a folder with its files with --configmap {name}=FOLDER",
                    exit_code=ProgramExit.INVALID,
                )
            continue
        values = {
            key: value if isinstance(value, bytes) else value.read_bytes()
            for key, value in contents[name].items()
        }
        size = sum(map(len, values.values()))
        if size > MAX_CONFIGMAP_BYTES:
            raise OperationError(
                f"configmap://{name}: its files have {size_text(size)}, and a ConfigMap holds at most"
                f" {size_text(MAX_CONFIGMAP_BYTES)}: upload them, and write the uri into the Dataset",
                ["finetune upload FOLDER"],
                exit_code=ProgramExit.INVALID,
            )
        manifests.append(configmap_of(name, values.items()))
    return manifests


def _refuse_unaccepted(backend: ClusterBackend, manifests: Sequence[Object]) -> None:
    """Ask the API server about all objects before the first one is applied.

    Raises:
        OperationError: it refuses some.
    """
    refusals = []
    for manifest in manifests:
        try:
            backend.apply(manifest, dry_run=True)
        except OperationError as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    if refusals:
        raise OperationError(
            f"the API server refuses {len(refusals)} objects, and nothing was applied:",
            list(dict.fromkeys(command for error in refusals for command in error.commands)),
            [str(error) for error in refusals],
            ProgramExit.INVALID,
        )


@contextmanager
def _interruption(namespace: str, runs: Sequence[Run]) -> Iterator[None]:
    """Ctrl-C ends only this program: say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        for run in runs:
            print(
                f"FineTuneJob {run.name} goes on in the cluster\n"
                f"  finetune watch {run.name} -n {namespace}\n"
                f"  finetune cancel {run.name} -n {namespace}",
                file=sys.stderr,
            )
        raise


def _follow(backend: ClusterBackend, run: Run) -> list[OperationError]:
    """Show a run until it ends, and report what it achieved.

    Returns:
        The failure of a run that did not succeed.

    Raises:
        OperationError: the run was deleted, or the cluster does not answer.
    """
    failures = []
    try:
        watch_until(backend, run.name)
    except OperationError as error:
        failures.append(error)
    if run.refresh().job.status.evaluation is not None:
        console().print(make_report(backend, run.name).render(), soft_wrap=False)
    return failures


def _wait(backend: ClusterBackend, manifest: Object, made: Sequence[Run]) -> None:
    """Wait until an Evaluation has ended or an endpoint serves, and print how to use it.

    Args:
        backend: where it is.
        manifest: one of the kinds of WAITED.
        made: runs that ended just now. An endpoint that follows them must serve one of their Checkpoints.

    Raises:
        OperationError: it is Stalled.
    """
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    followed = {(each.get("follow") or {}).get("modelLine") for each in manifest["spec"].get("models", ())}
    checkpoints = (run.checkpoint for run in made if run.job.spec.model_line in followed)
    new = {checkpoint.name for checkpoint in checkpoints if checkpoint is not None}
    shown = ""
    outage = Outage()
    while True:
        read = outage.read(partial(read_object, backend, kind, name))
        found = None if read is None else parse(WAITED[kind], read)
        present = None if found is None else _present_state(found)
        if present is not None:
            line = f"{kind} {name}: {present.reason}: {present.message}"
            if present.type == ConditionType.STALLED:
                raise OperationError(line, exit_code=stalled_code(present))
            if present.type != ConditionType.READY:
                if line != shown:
                    print(printable(f"   {line}"), flush=True)
                    shown = line
            elif not isinstance(found, InferenceDeployment):
                return
            elif not new or new & {model.checkpoint for model in found.status.models}:
                print(f"{kind} {name} serves: finetune chat {name} -n {backend.namespace}")
                return
        time.sleep(POLL_SECONDS)


def _present_state(found: Evaluation | InferenceDeployment) -> Condition | None:
    """The condition of the present state; None before the operator has seen the present spec."""
    if found.status.observed_generation != found.metadata.generation:
        return None
    return present_state(found.status.conditions)
