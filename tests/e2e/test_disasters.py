# SPDX-License-Identifier: Apache-2.0
"""What happens to a cluster in years, one after the other, while clients ask an endpoint and a run trains.

The tests are the steps of one story, in their order, and begin with the base release. They damage
the cluster, so it has to be the session's own: `python -m tools.cluster isolated -- ...`.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from finetune_client.backend import Object
from finetune_client.endpoint import ask
from finetune_operator.api.crd import KINDS
from tests.baserelease import BaseRelease
from tests.e2e import manifests, operatorpods, pods
from tests.e2e.newconnections import client_of
from tests.e2e.pacing import FAST, LONG, RESUMED, SAVED, SLOW, STEPS, pace, resize
from tests.e2e.team import (
    PATIENCE_SECONDS,
    PAUSE_SECONDS,
    Team,
    condition_of,
    is_running,
    name_of,
    new_namespace,
    uid_of,
)
from tests.waiting import eventually
from tools.bench.operator.control_planes import client, create
from tools.cluster import TestCluster
from tools.cluster.layout import ISOLATED
from tools.demo.admin_access import AdminAccess
from tools.demo.install import (
    CHART,
    CRD,
    DEFINITIONS,
    RELEASE,
    SYSTEM,
    images,
    install,
    install_definitions,
    install_operator,
    values,
)
from tools.demo.questions import LoadRequest, SteadyLoad
from tools.images.tags import References

REQUESTS_PER_SECOND: Final = 4.0
NEIGHBOURS: Final = 2000
"""Number of runs that another team creates."""
FROZEN_SECONDS: Final = 60.0
BACK_WITHIN_SECONDS: Final = 5.0
"""Time for which requests may fail after a user deleted the endpoint's Service."""


@dataclass
class Disaster:
    """A time in which something happened to the cluster.

    Attributes:
        name: what happened.
        began: by the monotonic clock, as `ended`.
        forgiven: until when requests may fail.
        note: what else was seen.
    """

    name: str
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    forgiven: float = 0.0
    note: str = ""


@dataclass
class Scene:
    """Two teams on one cluster: `ours` has the endpoint that is asked and the run that trains all the time.

    Attributes:
        endpoint, run: `support` and `steady` of ours.
        calm: a run of theirs with the same rows and settings as `steady`, ended before anything happened.
    """

    cluster: TestCluster
    access: AdminAccess
    refs: References
    ours: Team
    theirs: Team
    endpoint: Object
    run: Object
    calm: Object
    load: SteadyLoad
    disasters: list[Disaster] = field(default_factory=list)

    @contextmanager
    def disaster(self, name: str) -> Iterator[Disaster]:
        """Check that no request fails during the block, and that no serving pod is replaced or restarted."""
        serving = self.ours.serving(self.endpoint)
        disaster = Disaster(name)
        self.disasters.append(disaster)
        try:
            yield disaster
        finally:
            disaster.ended = time.monotonic()
        assert self.ours.serving(self.endpoint) == serving
        assert self.asked(disaster) != []
        assert self.unforgiven(disaster) == []

    def asked(self, disaster: Disaster) -> list[LoadRequest]:
        """Completed requests that were sent during the disaster."""
        return [each for each in self.load.ended if disaster.began <= each.at <= disaster.ended]

    def unforgiven(self, disaster: Disaster) -> list[LoadRequest]:
        return [each for each in self.asked(disaster) if each.failure and each.at > disaster.forgiven]

    def train_pods(self) -> list[Object]:
        return self.ours.children("pods", uid_of(self.run), "train")

    def kept(self) -> Object:
        """State that a change of the operator's release must not affect."""
        jobs = self.ours.children("jobs", uid_of(self.run))
        return {
            "jobs": sorted(uid_of(job) for job in jobs),
            "pods": sorted(uid_of(pod) for pod in self.train_pods()),
            "settings": self.ours.get("FineTuneJob", "steady")["status"]["resolved"],
            "revision": self.ours.get("InferenceDeployment", "support")["status"]["revision"],
        }

    def newest_step(self) -> int:
        """The last step whose state is in the store."""
        claim = self.ours.kubectl("get", "pvc", "artifacts", "--output=jsonpath={.metadata.uid}")
        return newest_step(self.cluster.layout.volumes / claim, self.run)


