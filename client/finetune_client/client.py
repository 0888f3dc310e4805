# SPDX-License-Identifier: Apache-2.0
"""Runs, endpoints and Checkpoints from Python; the objects are the operator's own models."""

import html
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_client.backend import Backend, LogLine, Object, Outage, parse, read_object
from finetune_client.comparison import RunComparison
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.offline.manifests import SUFFIXES, read_objects
from finetune_client.outcome import Outcome, WaitFor, default_goal, find_outcome
from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.evaluation import Score
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_job_status import LossPoint, ProgressStatus
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import API_VERSION

if TYPE_CHECKING:
    from openai import OpenAI

    from finetune_client.local.backend import LocalBackend

POLL_SECONDS: Final = 1.0


class Client:
    """Objects of one namespace of a cluster, or of a folder of local runs.

    Args:
        namespace: namespace of the cluster; empty selects that of the context.
        local: folder of local runs, instead of a cluster.
        context: context of the kubeconfig; empty selects the current one.
        kubeconfig: file with clusters and credentials; None selects the user's, as kubectl does.
        backend: where the objects are, if it is already known.

    Raises:
        OperationError: no cluster is configured, or the arguments contradict each other.
    """

    def __init__(
        self,
        namespace: str = "",
        *,
        local: Path | str | None = None,
        context: str = "",
        kubeconfig: Path | str | None = None,
        backend: Backend | None = None,
    ) -> None:
        if backend is None:
            from finetune_client.connection import connect

            files = (Path(file) if file is not None else None for file in (kubeconfig, local))
            backend = connect(namespace, context, *files)
        self.backend = backend

    @property
    def namespace(self) -> str:
        return self.backend.namespace

    def submit(self, objects: Path | str | Iterable[Object]) -> "list[Run]":
        """Apply objects, or the manifests of a file or folder; the runs among them.

        A cluster starts the runs. Local runs work while `Run.wait` waits for them.

        Raises:
            OperationError: a file has no manifests, or an object was refused.
        """
        if isinstance(objects, Path | str):
            manifests = read_manifests(objects)
            if (local := self._local) is not None:
                local.remember(Path(objects))
        else:
            manifests = list(objects)
        applied = [self.backend.apply(manifest) for manifest in manifests]
        return [Run(self, parse(FineTuneJob, each)) for each in applied if is_run(each)]

    def runs(self, model: str = "") -> "list[Run]":
        """Runs by time of creation; with `model`, those of this model line."""
        jobs = [parse(FineTuneJob, each) for each in self.backend.objects("FineTuneJob")]
        jobs.sort(key=lambda job: (str(job.metadata.creation_timestamp), job.name))
        return [Run(self, job) for job in jobs if model in ("", job.spec.model_line)]

    def run(self, name: str) -> "Run":
        """The run with this name.

        Raises:
            OperationError: it does not exist.
        """
        return Run(self, read_run(self.backend, name))

    def endpoints(self) -> list[InferenceDeployment]:
        """Endpoints by name."""
        found = [parse(InferenceDeployment, x) for x in self.backend.objects("InferenceDeployment")]
        return sorted(found, key=lambda endpoint: endpoint.name)

    def checkpoints(self, model: str = "") -> list[Checkpoint]:
        """Checkpoints by name; with `model`, those of this model line."""
        found = [parse(Checkpoint, each) for each in self.backend.objects("Checkpoint")]
        found = [checkpoint for checkpoint in found if model in ("", checkpoint.spec.model_line)]
        return sorted(found, key=lambda checkpoint: checkpoint.name)

    def compare(self, *names: str) -> RunComparison:
        """Runs side by side: the fields that differ, scores, verdicts and cost. A notebook shows it.

        Raises:
            OperationError: a run does not exist.
        """
        return RunComparison(tuple(read_run(self.backend, name) for name in names))

    @contextmanager
    def openai(self, endpoint: str) -> "Iterator[OpenAI]":
        """During the block, a client of the OpenAI API of an endpoint. A local endpoint serves as long.

        Raises:
            OperationError: the endpoint does not exist, is not reachable, or its key cannot be read.
        """
        from openai import DEFAULT_MAX_RETRIES

        from finetune_client.endpoint import Endpoint, key_of, open_endpoint

        if (local := self._local) is not None:
            with local.serving(endpoint) as url, Endpoint(url, url).client(DEFAULT_MAX_RETRIES) as openai:
                yield openai
            return
        found = read_object(self.backend, "InferenceDeployment", endpoint)
        key = key_of(self.backend, parse(InferenceDeployment, found))
        access = self.backend.access  # type: ignore[attr-defined] # of a cluster
        with (
            open_endpoint(access, endpoint, self.namespace, key) as route,
            route.client(DEFAULT_MAX_RETRIES) as openai,
        ):
            yield openai

    @contextmanager
    def _pausing(self) -> Iterator[Callable[[float], None]]:
        """A function that waits for a number of seconds. Local runs continue meanwhile."""
        local = self._local
        if local is None:
            yield time.sleep
            return
        from finetune_client.local.persistence import FolderInUse

        carry_out: Callable[[float], None] | None = None
        with ExitStack() as stack:

            def pause(seconds: float) -> None:
                nonlocal carry_out
                try:
                    carry_out = carry_out or stack.enter_context(local.carrying_out())
                except FolderInUse:
                    # `finetune run` carries them out, until it ends.
                    time.sleep(seconds)
                else:
                    carry_out(seconds)

            yield pause

    @property
    def _local(self) -> "LocalBackend | None":
        from finetune_client.local.backend import LocalBackend

        return self.backend if isinstance(self.backend, LocalBackend) else None

    def __repr__(self) -> str:
        return f"Client(namespace={self.namespace!r})"


