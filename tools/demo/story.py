"""The demo from beginning to end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import yaml
from rich.console import Console
from rich.table import Table

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset import DatasetSpec
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.manifests.labels import REVISION
from finetune_trainer.contract.dataset import Split
from tools.bootstrap.uv import ROOT
from tools.demo import basemodel, namespace, tables
from tools.demo.access import Access
from tools.demo.endpoint import Endpoint, open_endpoint
from tools.demo.errors import DemoError
from tools.demo.follow import Follower
from tools.demo.install import SYSTEM, images, install
from tools.demo.load import SteadyLoad
from tools.demo.namespace import NAMESPACE
from tools.demo.questions import compare, held_out
from tools.demo.stages import DemoStatus, duration

EXAMPLE: Final = ROOT / "examples" / "ticket-routing"
SECOND_RUN: Final = EXAMPLE / "v2"
NAME: Final = "ticket-routing"
"""Of the first run, its model line, its endpoint and the model that clients ask for."""

TERMINATING_SECONDS: Final = 180.0

LIMITATIONS: Final = (
    "No GPU: training and serving run on the CPU, and a device is a CPU core.",
    "One node: nothing is moved or preempted. The store is a local volume.",
    "Nobody tells the base model the teams' names: how far a good prompt alone would get is not measured.",
    "One seed and a few dozen test rows: the scores show that the chain works, not how good the method is.",
)


class Story:
    """Tells what it does and how long it took."""

    def __init__(self, access: Access, console: Console) -> None:
        self._access = access
        self._console = console
        self._step = 0

    def tell(self) -> None:
        """The whole demo.

        Raises:
            DemoError: a step did not succeed.
        """
        self._say(f"[bold]From rows to a served model[/] on {self._access.where}, namespace {NAMESPACE}.")
        with self._titled("The operator, by its Helm chart"):
            refs = images()
            install(self._access, refs)
            self._say(f"helm release finetune-operator in {SYSTEM}; image {refs.operator}")
        with self._titled("A namespace of its own, and the base model on a claim in it"):
            removed = namespace.prepare(self._access)
            if removed:
                self._say(f"removed what an earlier demo left: {len(removed)} objects and the store")
            copied = basemodel.copy(self._access, refs.operator, self._console)
            self._say("Gemma 3 270M " + ("copied" if copied else "is there already"))
        with self._titled(f"kubectl apply -k {EXAMPLE.relative_to(ROOT)}"):
            self._apply(EXAMPLE)
            first = Follower(self._access, self._console, NAME, NAME).until(_served)
        with open_endpoint(self._access, NAME) as endpoint:
            self._show_first(first, endpoint)
            self._roll(first, endpoint)
        self._say_goodbye()

    def _show_first(self, first: DemoStatus, endpoint: Endpoint) -> None:
        with self._titled("What came of it"):
            if first.job.status.evaluation is not None:
                self._console.print(tables.evaluation(first.job.status.evaluation))
            self._console.print(self._records())
            self._say(f"asking through {endpoint.how}, with the openai SDK: {endpoint.url}")
            self._show_answers(endpoint)

    def _roll(self, first: DemoStatus, endpoint: Endpoint) -> None:
        before = first.endpoint.status.revision if first.endpoint is not None else ""
        rows = [row.input[0].content for row in held_out(EXAMPLE / "data" / "tickets.jsonl", _split(EXAMPLE))]
        follower = Follower(self._access, self._console, f"{NAME}-v2", NAME)
        with self._titled(f"kubectl apply -k {SECOND_RUN.relative_to(ROOT)}: more rows, a second run"):
            self._apply(SECOND_RUN)
            self._say("two requests a second start when training is done, and end with the last old pod")
            follower.until(lambda snapshot: snapshot.condition("Trained") is not None)
            load = SteadyLoad(endpoint.client(), NAME, rows)
            with load:
                second = follower.until(_served, load.line)
                self._wait_until_gone(before, load)
            if second.job.status.evaluation is not None:
                self._console.print(tables.evaluation(second.job.status.evaluation))
            self._console.print(self._records())
            after = second.endpoint.status.revision if second.endpoint is not None else ""
            self._say(f"revision {before} → {after}")
            self._say(f"{load.line()}; slowest answer {load.slowest:.1f} s")
            for failure, count in load.failures.items():
                self._say(f"[red]{count} times[/] {failure}")
            self._show_answers(endpoint)
        if load.failed:
            raise DemoError(
                f"{load.failed} of {load.sent} requests failed during the rollout; none should",
                [f"kubectl -n {NAMESPACE} describe inferencedeployment {NAME}"],
            )

    def _wait_until_gone(self, revision: str, load: SteadyLoad) -> None:
        deadline = time.monotonic() + TERMINATING_SECONDS
        with self._console.status("   the old pods finish what they have begun") as shown:
            while self._access.pods(NAMESPACE, f"{REVISION}={revision}"):
                if time.monotonic() > deadline:
                    raise DemoError(
                        f"pods of revision {revision} are still there",
                        [f"kubectl -n {NAMESPACE} describe pods -l {REVISION}={revision}"],
                    )
                shown.update(f"   the old pods finish what they have begun; {load.line()}")
                time.sleep(1)

    def _apply(self, folder: Path) -> None:
        self._access.kubectl(
            "apply", "--server-side", "--force-conflicts", f"--namespace={NAMESPACE}", f"--kustomize={folder}"
        )

    def _show_answers(self, endpoint: Endpoint) -> None:
        rows = held_out(EXAMPLE / "data" / "tickets.jsonl", _split(EXAMPLE))
        with endpoint.client() as client:
            self._console.print(tables.answers(compare(client, NAME, rows)))

    def _records(self) -> Table:
        versions = [
            DatasetVersion.model_validate(each) for each in self._access.objects("DatasetVersion", NAMESPACE)
        ]
        checkpoints = [
            Checkpoint.model_validate(each) for each in self._access.objects("Checkpoint", NAMESPACE)
        ]
        return tables.records(versions, checkpoints)

    def _say_goodbye(self) -> None:
        self._console.print("\n[bold]What this demo leaves out[/]")
        for line in LIMITATIONS:
            self._say(f"- {line}")
        self._console.print("\n[bold]What to try next[/]")
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
        self._say("The cluster keeps running; `make cluster-down` stops it.")

    def _say(self, markup: str) -> None:
        self._console.print(f"   {markup}")

    @contextmanager
    def _titled(self, title: str) -> Iterator[None]:
        self._step += 1
        began = time.monotonic()
        self._console.print(f"\n[bold]{self._step}. {title}[/]")
        yield
        self._say(f"[dim]{duration(time.monotonic() - began)}[/]")


def _served(snapshot: DemoStatus) -> bool:
    return snapshot.condition("Ready") is not None and snapshot.serves_own


def _split(folder: Path) -> Split:
    """The split that the example's Dataset asks for."""
    spec = DatasetSpec.model_validate(yaml.safe_load((folder / "dataset.yaml").read_text())["spec"])
    return Split(validation=spec.split.validation, test=spec.split.test, seed=spec.split.seed)