def newest_step(store: Path, run: Object) -> int:
    states = (store / "runs" / uid_of(run) / "train" / "state").glob("step-*")
    numbers = (each.name.removeprefix("step-") for each in states)
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


@pytest.fixture(scope="module")
def own(cluster: TestCluster) -> TestCluster:
    """The session's own cluster."""
    if ISOLATED not in os.environ:
        pytest.skip("would damage a cluster that is not the session's own: python -m tools.cluster isolated")
    return cluster


@pytest.fixture(scope="module")
def refs(own: TestCluster, access: AdminAccess, tmp_path_factory: pytest.TempPathFactory) -> References:
    """The images of the present sources. The base release is installed, and then older definitions."""
    crd = access.kubectl("get", f"crd/{CRD}", "--ignore-not-found", "--output=name")
    assert not crd, "the cluster has had another release"
    refs, base = images(), BaseRelease(tmp_path_factory.mktemp("base"))
    definitions = str(base.chart(DEFINITIONS))
    upgrade = (
        "upgrade",
        "--install",
        DEFINITIONS,
        definitions,
        f"--namespace={SYSTEM}",
        "--create-namespace",
    )
    access.helm(*upgrade)
    with_base = refs._replace(operator=base.operator_image(refs.operator))
    install_operator(access, with_base, base.chart(RELEASE))
    # An operator compares the definitions with its own only when it starts.
    base.remove_field("finetunejobs", "status", "live")
    access.helm(*upgrade)
    return refs


@pytest.fixture(scope="module")
def teams(access: AdminAccess, refs: References) -> Iterator[tuple[Team, Team]]:
    """Two namespaces, each with claims, a base model and a prepared Dataset."""
    with (
        new_namespace(access, "ours", "restricted") as ours,
        new_namespace(access, "theirs", "restricted") as theirs,
    ):
        ours.apply(manifests.profile(manifests.CPU))
        for team, policy in ((ours, "Retain"), (theirs, "Delete")):
            team.apply(
                manifests.claim("artifacts"),
                manifests.claim("models"),
                pods.keeper(refs.operator),
                manifests.configmap("tickets", manifests.jsonl("billing")),
                manifests.dataset("tickets", "tickets", deletionPolicy=policy),
            )
        for team in (ours, theirs):
            pods.keep_model(team, refs.operator)
        yield ours, theirs
    access.kubectl("delete", "computeprofile", manifests.CPU)


@pytest.fixture(scope="module")
def scene(
    own: TestCluster, access: AdminAccess, refs: References, teams: tuple[Team, Team]
) -> Iterator[Scene]:
    """The scene in operation: the endpoint gets requests, and the run has saved its first state."""
    ours, theirs = teams
    ours.apply(
        manifests.endpoint("support", "champion"),
        manifests.finetunejob("champion"),
        manifests.finetunejob("steady", **LONG),
    )
    theirs.apply(
        manifests.endpoint("other", "calm"), manifests.finetunejob("calm", deletionPolicy="Delete", **LONG)
    )
    endpoint, run = ours.get("InferenceDeployment", "support"), ours.get("FineTuneJob", "steady")
    pace(ours, ours.pod(uid_of(run), "train"), SAVED, SLOW)
    ours.until("InferenceDeployment", "support", "Ready")
    calm = theirs.until("FineTuneJob", "calm", "Ready", "Promoted")
    theirs.until("InferenceDeployment", "other", "Ready")
    with ExitStack() as stack:
        openai = stack.enter_context(client_of("support", ours.namespace))
        load = SteadyLoad(openai, "tuned", manifests.PROMPTS, REQUESTS_PER_SECOND)
        stack.enter_context(load)
        until(lambda: load.answered, "an answer", lambda: load.failures)
        yield Scene(own, access, refs, ours, theirs, endpoint, run, calm, load)


@dataclass(frozen=True)
class EtcdSnapshot:
    """etcd as it was once.

    Attributes:
        taken: by the monotonic clock.
        pod: that of the run's training, which was replaced since.
    """

    taken: float
    pod: Object