class Run:
    """A FineTuneJob, as it was when it was last read.

    Attributes:
        job: the object.
    """

    def __init__(self, client: Client, job: FineTuneJob) -> None:
        self._client = client
        self.job = job

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def phase(self) -> str:
        """Phase as `kubectl get` shows it; empty if the operator has not seen the run."""
        return self.job.status.phase

    @property
    def progress(self) -> ProgressStatus | None:
        """Progress of the current stage; None before the first report."""
        return self.job.status.progress

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The Checkpoint that was evaluated, or else the best one; None before it exists.

        Raises:
            OperationError: the backend does not answer.
        """
        return find_checkpoint(self._client.backend, self.job)

    def refresh(self) -> "Run":
        """Read the run again.

        Raises:
            OperationError: it was deleted.
        """
        self.job = read_run(self._client.backend, self.name)
        return self

    def wait(self, for_: WaitFor | str = "", timeout: float | None = None) -> Outcome:
        """Wait until the run has reached the goal, or cannot reach it any more.

        The local runs of the folder work meanwhile. After Ctrl-C they save their state, and the next call
        continues.

        Args:
            for_: `promoted`, `ready` or `trained`. Default: promoted, or ready for a run that never promotes.
            timeout: seconds; None waits for ever.

        Raises:
            OperationError: the run did not reach the goal, or not in time; `exit_code` says which.
        """
        goal = WaitFor(for_) if for_ else default_goal(self.job)
        with self._client._pausing() as pause:
            outcome = wait_for(self._client.backend, self.name, goal, timeout, pause)
        self.refresh()
        if outcome.exit_code is not ProgramExit.DONE:
            raise OperationError(outcome.message, exit_code=outcome.exit_code)
        return outcome

    def loss_curve(self) -> tuple[LossPoint, ...]:
        """Points of the loss curve, at most 32; empty until training has ended."""
        checkpoint = self.checkpoint
        return (checkpoint.spec.loss_curve or ()) if checkpoint is not None else ()

    def scores(self) -> tuple[Score, ...]:
        """Scores with their intervals, per metric and model; empty until the run is evaluated."""
        evaluation = self.job.status.evaluation
        return evaluation.scores if evaluation is not None else ()

    def logs(self, stage: str | None = None, *, follow: bool = False) -> Iterator[LogLine]:
        """Lines of the run's pods in the order of its stages, while the pods exist."""
        return self._client.backend.logs(self.name, stage, follow=follow)

    def cancel(self) -> None:
        """End the run; its Checkpoints stay. A finished run does not change.

        Raises:
            OperationError: the run was deleted, or the user may not change it.
        """
        self._client.backend.patch("FineTuneJob", self.name, {"spec": {"cancel": True}})
        self.refresh()

    def __repr__(self) -> str:
        return f"Run({self.name!r}, phase={self.phase!r})"

    def _repr_html_(self) -> str:
        """Phase, present condition and scores as a table of a notebook."""
        from finetune_client.follow import RunStatus, now

        activity = RunStatus(self.job, None, (), now()).activity
        rows = "".join(
            f"<tr><td>{html.escape(score.metric)}</td><td>{html.escape(score.subject)}</td>"
            f"<td>{score.value:.3f}</td><td>{_interval(score)}</td></tr>"
            for score in self.scores()
        )
        head = "<tr><th>metric</th><th>model</th><th>value</th><th>95 % interval</th></tr>"
        table = f"<table>{head}{rows}</table>" if rows else ""
        name, phase = html.escape(self.name), html.escape(self.phase)
        return f"<p><b>FineTuneJob {name}</b> {phase}<br>{html.escape(activity)}</p>{table}"


