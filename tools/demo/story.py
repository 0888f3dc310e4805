# SPDX-License-Identifier: Apache-2.0
"""The steps of the demo."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import yaml
from openai import DEFAULT_MAX_RETRIES
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune_client import tables
from finetune_client.cluster import ClusterBackend
from finetune_client.endpoint import Endpoint, open_endpoint
from finetune_client.errors import OperationError
from finetune_client.follow import Follower, RunStatus, StalledError, duration
from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset import DatasetSpec
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.labels import REVISION, RUN
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.contract.dataset import Split
from tools.bootstrap.uv import ROOT
from tools.demo.admin_access import NAMESPACE, AdminAccess, prepare_namespace
from tools.demo.install import PROFILE, RELEASE, SYSTEM, TWO_THREADS, copy_model, images, install
from tools.demo.questions import OVERLOAD, SteadyLoad, calibrated_rate, compare, held_out

EXAMPLE: Final = ROOT / "examples" / "ticket-routing"
SECOND_RUN: Final = EXAMPLE / "v2"
NAME: Final = "ticket-routing"
"""Name of the first run, its model line, its endpoint and the served model."""

PATIENCE_SECONDS: Final = 900.0
"""A run and its endpoint without any change for so long count as stuck."""
TERMINATING_SECONDS: Final = 180.0
LOG_LINES: Final = 5
"""Number of log lines per container of a failed run."""
BEFORE: Final = "before the rollout"
DURING: Final = "during the rollout"
AFTER: Final = "after the rollout, while old pods ended"
MAX_IN_FLIGHT: Final = 4
"""Fewer than a replica answers at the same time, so no request waits. Slow answers slow the clients down."""
MAX_SHED_SHARE: Final = 0.01
"""Expected share of refused attempts."""

LIMITATIONS: Final = (
    "No GPU: training and serving run on the CPU, and a device is a CPU core.",
    "One node: no pod is moved or preempted. The store is a local volume.",
    "One seed and a few dozen test rows: the scores show that the chain works, not how good a method is.",
)


class Story:
    """Runs the steps, and prints the duration of each."""

    def __init__(self, access: AdminAccess, console: Console) -> None:
        self._access = access
        self._console = console
        self._number = 0

    def run(self) -> None:
        """Run the demo.

        Raises:
            OperationError: a step failed.
        """
        self._print(f"[bold]From rows to a served model[/] on {self._access.where}, namespace {NAMESPACE}.")
        with self._step("Install the operator with its Helm chart"):
            refs = images()
            spec = {**PROFILE, "pods": [*PROFILE["pods"], TWO_THREADS]}
            install(self._access, refs, defaultProfile={"spec": spec})
            self._print(f"Helm release finetune-operator in {SYSTEM}; image {refs.operator}")
        with self._step("Create a namespace, and copy the base model to a claim"):
            removed = prepare_namespace(self._access)
            if removed:
                self._print(f"Removed {len(removed)} objects and the store of an earlier demo")
            copied = copy_model(self._access, refs.operator, self._console)
            self._print("Gemma 3 270M " + ("copied" if copied else "is already on the claim"))
        with self._step(f"kubectl apply -k {EXAMPLE.relative_to(ROOT)}"):
            self._apply(EXAMPLE)
            first = self._follow(self._follower(NAME), _is_served)
        with open_endpoint(self._access, NAME, NAMESPACE) as endpoint:
            self._show_first(first, endpoint)
            self._roll_out_second(first, endpoint)
        self._print_next_steps()

    def _show_first(self, first: RunStatus, endpoint: Endpoint) -> None:
        with self._step("Results"):
            if first.job.status.evaluation is not None:
                self._console.print(tables.evaluation(first.job.status.evaluation))
            self._console.print(self._records())
            self._print(f"Requests go through {endpoint.how}, with the openai SDK: {endpoint.url}")
            self._show_answers(endpoint)

    def _roll_out_second(self, first: RunStatus, endpoint: Endpoint) -> None:
        before = first.endpoint.status.revision if first.endpoint is not None else ""
        rows = [row.input[0].content for row in held_out(EXAMPLE / "data" / "tickets.jsonl", _split(EXAMPLE))]
        follower = self._follower(f"{NAME}-v2")
        with self._step(f"kubectl apply -k {SECOND_RUN.relative_to(ROOT)}: a second run with more rows"):
            with endpoint.client(DEFAULT_MAX_RETRIES) as client:
                rate = calibrated_rate(client, NAME, rows)
            self._apply(SECOND_RUN)
            self._print(
                f"The demo sends {rate:.1f} requests per second, at most half of what the idle endpoint"
                " answered, from the end of training to that of the last old pod"
            )
            self._follow(follower, lambda status: status.condition(ConditionType.TRAINED) is not None)
            load = RolloutLoad(endpoint, NAME, rows, rate)
            with load:
                second = self._follow(follower, load.sees_served, load.line)
                load.enter(AFTER)
                self._wait_until_deleted(before, load)
            if second.job.status.evaluation is not None:
                self._console.print(tables.evaluation(second.job.status.evaluation))
            self._console.print(self._records())
            after = second.endpoint.status.revision if second.endpoint is not None else ""
            self._print(f"revision {before} → {after}")
            self._print(f"{load.line()}; slowest answer {load.slowest:.1f} s")
            for line in load.phases():
                self._print(line)
            for failure, count in load.failures.items():
                self._print(f"[red]{count} times[/] {escape(failure)}")
            if load.shed > MAX_SHED_SHARE * load.sent:
                self._print(
                    f"[yellow]The endpoint refused {load.shed} attempts[/], and clients came back. Other"
                    " programs use the processors of this machine"
                )
            self._show_answers(endpoint)
        load.raise_failures()

    def _follower(self, job: str) -> Follower:
        return Follower(
            ClusterBackend(self._access, NAMESPACE),
            self._console,
            job,
            NAME,
            patience_seconds=PATIENCE_SECONDS,
        )

    def _follow(
        self, follower: Follower, done: Callable[[RunStatus], bool], extra: Callable[[], str] = lambda: ""
    ) -> RunStatus:
        """Show the run until `done` is true; `extra` is an additional line to show.

        Raises:
            OperationError: the run or the endpoint does not advance; `details` is the end of the pods' logs.
        """
        try:
            return follower.until(done, extra)
        except StalledError as error:
            run, endpoint = error.status.job, error.status.endpoint
            selector = f"{RUN} in ({','.join([run.uid, *([endpoint.uid] if endpoint else [])])})"
            logs = self._access.kubectl(
                "logs", f"--namespace={NAMESPACE}", f"--selector={selector}", f"--tail={LOG_LINES}",
                "--all-containers", "--prefix", "--ignore-errors",
            )  # fmt: skip
            commands = (
                f"kubectl -n {NAMESPACE} logs --selector='{selector}' --all-containers --prefix",
                f"kubectl -n {SYSTEM} logs deployment/{RELEASE}",
            )
            raise OperationError(str(error), [*error.commands, *commands], logs.splitlines()) from error

    def _wait_until_deleted(self, revision: str, load: SteadyLoad) -> None:
        """Wait until the pods of the old revision no longer exist."""
        deadline = time.monotonic() + TERMINATING_SECONDS
        text = "   The old pods finish their requests"
        with self._console.status(text) as shown:
            while self._access.pods(NAMESPACE, f"{REVISION}={revision}"):
                if time.monotonic() > deadline:
                    raise OperationError(
                        f"pods of revision {revision} still exist after {TERMINATING_SECONDS:.0f} s",
                        [f"kubectl -n {NAMESPACE} describe pods -l {REVISION}={revision}"],
                    )
                shown.update(f"{text}; {load.line()}")
                time.sleep(1)

    def _apply(self, folder: Path) -> None:
        self._access.kubectl(
            "apply", "--server-side", "--force-conflicts", f"--namespace={NAMESPACE}", f"--kustomize={folder}"
        )

    def _show_answers(self, endpoint: Endpoint) -> None:
        rows = held_out(EXAMPLE / "data" / "tickets.jsonl", _split(EXAMPLE))
        with endpoint.client() as client:
            title = "Held-out questions (not in the training rows)"
            self._console.print(tables.answers(title, compare(client, NAME, rows)))

    def _records(self) -> Table:
        versions = [
            DatasetVersion.model_validate(each) for each in self._access.objects("DatasetVersion", NAMESPACE)
        ]
        checkpoints = [
            Checkpoint.model_validate(each) for each in self._access.objects("Checkpoint", NAMESPACE)
        ]
        return tables.records(versions, checkpoints)

    def _print_next_steps(self) -> None:
        self._console.print("\n[bold]Limitations of this demo[/]")
        for line in LIMITATIONS:
            self._print(f"- {line}")
        self._console.print("\n[bold]Next steps[/]")
        commands = [
            *([self._access.hint] if self._access.hint else []),
            f"kubectl -n {NAMESPACE} get finetune",
            f"kubectl -n {NAMESPACE} describe finetunejob {NAME}-v2",
            f"kubectl -n {NAMESPACE} get checkpoints -o yaml",
            f"kubectl -n {NAMESPACE} get events --sort-by=.lastTimestamp",
            "kubectl explain finetunejob.spec --recursive",
            f"kubectl -n {NAMESPACE} port-forward service/{NAME} 8000:80   # base URL http://127.0.0.1:8000/v1",
        ]
        for command in commands:
            self._console.print(f"   {command}", soft_wrap=True, markup=False)
        self._print("The cluster keeps running; `make cluster-down` stops it.")

    def _print(self, markup: str) -> None:
        self._console.print(f"   {markup}")

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        """Print the title of a step before the block, and its duration after it."""
        self._number += 1
        began = time.monotonic()
        self._console.print(f"\n[bold]{self._number}. {title}[/]")
        yield
        self._print(f"[dim]{duration(time.monotonic() - began)}[/]")


class RolloutLoad(SteadyLoad):
    """Requests from before the rollout until after it, by clients as users have them: with retries."""

    def __init__(self, endpoint: Endpoint, model: str, prompts: Sequence[str], per_second: float) -> None:
        client = endpoint.client(DEFAULT_MAX_RETRIES, self.count_shed)
        super().__init__(client, model, prompts, per_second, max_in_flight=MAX_IN_FLIGHT)
        self.enter(BEFORE)

    def sees_served(self, status: RunStatus) -> bool:
        """Whether the new revision serves. Notes when its rollout begins."""
        revisions = status.endpoint.status.revisions if status.endpoint is not None else ()
        if any(each.state == "RollingOut" for each in revisions):
            self.enter(DURING)
        return _is_served(status)

    def raise_failures(self) -> None:
        """Raise a OperationError that says which requests failed, when and why, if some did."""
        failed = [each for each in self.ended if each.failure]
        if not failed:
            return
        counts = Counter((each.phase, each.kind) for each in failed)
        found = ", ".join(f"{count} {kind} {phase}" for (phase, kind), count in counts.items())
        message = f"{len(failed)} of {self.sent} requests failed: {found}"
        if all(each.kind in OVERLOAD for each in failed):
            raise OperationError(
                f"{message}. The endpoint was too slow for them, which is not a failure of the rollout: end"
                " other programs on this machine, and run the demo again",
                ["uptime", f"kubectl -n {NAMESPACE} get pods"],
            )
        raise OperationError(
            f"{message}. None is expected to fail",
            [f"kubectl -n {NAMESPACE} describe inferencedeployment {NAME}"],
        )


def _is_served(status: RunStatus) -> bool:
    return status.condition(ConditionType.READY) is not None and status.serves_own


def _split(folder: Path) -> Split:
    """The split in the spec of the example's Dataset."""
    spec = DatasetSpec.model_validate(yaml.safe_load((folder / "dataset.yaml").read_text())["spec"])
    return Split(validation=spec.split.validation, test=spec.split.test, seed=spec.split.seed)