@pytest.fixture(scope="module")
def snapshot(scene: Scene) -> EtcdSnapshot:
    """A snapshot while the run trains in a pod, which is evicted right after it; the next pod resumes."""
    (pod,) = filter(is_running, scene.train_pods())
    scene.cluster.save()
    taken = time.monotonic()
    scene.ours.evict(pod)
    second = scene.ours.pod(uid_of(scene.run), "train", other_than=(name_of(pod),))
    pace(scene.ours, second, RESUMED, SLOW)
    return EtcdSnapshot(taken, pod)


def until(condition: Callable[[], object], what: str, describe: Callable[[], object] = str) -> None:
    eventually(what, condition, PATIENCE_SECONDS, describe, pause=PAUSE_SECONDS)


def step_in(line: str, after: str) -> int:
    """The number after this text in a log line."""
    return int(line.partition(after)[2].split()[0])


def test_an_operator_on_older_definitions_names_them_and_leaves_the_work_to_the_one_before(
    scene: Scene,
) -> None:
    ours, access = scene.ours, scene.access
    with scene.disaster("older definitions"):
        before, kept = operatorpods.active(access), scene.kept()
        access.helm(
            "upgrade", RELEASE, str(CHART), f"--namespace={SYSTEM}", "--values=-", text=values(scene.refs)
        )

        def outdated() -> list[str]:
            found = operatorpods.pods_of_operator(access)
            answers = [operatorpods.readiness(pod) for pod in found if uid_of(pod) != uid_of(before)]
            return [each for answer in answers for each in answer.get("outdatedDefinitions", ())]

        until(outdated, "the new operator names the definitions")
        assert any(each.startswith(f"{CRD} is outdated: it lacks ") for each in outdated()), outdated()
        ours.apply(manifests.finetunejob("seen", suspend=True))
        ours.until("FineTuneJob", "seen", "Suspended")
        ready = [pod for pod in operatorpods.pods_of_operator(access) if condition_is_true(pod, "Ready")]
        assert [uid_of(pod) for pod in ready] == [uid_of(before)]
        assert uid_of(operatorpods.active(access)) == uid_of(before)

        install_definitions(access)

        operatorpods.active(access, other_than=(uid_of(before),))
        assert scene.kept() == kept


def condition_is_true(pod: Object, type_: str) -> bool:
    return condition_of(pod, type_).get("status") == "True"


def test_an_operator_that_is_rolled_back_and_forward_keeps_pods_and_settings(scene: Scene) -> None:
    access, namespace = scene.access, f"--namespace={SYSTEM}"
    with scene.disaster("operator rolled back and forward"):
        new, kept = operatorpods.active(access), scene.kept()

        access.helm("rollback", RELEASE, "1", namespace, "--wait", "--timeout=3m")

        older = operatorpods.active(access, other_than=(uid_of(new),))
        assert image_of(older) != image_of(new)
        assert scene.kept() == kept

        install(access, scene.refs)

        again = operatorpods.active(access, other_than=(uid_of(new), uid_of(older)))
        assert image_of(again) == image_of(new)
        assert scene.kept() == kept


def test_an_operator_that_is_uninstalled_with_its_definitions_finds_everything_again(scene: Scene) -> None:
    access, namespace = scene.access, f"--namespace={SYSTEM}"

    def objects() -> set[str]:
        kinds = [kind.name for kind in KINDS if kind.namespaced]
        return {uid_of(each) for kind in kinds for each in access.objects(kind, scene.ours.namespace)}

    with scene.disaster("operator and definitions uninstalled"):
        kept, existing = scene.kept(), objects()

        access.helm("uninstall", RELEASE, namespace, "--wait")
        access.helm("uninstall", DEFINITIONS, namespace, "--wait")

        assert objects() == existing
        assert scene.kept() == kept

        install(access, scene.refs)

        operatorpods.active(access)
        assert objects() == existing
        assert scene.kept() == kept


def image_of(pod: Object) -> str:
    image: str = pod["spec"]["containers"][0]["image"]
    return image