def read_run(backend: Backend, name: str) -> FineTuneJob:
    """The run with this name.

    Raises:
        OperationError: it does not exist; the message lists other runs.
    """
    found = read_object(backend, "FineTuneJob", name, ["finetune ls: the runs of the namespace"])
    return parse(FineTuneJob, found)


def find_checkpoint(backend: Backend, job: FineTuneJob) -> Checkpoint | None:
    """The Checkpoint that a run evaluated, or else its best one; None before it exists."""
    evaluation = job.status.evaluation
    best = next((each.name for each in job.status.checkpoints if each.best), None)
    name = evaluation.checkpoint if evaluation is not None else best
    found = backend.get("Checkpoint", name) if name else None
    return parse(Checkpoint, found) if found is not None else None


def wait_for(
    backend: Backend,
    name: str,
    goal: WaitFor,
    timeout: float | None,
    pause: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Poll until the run has reached the goal or cannot reach it any more.

    Args:
        backend: where the run is.
        name: name of the FineTuneJob.
        goal: what to wait for.
        timeout: seconds; None waits for ever.
        pause: waits for a number of seconds.

    Raises:
        OperationError: the run was deleted, or the API server does not answer for long.
    """

    def read() -> tuple[str, Outcome | None]:
        """The run's phase, and how the wait has ended."""
        job = read_run(backend, name)
        checkpoint = find_checkpoint(backend, job) if goal is WaitFor.PROMOTED else None
        return job.status.phase, find_outcome(job, goal, checkpoint)

    until = None if timeout is None else time.monotonic() + timeout
    outage = Outage()
    phase = ""
    while True:
        phase, outcome = outage.read(read) or (phase, None)
        if outcome is not None:
            return outcome
        left = POLL_SECONDS if until is None else until - time.monotonic()
        if left <= 0:
            message = f"FineTuneJob {name} is not {goal.value} after {timeout:g} s: it is {phase}"
            return Outcome(ProgramExit.TIMED_OUT, message.removesuffix(": it is "))
        pause(min(POLL_SECONDS, left))


def read_manifests(path: Path | str) -> list[Object]:
    """Objects of our kinds in a file or folder, those first that others refer to.

    Raises:
        OperationError: it cannot be read, is not YAML, or has another object or none.
    """
    path = Path(path)
    files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES) if path.is_dir() else [path]
    manifests: list[Object] = []
    for file in files:
        for number, each in enumerate(read_objects(file), 1):
            _check_manifest(f"{file}, object {number}", each, skips=path.is_dir(), manifests=manifests)
    if not manifests:
        raise OperationError(f"{path} has no objects of {API_VERSION}", exit_code=ProgramExit.INVALID)
    return in_order(manifests)


def in_order(manifests: Iterable[Object]) -> list[Object]:
    """Objects with those first that others refer to."""
    order = {"Dataset": 0, "InferenceDeployment": 2}
    return sorted(manifests, key=lambda manifest: order.get(manifest["kind"], 1))


def _check_manifest(where: str, found: Object, *, skips: bool, manifests: list[Object]) -> None:
    """Add an object to the manifests; of a folder, other objects are skipped."""
    if found.get("apiVersion") != API_VERSION or found.get("kind") not in KINDS_BY_NAME:
        if skips:
            return
        named = f"{found.get('apiVersion')} {found.get('kind')}"
        raise OperationError(
            f"{where} is {named}, and finetune submits only the kinds of {API_VERSION}",
            ["kubectl apply -f FILE: for other objects"],
            exit_code=ProgramExit.INVALID,
        )
    metadata = found.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise OperationError(f"{where}: metadata.name is missing", exit_code=ProgramExit.INVALID)
    manifests.append(found)


def is_run(manifest: Object) -> bool:
    """Whether an object is a FineTuneJob."""
    return manifest.get("kind") == "FineTuneJob"


def _interval(score: Score) -> str:
    return "" if score.low is None or score.high is None else f"{score.low:.2f} to {score.high:.2f}"