def test_a_run_has_its_first_job_while_a_neighbour_creates_thousands(
    scene: Scene, snapshot: EtcdSnapshot
) -> None:
    created: list[str] = []
    with (
        scene.disaster(f"{NEIGHBOURS:,} runs of a neighbour") as disaster,
        ThreadPoolExecutor(1) as pool,
    ):
        creation = pool.submit(create_runs, scene, created)
        until(lambda: creation.done() or len(created) > NEIGHBOURS / 4, "runs of the neighbour")
        began = time.monotonic()

        first_job(scene)

        waited, beside = time.monotonic() - began, len(created)
        creation.result()
        operatorpods.active(scene.access)
        disaster.note = f"first Job of a run of ours after {waited:.1f} s, beside {beside:,} of them"
    assert len(created) == NEIGHBOURS


def first_job(scene: Scene) -> None:
    scene.ours.apply(manifests.finetunejob("younger"))
    uid = uid_of(scene.ours.get("FineTuneJob", "younger"))
    until(
        lambda: scene.ours.children("jobs", uid, "preflight"),
        "the first Job of the run",
        lambda: scene.ours.describe("FineTuneJob", "younger"),
    )


def create_runs(scene: Scene, created: list[str]) -> None:
    """Half of the runs are suspended, half wait for a store that does not exist."""

    def runs() -> Iterator[Object]:
        for number in range(NEIGHBOURS):
            state: Object = {"suspend": True} if number % 2 else {"store": {"uri": "pvc://missing"}}
            run = manifests.finetunejob(f"crowd-{number:04d}", **state)
            run["metadata"]["namespace"] = scene.theirs.namespace
            created.append(name_of(run))
            yield run

    async def all_of_them() -> None:
        async with client(scene.cluster, "crowd") as user:
            await create(user, runs())

    asyncio.run(all_of_them())


def test_endpoint_and_run_go_on_while_the_api_server_is_frozen(scene: Scene, snapshot: EtcdSnapshot) -> None:
    (second,) = filter(is_running, scene.train_pods())
    operator, before = operatorpods.active(scene.access), scene.newest_step()
    with scene.disaster(f"API server frozen for {FROZEN_SECONDS:.0f} s"):
        with scene.cluster.frozen():
            time.sleep(FROZEN_SECONDS)
        assert scene.newest_step() > before

        assert restarts(operatorpods.active(scene.access)) == restarts(operator)
        assert [uid_of(pod) for pod in filter(is_running, scene.train_pods())] == [uid_of(second)]


def restarts(pod: Object) -> tuple[str, int]:
    """The uid of a pod and the number of restarts of its container."""
    return uid_of(pod), pod["status"]["containerStatuses"][0]["restartCount"]


def test_after_a_restore_of_etcd_what_was_there_goes_on_and_what_was_not_is_made_again(
    scene: Scene, snapshot: EtcdSnapshot
) -> None:
    ours, uid = scene.ours, uid_of(scene.run)
    operator = operatorpods.active(scene.access)
    (job,) = ours.children("jobs", uid, "train")
    with scene.disaster("etcd restored") as disaster:
        saved, now = scene.newest_step(), datetime.now(UTC)
        disaster.note = f"from a snapshot of {time.monotonic() - snapshot.taken:.0f} s before"

        scene.cluster.restore()

        assert scene.access.object("FineTuneJob", ours.namespace, "younger") is None
        theirs = scene.access.objects("FineTuneJob", scene.theirs.namespace)
        assert [name_of(each) for each in theirs] == ["calm"]
        until(
            lambda: operatorpods.metrics(operator).get("finetune_etcd_restores_total"),
            "the operator has noticed the restore",
            lambda: scene.access.kubectl("logs", name_of(operator), f"--namespace={SYSTEM}", "--tail=50"),
        )
        assert restarts(operatorpods.active(scene.access)) == restarts(operator)
        line = pace(ours, pod_started_after(scene, now), RESUMED, SLOW)
        assert step_in(line, RESUMED) >= saved
        assert [uid_of(each) for each in ours.children("jobs", uid, "train")] == [uid_of(job)]
        first_job(scene)


def pod_started_after(scene: Scene, moment: datetime) -> Object:
    """The run's train pod whose container has been restarted."""

    def found() -> Object | None:
        for pod in filter(is_running, scene.train_pods()):
            (status,) = pod["status"]["containerStatuses"]
            if datetime.fromisoformat(status["state"]["running"]["startedAt"]) > moment:
                return pod
        return None

    return eventually(
        f"a train pod was started after {moment}",
        found,
        PATIENCE_SECONDS,
        describe=lambda: scene.ours.describe("FineTuneJob", "steady"),
        pause=PAUSE_SECONDS,
    )


def test_a_service_that_is_deleted_by_hand_is_back_within_seconds(scene: Scene) -> None:
    with scene.disaster("Service deleted by hand") as disaster:
        scene.ours.kubectl("delete", "service", "support", "--wait=false")
        deleted = time.monotonic()
        disaster.forgiven = deleted + BACK_WITHIN_SECONDS
        until(
            lambda: [each for each in scene.load.ended if each.at > disaster.forgiven],
            "requests that were sent after the Service had to be back",
        )
        last = max((each.at for each in scene.load.ended if each.failure), default=deleted)
        disaster.note = f"the last failed request was sent {max(0.0, last - deleted):.1f} s after it"


def test_a_neighbours_namespace_goes_with_everything_in_it_and_takes_nothing_of_ours(scene: Scene) -> None:
    theirs = scene.theirs
    theirs.apply(manifests.finetunejob("last", suspend=True))
    theirs.until("FineTuneJob", "last", "Suspended")
    operator, kept = operatorpods.active(scene.access), scene.kept()
    with scene.disaster("a neighbour's namespace deleted"):
        scene.access.kubectl("delete", "namespace", theirs.namespace, "--wait=false")

        until(
            lambda: not scene.access.kubectl("get", "namespace", theirs.namespace, "--ignore-not-found"),
            "the namespace is gone",
            lambda: scene.access.kubectl("get", "namespace", theirs.namespace, "--output=yaml"),
        )
        assert scene.access.pods(theirs.namespace, "") == []
        assert restarts(operatorpods.active(scene.access)) == restarts(operator)
        assert scene.kept() == kept


def test_each_step_of_the_run_counted_once_and_its_weights_are_those_of_a_run_left_alone(
    scene: Scene,
) -> None:
    ours = scene.ours
    (pod,) = filter(is_running, scene.train_pods())
    resize(ours, pod, FAST)

    ended = ours.until("FineTuneJob", "steady", "Ready", "Promoted")

    (job,) = ours.children("jobs", uid_of(scene.run), "train")
    assert job["status"]["succeeded"] == 1
    training, alone = ended["status"]["training"], scene.calm["status"]["training"]
    assert training["steps"] == alone["steps"] == STEPS
    assert training["tokens"] == alone["tokens"]
    assert training["restarts"] >= 2
    assert [each["digest"] for each in ended["status"]["checkpoints"]] == [
        each["digest"] for each in scene.calm["status"]["checkpoints"]
    ]
    ours.until("FineTuneJob", "younger", "Ready", "Promoted")


def test_no_request_has_failed_but_for_the_time_without_a_service(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    with client_of("support", scene.ours.namespace) as openai:
        assert ask(openai, "tuned", "order late?") == "billing"
    scene.load.stop()

    with capsys.disabled():
        print("\n\n" + "\n".join(table(scene)))
    forgiven = [each for disaster in scene.disasters for each in scene.asked(disaster) if each.failure]
    assert scene.load.sent == len(scene.load.ended)
    assert [each for each in scene.load.ended if each.failure and each not in forgiven] == []
    assert [each for disaster in scene.disasters for each in scene.unforgiven(disaster)] == []


def table(scene: Scene) -> Iterator[str]:
    """Table rows of each disaster, and of the whole time."""
    yield "| disaster | seconds | requests sent | failed | longest answer, s | |"
    yield "|---|---:|---:|---:|---:|---|"
    for each in scene.disasters:
        yield row(each.name, each.ended - each.began, scene.asked(each), each.note)
    whole = scene.load.ended[-1].at - scene.load.ended[0].at
    yield row("all, and the time between them", whole, scene.load.ended, "")


def row(name: str, seconds: float, asked: list[LoadRequest], note: str) -> str:
    failed = sum(bool(each.failure) for each in asked)
    longest = max((each.seconds for each in asked if not each.failure), default=0.0)
    return f"| {name} | {seconds:.0f} | {len(asked):,} | {failed} | {longest:.1f} | {note} |"
